import re
from pathlib import Path

import pandas as pd
import pytest

from pipeline.catalog import load_catalog
from pipeline.errors import CatalogError, ConfigError
from pipeline.experiments import load_experiment, load_set, resolve
from pipeline.project import shipped_file
from pipeline.report.published import PUBLISHED_FILE


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_every_shipped_experiment_loads():
    names = [path.stem for path in shipped_file("configs").glob("*.yaml")]
    assert {"fan_trans", "demo", "table1"} <= set(names)
    for name in names:
        chosen = load_set(name, base="fan_trans")
        assert chosen.name == name
        assert len(chosen.experiments) >= 1


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
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_experiment("a", folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: {learning_rate: 1}", "unknown key `train.learning_rate`; known ones: num_epochs, batch_size, lr"),
        ("head: {numblocks: 1}", "unknown key `head.numblocks`; did you mean `head.num_blocks`?"),
        ("cache: {views: {num_view: 3}}", "unknown key `cache.views.num_view`; did you mean `cache.views.num_views`?"),
        ("train: {lr: -1}", "`train.lr` is -1"),
        ("head: {variant: fan}", "`head.variant` is 'fan'"),
        ("train: {lr: 1}\ntrain: {lr: 2}", "found duplicate key train"),
        ("base: a", "derives from itself"),
        ("", "is empty; write `base: fan_trans`"),
        ("base: unknown", "experiment 'unknown' does not exist"),
        ("[1, 2]", "must contain a mapping"),
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


def test_a_set_is_its_members_times_seeds_over_the_base(tmp_path):
    write(
        tmp_path,
        small="""
published_table: table1
seeds: [0, 3]
members:
  full: {published: Full}
  shallow: {head: {num_blocks: 1}, train: {lr: 0.5}}
""",
    )
    chosen = load_set(str(tmp_path / "small.yaml"), base="demo")
    assert (chosen.name, chosen.published_table) == ("small", "table1")
    assert [(member.name, member.published) for member in chosen.members] == [("full", "Full"), ("shallow", None)]
    assert [each.name for each in chosen.experiments] == ["full-seed0", "full-seed3", "shallow-seed0", "shallow-seed3"]
    full, last, demo = chosen.experiments[0], chosen.experiments[3], load_experiment("demo")
    assert (full.head, full.train, full.cache, full.refresh_args) == (demo.head, demo.train, demo.cache, "demo")
    assert (last.head.num_blocks, last.train.lr, last.train.seed) == (1, 0.5, 3)


def test_an_experiment_is_a_set_of_its_own():
    chosen = load_set("demo", base="fan_trans")
    assert chosen.experiments == (load_experiment("demo"),)
    assert chosen.cache == load_experiment("demo").cache
    with pytest.raises(ConfigError, match="is one experiment and has no members; name it without `:full`"):
        load_set("demo:full", base="fan_trans")


def test_a_member_of_a_set_is_named_behind_a_colon(tmp_path):
    whole, one = (load_set(name, base="demo") for name in ("table1", "table1:t1_o2o_t2_o2m"))
    assert one.members == tuple(member for member in whole.members if member.name == "t1_o2o_t2_o2m")
    assert (one.name, one.published_table) == ("table1_t1_o2o_t2_o2m", "table1")
    with pytest.raises(ConfigError, match=r"member 'full' does not exist in .*; known ones: baseline, c_t_o2o"):
        load_set("table1:full", base="demo")


def test_a_set_on_several_caches_says_how_to_name_one(tmp_path):
    write(tmp_path, two="members: {plain: {}, wide: {cache: {features: {weights: fan-128}}}}")
    path = f"{tmp_path}/two.yaml"
    with pytest.raises(ConfigError, match=r"two trains on several caches.*name one member, such as .*/two.yaml:wide"):
        _ = load_set(path, base="demo").cache
    (wide,) = load_set(f"{path}:wide", base="demo").experiments
    assert wide.cache.features.weights == "fan-128"
    assert wide.refresh_args == f"{path}:wide --base demo"


def test_a_name_is_resolved_on_a_data_set(tmp_path):
    catalog = load_catalog()
    assert resolve(catalog, "bp4d-synthetic").experiments == (load_experiment("demo"),)
    assert resolve(catalog, "bp4d-synthetic", "table1").experiments[0].train.batch_size == 16
    assert resolve(catalog, "bp4d-synthetic", "table1", base="fan_trans").experiments[0].train.batch_size == 64
    with pytest.raises(ConfigError, match="demo is one experiment and not derived from fan_trans; leave --base out"):
        resolve(catalog, "bp4d-synthetic", "demo", base="fan_trans")
    with pytest.raises(CatalogError, match="data set 'nowhere' does not exist"):
        resolve(catalog, "nowhere", "table1")


@pytest.mark.parametrize("content", ["variants: {a: {}}", "variants: [a]\nmembers: {a: {}}"])
@pytest.mark.parametrize("chosen", ["", ":a"])
def test_the_old_key_of_a_set_is_refused_with_the_new_one(tmp_path, content, chosen):
    path = write(tmp_path, old=content) / "old.yaml"
    sentence = re.escape(f"{path}: the key `variants` is now `members`; rename it")
    with pytest.raises(ConfigError, match=sentence):
        load_set(f"{path}{chosen}", base="demo")
    with pytest.raises(ConfigError, match=sentence):
        load_experiment(str(path))
    with pytest.raises(ConfigError, match=sentence):
        load_set("table1", base=str(path))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("members: {a: {head: {depth: 3}}}", "unknown key `head.depth`"),
        ("memberz: {a: {}}", "unknown key `memberz`"),
        ("members: {a: 3}", "`members.a` must be a mapping of keys, found 3"),
        ("seeds: [0, 0]\nmembers: {a: {}}", "`seeds`: a seed appears twice"),
        ("seeds: []\nmembers: {a: {}}", "`seeds`"),
        ("members: {a: {train: {seed: 7}}}", "member a has a `train.seed`; list its seeds in the set's `seeds`"),
        ("members: [a, b]", "`members` must be a mapping of keys, found ['a', 'b']"),
        ("members: {a: {}}\nbase: demo", "unknown key `base`"),
    ],
)
def test_faults_of_a_set_are_one_sentence(tmp_path, content, fault):
    write(tmp_path, mine=content)
    with pytest.raises(ConfigError, match=re.escape(fault)):
        load_set(str(tmp_path / "mine.yaml"), base="demo")


def test_a_set_is_not_taken_for_an_experiment():
    with pytest.raises(ConfigError, match="is a set of experiments"):
        load_experiment("table1")


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table4"])
def test_the_papers_tables_have_all_their_rows(name):
    published = pd.read_csv(PUBLISHED_FILE).query("table == @name and au == 'AVG'")
    chosen = load_set(name, base="fan_trans")
    assert chosen.published_table == name
    assert {member.published for member in chosen.members} == set(published["method"])


def test_overrides_change_an_experiment_and_give_the_settings_of_a_file(tmp_path):
    write(tmp_path, mine="base: demo\nhead: {num_blocks: 3}\ntrain: {lr: 3.0e-4}")
    (overridden,) = load_set("demo", base="demo", overrides=["head.num_blocks=3", "train.lr=3e-4"]).experiments
    mine = load_experiment(str(tmp_path / "mine.yaml"))
    assert (overridden.head, overridden.train, overridden.cache) == (mine.head, mine.train, mine.cache)
    assert overridden.refresh_args == "demo"


def test_several_values_are_a_member_each():
    chosen = load_set("demo", base="demo", overrides=["train.lr=1e-4,3e-4", "head.num_blocks=1"])
    assert [member.name for member in chosen.members] == ["train.lr=1e-4", "train.lr=3e-4"]
    assert chosen.experiments[0].name == "demo train.lr=1e-4 head.num_blocks=1-seed0"
    members = load_set("table3:blocks_1", base="demo", overrides=["train.lr=1e-4,3e-4"]).members
    assert [member.name for member in members] == ["blocks_1 train.lr=1e-4", "blocks_1 train.lr=3e-4"]
    assert [each.train.lr for each in chosen.experiments] == [1e-4, 3e-4]
    assert chosen.name == "demo train.lr=1e-4,3e-4 head.num_blocks=1"


def test_several_seeds_are_the_seeds_of_each_member(tmp_path):
    chosen = load_set("demo", base="demo", overrides=["train.seed=0,4", "train.lr=1e-4,3e-4"])
    assert [[each.train.seed for each in member.experiments] for member in chosen.members] == [[0, 4], [0, 4]]
    table = load_set("table1:baseline", base="demo", overrides=["train.seed=7"])
    assert [each.train.seed for each in table.experiments] == [7]
    assert table.members[0].published == "Baseline"
    with pytest.raises(ConfigError, match=r"a value of train\.seed appears twice"):
        load_set("demo", base="demo", overrides=["train.seed=1,1"])


def test_overrides_of_the_cache_are_part_of_the_command_that_refreshes_it():
    one = load_set("table1:baseline", base="demo", overrides=["cache.views.num_views=3", "train.lr=1"]).experiments[0]
    assert one.refresh_args == "demo --set cache.views.num_views=3"
    assert one.cache.views.num_views == 3


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("head.blocks=3", "unknown key `head.blocks`"),
        ("train.lr=fast", "`train.lr` is 'fast'"),
        ("tain.lr=1", "unknown key `tain`"),
        ("train=3", "`train` must be a mapping of keys, found 3"),
    ],
)
def test_a_wrong_override_is_one_sentence(override, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        load_set("demo", base="demo", overrides=[override])
    assert "\n" not in str(caught.value)
