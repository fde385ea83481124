from pathlib import Path

import pytest

from pipeline.config import CONFIG_FOLDER, load_experiment
from pipeline.errors import ConfigError


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_every_shipped_experiment_loads():
    names = [path.stem for path in CONFIG_FOLDER.glob("*.yaml")]
    assert "fan_trans" in names
    assert [load_experiment(name).name for name in names] == names


def test_defaults_are_the_papers():
    train = load_experiment("fan_trans").train
    assert (train.lr, train.num_epochs, train.lr_step_epochs, train.lr_decay) == (1e-4, 12, 4, 0.3)
    assert (train.batch_size, train.weight_decay, train.kd_weight) == (64, 0.0, 0.2)


def test_experiment_overlays_its_base_at_depth(tmp_path):
    write(tmp_path, base="train: {lr: 0.5, seed: 3}", child="base: base\ntrain: {lr: 0.25}")
    train = load_experiment("child", folder=tmp_path).train
    assert (train.lr, train.seed) == (0.25, 3)


def test_a_base_that_does_not_stand_beside_is_a_shipped_one(tmp_path):
    write(tmp_path, mine="base: demo\ntrain: {seed: 7}")
    mine, demo = load_experiment(str(tmp_path / "mine.yaml")), load_experiment("demo")
    assert (mine.train.seed, mine.train.num_epochs) == (7, demo.train.num_epochs)


def test_a_file_that_is_no_text_is_said(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"train: \xff")
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        load_experiment("a", folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: {learning_rate: 1}", "unknown key `train.learning_rate`"),
        ("train: {lr: -1}", "`train.lr` is -1"),
        ("head: {variant: fan}", "`head.variant` is 'fan'"),
        ("train: {lr: 1}\ntrain: {lr: 2}", "'train' is there twice"),
        ("base: a", "derives from itself"),
        ("base: nobody", "no experiment 'nobody'"),
        ("[1, 2]", "must hold a mapping"),
        ("train: {lr: [}", "line 1"),
        ("parts: []", "`parts`"),
    ],
)
def test_faults_are_one_sentence(tmp_path, text, sentence):
    write(tmp_path, a=text)
    with pytest.raises(ConfigError) as caught:
        load_experiment("a", folder=tmp_path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
