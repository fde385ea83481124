"""The generated pages of the site, and the diagrams of docs/architecture.md: complete, and as the code is."""

import re
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import yaml
from typer.main import get_command

import fantrans
from docs import diagrams, generate, reference
from flows.cli import app
from pipeline import errors
from pipeline.catalog import CATALOG_FILE, Catalog
from pipeline.config import ExperimentConfig, OwnHeadConfig
from pipeline.refresh import job
from tests.command_line import commands

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages():
    return reference.reference_pages()


def rows(page):
    return re.findall(r"^\| `(\w+)` \|", page, re.M)


@pytest.mark.parametrize(
    ("name", "model", "left_out"),
    [("settings.md", ExperimentConfig, {"name", "refresh_args"}), ("catalog.md", Catalog, set())],
)
def test_every_setting_is_in_its_table(pages, name, model, left_out):
    listed = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", pages[name], re.M | re.S))
    for place, group in reference.sections(model):
        heading = (f"`{place}`" if place else "Top level") + (
            " with a class of your own" if group is OwnHeadConfig else ""
        )
        keys = {
            field.alias or key
            for key, field in group.model_fields.items()
            if not reference.inner_models(field.annotation)
        }
        assert keys - left_out == set(rows(listed.get(heading, ""))), place


def test_a_setting_has_its_default_range_and_meaning(pages):
    assert "| `lr_decay` | `0.3` | number from 0 to 1 |" in pages["settings.md"]
    assert "| `subject` | `largest` | `largest`, `longest`, `central` | Whose tracks" in pages["settings.md"]
    assert "| `images_start` | `null` | `0`, `1` or null | Number of the first image" in pages["catalog.md"]
    assert "| `sha256` | required | string | All 64 hex digits" in pages["catalog.md"]


def test_every_environment_variable_is_listed_and_is_read_somewhere(pages, monkeypatch):
    assert set(re.findall(r"oc\.env:(\w+),", CATALOG_FILE.read_text())) - {"NAME"} <= set(rows(pages["environment.md"]))
    assert "| `FANTRANS_WORK` | `var/work` |" in pages["environment.md"]
    sources = [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("flows/**/*.py"), *ROOT.glob("ops/**/*"), CATALOG_FILE]
    text = "\n".join(path.read_text() for path in sources if path.is_file())
    assert [name for name in rows(pages["environment.md"]) if name not in text] == []
    monkeypatch.delitem(reference.VARIABLES, "FANTRANS_LOCKS")
    with pytest.raises(ValueError, match="describes no variable FANTRANS_LOCKS"):
        reference.environment_page()


def test_every_command_is_described_with_its_options_and_examples(pages):
    sections = dict(re.findall(r"^###? `fantrans ?(.*?)`\n(.*?)(?=^###? `|\Z)", pages["commands.md"], re.M | re.S))
    for words, command in commands(get_command(app)):
        text = sections[" ".join(words)]
        if getattr(command, "commands", {}):
            continue
        options = {param.opts[0] for param in command.params} - {"--verbose", "--quiet"}
        assert [option for option in options if option not in text] == []
        assert f"\nfantrans {' '.join(words)}" in text, words
    assert "[bold]" not in pages["commands.md"]
    assert "`--faces <all|largest>`" not in sections["weights train-fan"]


def test_errors_documents_and_public_names_are_complete(pages):
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and "Error" in name}
    assert classes == set(rows(pages["errors.md"]))
    schemas = re.findall(r": `(fantrans/[\w-]+/1)`$", (ROOT / "docs/cli.md").read_text(), re.M)
    assert [schema for schema in schemas if f"[`{schema}`]" not in pages["json.md"]] == []
    assert re.findall(r"^::: fantrans\.(\w+)$", pages["python.md"], re.M) == fantrans.__all__


def test_the_files_of_a_run_are_those_of_its_docstring(pages):
    assert "| `fold-P1/predictions.parquet`, `counts.parquet` | per tested frame" in pages["files.md"]
    assert "(`.before`); removed when the fold is finished |" in pages["files.md"]
    assert "- `{work}/{dataset}/boxes-{fingerprint of the boxes}.parquet`\n" in pages["files.md"]


def test_every_room_is_in_a_layer_and_imports_only_lower_ones():
    order = [set(layer) for layer in diagrams.layers()]
    found = {
        path.stem for path in (ROOT / "pipeline").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert {f"pipeline.{name}" for name in found - {"__init__"}} | {"fantrans", "flows", "models"} == set.union(*order)
    depth = {room: number for number, layer in enumerate(order) for room in layer}
    edges = diagrams.imports()
    assert ("pipeline.training", "pipeline.cache") in edges
    assert [edge for edge in edges if depth[edge[0]] >= depth[edge[1]]] == []


def test_the_table_of_contributing_has_every_room():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = [room.removeprefix("pipeline.") for layer in diagrams.layers() for room in layer if "." in room]
    flat = re.search(r"^\| flat modules \|(.*)$", text, re.M)[1]
    assert [room for room in rooms if f"| `{room}` |" not in text and room not in flat] == []


def test_the_stages_are_those_of_a_refresh_and_name_their_room_and_files():
    names = [stage[0] for stage in diagrams.STAGES]
    assert names == ["render", *get_args(job.StageName), "train", "report", "predict"]
    assert all((ROOT / "pipeline" / stage[1] / "__init__.py").exists() for stage in diagrams.STAGES)
    files = {
        name for _, _, reads, writes in diagrams.STAGES for name in re.findall(r"(?:faces|boxes)-", reads + writes)
    }
    assert all(name in job.__doc__ for name in files)


def test_the_diagrams_are_up_to_date():
    for name, text in diagrams.figures().items():
        assert (diagrams.FIGURES / name).read_text() == text, "run `python -m docs.diagrams`"


def test_pages_keep_their_folders_and_bring_what_they_link_to(tmp_path):
    generate.write_pages(tmp_path)
    assert (tmp_path / "docs/reference/settings.md").exists()
    assert (tmp_path / "LICENSE").exists()
    nav = yaml.load((ROOT / "mkdocs.yml").read_text().replace("!!python/object/apply:", "!!str #"), yaml.SafeLoader)[
        "nav"
    ]
    listed = set(re.findall(r"[\w/.-]+\.md", str(nav)))
    pages = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md")}
    assert listed == pages, f"`nav` of mkdocs.yml and the pages differ in {listed ^ pages}"


def test_items_of_a_list_continue_at_four_spaces():
    text = "1. one\n\n       code\n\n   more\n- two\n  on\n\n    code\n\n```\n- x\n  y\n```"
    assert generate.with_wide_lists(text).split("\n")[2:8] == ["        code", "", "    more", "- two", "    on", ""]
    after = "- a\n  b\n\nend\n\n    code"
    assert generate.with_wide_lists(after).endswith("\n\nend\n\n    code")


def commands_of_pages():
    """Yield (page, words) for each command line that a page shows, in a block or within a sentence."""
    for pattern in generate.PAGES:
        for path in ROOT.glob(pattern):
            if path.name == "CHANGELOG.md":
                continue
            text = path.read_text()
            for line in re.findall(r"^ *(fantrans .*)$", text, re.M) + re.findall(r"`(fantrans [^`\n]+)`", text):
                plain = re.split(r" [>|&;#\[]|;|\$", line)[0]
                yield path.name, plain.split()[1:]


def test_every_command_on_a_page_exists_with_its_options():
    known = dict(commands(get_command(app)))
    found = list(commands_of_pages())
    assert len(found) > 150
    settings = {
        f"{place}.{key}".strip(".")
        for place, group in reference.sections(ExperimentConfig)
        for key in group.model_fields
    }
    for page, words in found:
        path = next(tuple(words[:n]) for n in (2, 1, 0) if tuple(words[:n]) in known)
        if not words or words[0] in ("...", "COMMAND") or words[0].startswith("-"):
            continue
        is_group = bool(getattr(known[path], "commands", {})) and len(words) > len(path)
        assert path, f"{page}: fantrans {words[0]} does not exist"
        assert not is_group or words[len(path)].startswith("-"), f"{page}: fantrans {' '.join(words)} does not exist"
        options = {name for param in known[path].params for name in param.opts} | {"--help"}
        given = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
        assert [option for option in given if option not in options] == [], f"{page}: {words}"
        keys = [word.partition("=")[0] for flag, word in pairwise(words) if flag == "--set"]
        assert [key for key in keys if key not in settings | {"KEY", "head.class", "head.hidden"}] == [], (
            f"{page}: {words}"
        )


def test_every_link_between_pages_leads_to_a_file_and_a_heading():
    found = [
        (path, *link)
        for pattern in generate.PAGES
        for path in ROOT.glob(pattern)
        for link in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", path.read_text())
    ]
    assert len(found) > 100
    for page, target, anchor in found:
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: {target}"
        headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M) if anchor else []
        assert not anchor or anchor in map(reference.slug, headings), f"{page.name}: {target}#{anchor}"
