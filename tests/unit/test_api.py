"""The names of `fantrans` and the page that describes them; tests/e2e/test_demo.py calls them."""

import inspect
import re
from pathlib import Path

import fantrans

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text()


def test_every_public_name_is_on_the_page_with_its_parameters():
    for name in fantrans.__all__:
        value = getattr(fantrans, name)
        described = re.search(rf"`(?:fantrans\.)?{name}(\(.*?\))?`", PAGE)
        assert described is not None, name
        if inspect.isfunction(value):
            parameters = inspect.signature(value).parameters
            words = re.sub(r"\s*=\s*", "=", described[1])
            for parameter in parameters.values():
                assert re.search(rf"\b{parameter.name}\b", words), f"{name}: {parameter.name}"
            assert len(re.findall(r"[\w*]+(?==|,|\))", words)) >= len(parameters)


def test_every_public_name_has_a_docstring():
    assert all(inspect.getdoc(getattr(fantrans, name)) for name in fantrans.__all__)


def test_the_page_names_nothing_that_does_not_exist():
    calls = re.findall(r"^\| `(?:cache\.)?(\w+)\(", PAGE, re.M)
    assert {"open_cache", "maps", "runs"} <= set(calls)
    for name in calls:
        assert hasattr(fantrans, name) or hasattr(fantrans.Cache, name), name
