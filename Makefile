# Everything runs from here. Each goal does the set-up it needs, once.
PYTHON ?= python3
TORCH ?= torch==2.14.1 torchvision==0.29.1
EXTRAS ?= synth,figures,onnx,dev
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-quick test test-unit kill-test check bench clean

help:  ## list the goals
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## make .venv with all packages

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable '.[$(EXTRAS)]'
	$(BIN)/pip install --quiet --no-deps 'retinaface-pytorch>=0.0.8'  # its pins are of torch 1.9; its network runs on ours
	touch $@

demo: $(READY)  ## raw frames to per-AU F1 on rendered faces (under 15 minutes)
	$(BIN)/fantrans demo

demo-quick: $(READY)  ## the same, small (1 to 2 minutes)
	$(BIN)/fantrans demo --quick

test: $(READY)  ## all tests, with coverage
	$(BIN)/pytest --cov --cov-report=term:skip-covered

test-unit: $(READY)  ## the tests that take a minute
	$(BIN)/pytest tests/unit

kill-test: $(READY)  ## a refresh killed at 200 random moments and before every kind of write, 2,000 steps of a cache's life
	FANTRANS_KILLS=200 FANTRANS_MODEL_STEPS=2000 $(BIN)/pytest tests/integration/test_kills.py tests/integration/test_cache_model.py

check: $(READY)  ## style, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## speed of extraction, loader and training here, beside peers (after the demo)
	$(BIN)/python benchmarks/throughput.py

clean:  ## remove what the pipeline wrote (var/) and build leftovers, not .venv
	rm -rf var build *.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage*
