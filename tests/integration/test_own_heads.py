import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from models.head import HeadOutput, run_head
from pipeline.cache.codecs import make_codec
from pipeline.config import ExperimentConfig, OwnHeadConfig, TrainConfig, first_fault
from pipeline.errors import ConfigError, DataError
from pipeline.head_class import load_head_class
from pipeline.report.run import read_report
from pipeline.training.export import export_deployed, load_deployed, load_trained
from pipeline.training.head_training import HeadTraining
from pipeline.training.heads import build_head
from pipeline.training.predict import predict
from pipeline.training.trainer import train_heads
from tests.devices import DEVICES
from tests.processes import make_process
from tests.unit import small_runs
from tests.unit.small_runs import RULES, TRAIN, make_run, train_fold

LAYERS = """
from torch import nn


def hidden_layer(num_in, num_out):
    return nn.Sequential(nn.Linear(num_in, num_out), nn.ReLU())
"""
HEADS = """
import torch
from torch import nn

from models.head import HeadOutput, stack_maps
from my_layers import hidden_layer


class Mlp(nn.Module):
    def __init__(self, inputs, *, hidden=8, dropout=0.5):
        super().__init__()
        self.hidden = hidden_layer(inputs.num_stacked_channels, hidden)
        self.last = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, inputs.num_aus))

    def forward(self, maps):
        return self.last(self.hidden(stack_maps(maps).mean((2, 3))))


class Pair(nn.Module):
    plain, gated = ("lf", "h1"), ()

    def __init__(self, inputs):
        super().__init__()
        self.first = nn.Linear(2 * inputs.num_channels, inputs.num_aus)
        self.second = nn.Linear(2 * inputs.num_channels, inputs.num_aus)

    def forward(self, maps):
        pooled = stack_maps(maps, plain=self.plain, gated=self.gated).mean((2, 3))
        logits = self.first(pooled), self.second(pooled)
        return HeadOutput(logits, torch.stack(logits).mean(0))


class Wide(Mlp):
    def forward(self, maps):
        return super().forward(maps)[..., None]


class Frozen(Mlp):
    def __init__(self, inputs):
        super().__init__(inputs)
        self.requires_grad_(False)


class Broken(Mlp):
    def forward(self, maps):
        return self.last(maps["h3"])


class Fixed(Mlp):
    def forward(self, maps):
        return super().forward(maps).detach()


NotAHead = int
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a small cache and the modules of a user."""
    small_runs.make_cache(tmp_path)
    (tmp_path / "my_layers.py").write_text(LAYERS)
    (tmp_path / "my_heads.py").write_text(HEADS)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget(tmp_path)


def forget(folder):
    for name in ("my_heads", "my_layers"):
        sys.modules.pop(name, None)
    if str(folder) in sys.path:
        sys.path.remove(str(folder))


def own(name, **arguments):
    return OwnHeadConfig.model_validate({"class": f"my_heads:{name}", **arguments})


def run_of(folder, name="Mlp", *, run="own", train=TRAIN, **arguments):
    return make_run(folder, name=run, head=own(name, **arguments), train=train)


@pytest.mark.parametrize("name", ["Mlp", "Pair"])
def test_a_head_of_ones_own_trains_scores_and_is_exported(folder, name):
    run = run_of(folder, name)
    fold = train_fold(run, "P1")
    result = json.loads((fold / "result.json").read_text())
    assert result["history"][-1]["loss"] < result["history"][0]["loss"]
    assert (result["history"][-1]["loss_kd"] > 0) == (name == "Pair")  # only an ensemble teaches
    assert (run.folder / "source/my_heads.py").read_text() == HEADS
    assert (run.folder / "source/my_layers.py").read_text() == LAYERS
    assert read_report(run.folder).scores.f1_percent >= 0
    deployed = load_deployed(fold / "deployed")
    again = predict(deployed.head, run.cache, run.frames, aus=RULES.aus, test_part="P1", device="cpu")
    pd.testing.assert_frame_equal(again, pd.read_parquet(fold / "predictions.parquet"))
    assert export_deployed(fold / "deployed", folder / "exported") < 1e-5
    assert (folder / "exported/head.onnx").is_file()
    assert deployed.map_names == (("lf", "h1", "h2", "hm") if name == "Mlp" else ("lf", "h1"))


def test_the_last_branch_is_deployed(folder):
    run = run_of(folder, "Pair")
    fold = train_fold(run, "P1")
    head, deployed = load_trained(fold), load_deployed(fold / "deployed").head
    maps = {name: torch.rand(3, 4, 16, 16) for name in ("lf", "h1")}
    with torch.inference_mode():
        output = head(maps)
        assert isinstance(output, HeadOutput)
        assert not torch.equal(output.branches[0], output.branches[1])
        assert torch.equal(deployed(maps), output.branches[1])


def test_logits_under_autocast_are_fp32_before_the_loss(folder):
    run = run_of(folder, train=TRAIN.model_copy(update={"precision": "bf16"}))
    losses = json.loads((train_fold(run, "P1") / "result.json").read_text())["history"]
    assert any(
        torch.tensor(epoch["loss"], dtype=torch.float64).bfloat16().double() != epoch["loss"] for epoch in losses
    )
    half = run_head(lambda maps: torch.ones(2, 3, dtype=torch.bfloat16), {})
    assert half.deployed.dtype is torch.float32
    assert run_head(lambda maps: torch.ones(2, 3).double(), {}).deployed.dtype is torch.float64


@pytest.mark.parametrize("device", DEVICES)
def test_dropout_draws_the_same_numbers_whatever_is_trained_beside(folder, device):
    runs = [run_of(folder, run=f"own{seed}", train=TRAIN.model_copy(update={"seed": seed})) for seed in (0, 1)]
    for run in runs:
        train_heads([(run, "P1")], device=device)
    together = [replace(run, folder=run.folder.with_name(f"{run.folder.name}-together")) for run in runs]
    train_heads([(run, part) for run in together for part in ("P1", "P2")], device=device)
    for one, other in zip(runs, together, strict=True):
        weights, theirs = (load_file(run.fold_folder("P1") / "head.safetensors") for run in (one, other))
        assert all(torch.equal(weights[name], theirs[name]) for name in weights)


def _train_and_die(folder: Path) -> None:
    os.chdir(folder)
    run = run_of(Path(folder), run="killed")
    end_epoch = HeadTraining._end_epoch

    def dying(self, *losses):
        end_epoch(self, *losses)
        if self.num_epochs_done == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    HeadTraining._end_epoch = dying
    train_fold(run, "P1")


def test_a_killed_training_with_dropout_ends_with_the_weights_of_an_undisturbed_one(folder):
    process = make_process(target=_train_and_die, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    killed, undisturbed = run_of(folder, run="killed"), run_of(folder, run="undisturbed")
    assert (killed.fold_folder("P1") / "checkpoint.pt").is_file()
    weights = [load_file(train_fold(run, "P1") / "head.safetensors") for run in (killed, undisturbed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.parametrize("file", ["my_heads.py", "my_layers.py"])
def test_a_changed_source_is_another_run_and_its_old_weights_are_refused(folder, file):
    before = own("Mlp").document()
    fold = train_fold(run_of(folder), "P1")
    path = folder / file
    path.write_text(path.read_text().replace("nn.ReLU()", "nn.GELU()") + "# changed\n")
    assert own("Mlp").document() != before
    assert own("Mlp").document() == before | {"source_sha256": own("Mlp").document()["source_sha256"]}
    version = r"the version that it was trained with is in .*/own/source: run the command there"
    with pytest.raises(DataError, match=f"changed since the head was trained; .*{version}"):
        load_deployed(fold / "deployed")


def test_the_source_is_found_in_folders_with_and_without_init_and_by_any_kind_of_import(folder):
    files = {
        "plain/heads.py": "import torch\nfrom .layers import a\nfrom plain import other\nclass H(torch.nn.Module): ...",
        "plain/layers.py": "def a():\n    import deep.er.most\n",
        "plain/other.py": "",
        "plain/unused.py": "",
        "deep/__init__.py": "",
        "deep/er/__init__.py": "from . import sister",
        "deep/er/sister.py": "from .. import aunt",
        "deep/er/most.py": "from ..aunt import x",
        "deep/aunt.py": "x = 1",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    found = load_head_class("plain.heads:H")
    assert {str(path.relative_to(folder)) for path in found.files} == set(files) - {"plain/unused.py"}
    (folder / "plain/unused.py").write_text("changed = 1")
    assert load_head_class("plain.heads:H").source_sha256 == found.source_sha256
    (folder / "deep/aunt.py").write_text("x = 2")
    assert load_head_class("plain.heads:H").source_sha256 != found.source_sha256
    for name in [name for name in sys.modules if name.partition(".")[0] in ("plain", "deep")]:
        del sys.modules[name]


def test_a_class_that_changed_in_a_running_process_is_imported_again(folder):
    assert build_head(run_of(folder)).head.hidden[1].__class__ is torch.nn.ReLU
    (folder / "my_layers.py").write_text(LAYERS.replace("nn.ReLU()", "nn.GELU( )"))
    assert build_head(run_of(folder)).head.hidden[1].__class__ is torch.nn.GELU


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "Wide",
            "my_heads:Wide returns (2, 2, 1) as branch 1 for 2 frames, expected logits (2, 2): one per action unit",
        ),
        ("Frozen", "my_heads:Frozen has no parameters to train"),
        ("Broken", "my_heads:Broken cannot run: KeyError: 'h3' (my_heads.py, line 46: return self.last(maps["),
        ("Fixed", "my_heads:Fixed returns branch 1 without a gradient, so it cannot be trained"),
    ],
)
def test_a_broken_contract_is_named_before_anything_is_written(folder, name, sentence):
    run = run_of(folder, name)
    with pytest.raises(ConfigError) as caught:
        train_heads([(run, "P1")])
    assert sentence in str(caught.value)
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"class": "my_heads:Mpl"}, "`head.class`"),
        ({"class": "my_heads.py:Mlp"}, "expected MODULE:CLASS without .py"),
        ({"class": "my_layers:hidden_layer"}, "is a function, expected a class"),
        ({"class": "my_heads.Mlp"}, 'expected MODULE:CLASS without .py, such as "my_heads:MyHead"'),
        ({"class": "no_such_heads:Mlp"}, "there is no module 'no_such_heads' in"),
        ({"class": "json:JSONEncoder"}, "there is no module 'json' in"),  # neither here nor installed
        ({"class": "my_heads:NotAHead"}, "int is not a torch.nn.Module"),
        ({"class": "my_heads:Mlp", "hiden": 3}, "did you mean 'hidden'?"),
        ({"class": "torch.nn:Bilinear"}, "missing a required argument: 'in2_features'"),
        (
            {"class": "broken_heads:Mlp"},
            "cannot be imported: NameError: name 'x' is not defined (broken_heads.py, line 1: x)",
        ),
    ],
)
def test_a_faulty_class_is_named_when_the_settings_are_read(folder, settings, sentence):
    (folder / "broken_heads.py").write_text("x\n")
    with pytest.raises(ValidationError) as caught:
        ExperimentConfig(name="a", refresh_args="a", head=settings)
    assert sentence.replace("`head.class`", "did you mean 'Mlp'?") in first_fault(caught.value)
    assert first_fault(caught.value).startswith("`head`")


def test_a_head_starts_from_another_one_where_sizes_fit(folder):
    first = run_of(folder, run="first")
    train_fold(first, "P1")
    run = replace(
        run_of(folder, run="second", train=TrainConfig(num_epochs=1, batch_size=4, lr=1e-12)), init_from=first.folder
    )
    first_weights = load_file(first.fold_folder("P1") / "head.safetensors")
    (first.folder / "run.json").write_text(
        json.dumps({**json.loads((first.folder / "run.json").read_text()), **run.record})
    )
    weights = load_file(train_fold(run, "P1") / "head.safetensors")
    assert all(np.allclose(weights[name], first_weights[name], atol=1e-6) for name in weights)


def test_a_head_that_reads_ungated_maps_is_refused_on_a_compact_cache(folder):
    from pipeline.training.heads import check_maps

    run = run_of(folder, "Pair")
    codec = replace(make_codec("exact", small_runs.SHAPES), profile="compact")
    run.cache.__dict__["codec"] = codec
    with pytest.raises(ConfigError, match="small reads h1 without the heatmap gate, and the profile compact holds"):
        check_maps("small", run.experiment.head, run.cache)
    check_maps("small", own("Mlp"), run.cache)


def test_the_example_is_a_head():
    from examples.own_head import ConvMlp
    from models.head import HeadInputs, check_contract

    inputs = HeadInputs(4, 16, 3)
    assert check_contract(ConvMlp(inputs, hidden=4), inputs)
    assert not check_contract(ConvMlp(inputs, hidden=4, dropout=0.0), inputs)
    assert len(Path("examples/own_head.py").read_text().splitlines()) < 60


def test_a_head_of_ones_own_is_built_from_the_config(folder):
    built = build_head(run_of(folder, hidden=5))
    assert built.head.hidden[0].out_features == 5
    assert built.draws_random_numbers
    assert built.description["arguments"] == {"hidden": 5}
