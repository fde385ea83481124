import re

import pytest

from pipeline.errors import ConfigError
from pipeline.yaml_settings import merge_settings, parse_overrides, read_yaml, resolve_settings


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a: 1\nb: 2\na: 3", "line 3: found duplicate key a"),
        (b"a: [", "line 2: did not find expected node content"),
        (b"- a", "must contain a mapping of keys, not a list"),
        (b"a: \xff", "not UTF-8 text"),
        (b"a: 1\n~: 2", "NoneType.*; keys must be names, and values text or numbers$"),
        (b"a: 1\x00", r"has the control character U\+0000 at position 4; remove it$"),
        (b"a: {b: ${oc.env:X}}", r"put quotes around a \$\{...\} inside of \{ \}$"),
    ],
)
def test_a_damaged_yaml_file_is_named(tmp_path, content, sentence):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_yaml(path, error=ConfigError)
    assert str(path) in str(caught.value)


def test_mappings_merge_at_depth_and_lists_are_replaced():
    under = {"train": {"lr": 1.0, "seed": 2}, "parts": ["P1", "P2"]}
    assert merge_settings(under, {"train": {"lr": 0.5}, "parts": ["P3"]}) == {
        "train": {"lr": 0.5, "seed": 2},
        "parts": ["P3"],
    }
    assert under["train"]["lr"] == 1.0


@pytest.mark.parametrize(
    ("under", "over", "head"),
    [
        ({"num_blocks": 3}, {"variant": "baseline"}, {"num_blocks": 3, "variant": "baseline"}),
        ({"variant": "baseline", "dim": 8}, {"dim": 4}, {"variant": "baseline", "dim": 4}),
        ({"num_blocks": 3}, {"class": "a:B", "hidden": 4}, {"class": "a:B", "hidden": 4}),
        ({"class": "a:B", "hidden": 4}, {"hidden": 8}, {"class": "a:B", "hidden": 8}),
        ({"class": "a:B", "hidden": 4}, {"class": "a:B", "width": 8}, {"class": "a:B", "hidden": 4, "width": 8}),
        ({"class": "a:B", "hidden": 4}, {"class": "a:C"}, {"class": "a:C"}),
        ({"class": "a:B", "hidden": 4}, {"variant": "baseline"}, {"variant": "baseline"}),
    ],
)
def test_another_kind_of_head_replaces_the_whole_head(under, over, head):
    assert merge_settings({"head": under}, {"head": over}) == {"head": head}


def test_overrides_with_several_values_are_every_combination():
    found = parse_overrides(["train.lr=1e-4,3e-4", "head.num_blocks=3", "parts=[P1,P2],[P3]", "name='a,b'"])
    assert [each.words for each in found] == [
        (f"train.lr={lr}", "head.num_blocks=3", f"parts={parts}", "name='a,b'")
        for lr in ("1e-4", "3e-4")
        for parts in ("[P1,P2]", "[P3]")
    ]
    assert found[1].settings == {"train": {"lr": 1e-4}, "head": {"num_blocks": 3}, "parts": ["P3"], "name": "a,b"}
    assert [each.settings for each in parse_overrides([])] == [{}]
    assert parse_overrides([" a.b = 1"])[0].words == ("a.b=1",)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["train.lr"], "override 'train.lr' must be KEY=VALUE, such as train.lr=3e-4"),
        (["=3"], "must be KEY=VALUE"),
        (["train.lr="], "must be KEY=VALUE"),
        (["a=1", "a=2"], "override 'a' appears twice; sweep its values with a=VALUE,VALUE"),
        (["a=1,1"], "override 'a=1,1': a value of a appears twice"),
        (["a=[1"], "override 'a=[1' cannot be read"),
    ],
)
def test_a_faulty_override_is_named(overrides, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        parse_overrides(overrides)
    assert "\n" not in str(caught.value)


def test_variables_are_replaced_at_any_depth(monkeypatch):
    monkeypatch.setenv("FT_TEST_A", "x")
    monkeypatch.delenv("FT_TEST_B", raising=False)
    settings = {"a": ["${oc.env:FT_TEST_A}/y"], "b": {"c": "${oc.env:FT_TEST_B,a folder/z}"}, "d": 1}
    assert resolve_settings(settings, where="here", error=ConfigError) == {
        "a": ["x/y"],
        "b": {"c": "a folder/z"},
        "d": 1,
    }
    with pytest.raises(ConfigError, match=r"^here: `a.b`: variable FT_TEST_B is not set"):
        resolve_settings({"a": {"b": "${oc.env:FT_TEST_B}"}}, where="here", error=ConfigError)
