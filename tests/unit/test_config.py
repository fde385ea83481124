import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import TypeAdapter, ValidationError

from models.variants import ATTENTION_DROPS, INPUT_MAPS, KD_FORMS, VARIANTS
from pipeline.config import ExperimentConfig, HeadConfig, OneOf, TrainConfig
from pipeline.protocols import PARTS


@pytest.mark.parametrize(
    ("settings", "name", "known"),
    [
        (HeadConfig, "variant", VARIANTS),
        (HeadConfig, "attention_drop", ATTENTION_DROPS),
        (HeadConfig, "input_features", INPUT_MAPS),
        (TrainConfig, "kd_form", KD_FORMS),
    ],
)
def test_settings_take_what_the_models_have_and_nothing_else(settings, name, known):
    for value in known:
        assert getattr(settings(**{name: value}), name) == value
    with pytest.raises(ValidationError, match=f"expected one of {', '.join(known)}"):
        settings(**{name: "none"})


def test_an_experiment_tests_all_parts_unless_it_says_which():
    assert ExperimentConfig(name="a", refresh_args="a").parts == PARTS
    with pytest.raises(ValidationError, match="expected one of P1, P2, P3"):
        ExperimentConfig(name="a", refresh_args="a", parts=["P4"])


def test_a_name_may_be_added_later_and_is_in_the_schema():
    known = {"a": 1}
    names = TypeAdapter(Annotated[str, OneOf(known)])
    with pytest.raises(ValidationError, match="expected one of a"):
        names.validate_python("b")
    known["b"] = 2
    assert names.validate_python("b") == "b"
    assert names.json_schema() == {"type": "string", "enum": ["a", "b"]}


@pytest.mark.parametrize(
    ("module", "absent"),
    [("pipeline.config", "torch"), ("pipeline.datasets", "torch, cv2, av"), ("pipeline.experiments", "torch, cv2, av")],
)
def test_settings_and_layouts_load_no_large_library(module, absent):
    names = absent.split(", ")
    script = f"import sys, {module}; print(*sorted(set({names}) & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []


def test_a_rank_of_1_keeps_the_names_of_runs_from_before_there_was_one():
    assert "token_rank" not in HeadConfig().document()
    assert "pools_early" not in HeadConfig().document()
    assert HeadConfig(pools_early=True).document() == HeadConfig().document() | {"pools_early": True}
    assert HeadConfig(token_rank=4).document() == HeadConfig().document() | {"token_rank": 4}
