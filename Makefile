# Each target installs what it needs, once.
PYTHON ?= python3
TORCH ?= torch==2.14.1 torchvision==0.29.1
EXTRAS ?= synth,figures,onnx,tensorboard,mlflow,wandb,dev
CONSTRAINTS ?= --constraint constraints.txt
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.ready-docs

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-quick test test-unit coverage kill-test check newest constraints audit mutants fuzz bench docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## create .venv with all packages

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(CONSTRAINTS) $(TORCH)
	$(BIN)/pip install --quiet $(CONSTRAINTS) --editable '.[$(EXTRAS)]'
	$(BIN)/pip install --quiet --no-deps 'retinaface-pytorch>=0.0.8'  # it pins torch 1.9, but its network runs on newer ones
	touch $@

demo: $(READY)  ## raw frames to per-AU F1 on rendered faces (under 15 minutes)
	$(BIN)/fantrans demo

demo-quick: $(READY)  ## the same on fewer faces (1 to 2 minutes)
	$(BIN)/fantrans demo --quick

test: $(READY)  ## all tests, on all cores
	OMP_WAIT_POLICY=passive $(BIN)/pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder

test-unit: $(READY)  ## unit tests, on all cores
	$(BIN)/pytest tests/unit --numprocesses=auto

COVERING := tests/unit $(addprefix tests/integration/test_,build.py hdf5.py removal.py trainer.py maintenance.py doctor.py weight_files.py predict.py own_heads.py train_fan.py train_resnet.py tracking.py added_weights.py faults.py cli.py crops_mode.py)
coverage: $(READY)  ## which lines the tests run that need no server; too few of them is an error
	$(BIN)/pytest $(COVERING) --numprocesses=auto --dist=loadfile --cov --cov-report=term:skip-covered

kill-test: $(READY)  ## kill refreshes at 200 random moments and before every kind of write; 2,000 random steps on a cache
	FANTRANS_KILLS=200 FANTRANS_MODEL_STEPS=2000 $(BIN)/pytest tests/integration/test_kills.py tests/integration/test_cache_model.py

check: $(READY)  ## format, style, types, import contracts, words, measured numbers, dependencies, licences, sdist and wheel
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/unit/test_words.py tests/unit/test_numbers.py
	$(BIN)/deptry .
	! $(BIN)/pip check | grep -vE '^(retinaface-pytorch |No broken)'  # its pins are ignored, see setup
	$(BIN)/pip-licenses --partial-match --fail-on "GNU;GPL;SSPL;BUSL;Commons Clause" --ignore-packages text-unidecode > /dev/null
	rm -rf build/dist
	$(BIN)/python -m build --no-isolation --outdir build/dist > /dev/null  # the sdist, and the wheel from the sdist
	$(BIN)/check-wheel-contents build/dist/*.whl

newest:  ## the unit tests with the newest versions that pyproject.toml allows, in a virtual environment of their own
	rm -rf .venv-newest
	$(MAKE) setup VENV=.venv-newest CONSTRAINTS=--upgrade TORCH='torch torchvision'
	.venv-newest/bin/pytest tests/unit --numprocesses=auto

constraints: $(DOCS_READY)  ## write the versions of this virtual environment into constraints.txt
	$(BIN)/pip freeze --exclude-editable | grep -v ' @ ' | grep -viE '^(retinaface|torch|torchvision|triton|nvidia-|cuda-)' > constraints.txt  # TORCH names its own

audit: $(READY)  ## look for known vulnerabilities of the installed packages (asks the package index)
	$(BIN)/pip-audit --skip-editable

mutants: $(READY)  ## break 90 or so lines, one at a time, and see whether the tests notice (15 minutes)
	$(BIN)/python benchmarks/mutants.py

fuzz: $(READY)  ## read randomly damaged labels, images, videos, settings and weights (1 hour)
	$(BIN)/python benchmarks/fuzz.py --minutes 60

bench: $(READY)  ## speed of extraction and training, compared with other libraries (20 minutes); more in benchmarks/
	$(BIN)/python benchmarks/extraction.py
	$(BIN)/python benchmarks/training.py

$(DOCS_READY): $(READY)
	$(BIN)/pip install --quiet $(CONSTRAINTS) --editable '.[docs]'
	touch $@

docs: $(DOCS_READY)  ## the site, in build/site; a link or anchor that does not exist is an error
	$(BIN)/python -m docs.generate build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	! grep -rlE '<(script|link|img|iframe)[^>]+(src|href)="?(https?:)?//' build/site --include='*.html'  # no other host
	@echo "open build/site/index.html"

clean:  ## remove build files; data and runs (var/) and .venv stay
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage*
