"""The reference pages of the site, as Markdown, from the code that decides what they state.

`reference_pages` returns them by file name; tests/unit/test_site.py checks that they are complete.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.cli import get_docs_for_click
from typer.main import get_command

import fantrans
from flows.cli import app
from pipeline import errors
from pipeline.catalog import Catalog
from pipeline.config import ExperimentConfig, OwnHeadConfig
from pipeline.predict.rows import FACE_COLUMNS
from pipeline.refresh import job
from pipeline.report import page_files
from pipeline.training import export, metrics, run_files

ROOT = Path(__file__).parents[1]


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table; a bar within a cell is escaped."""
    names = list(header)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstring below each field of a model and its bases, by field name."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, BaseModel) and cls is not BaseModel:
            (body,) = ast.parse(inspect.getsource(cls)).body
            assert isinstance(body, ast.ClassDef)
            for before, after in pairwise(body.body):
                match before, after:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        found[name] = " ".join(text.split())
    return found


def inner_models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models within an annotation: those of `X | None`, `dict[str, X]` and tagged unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in inner_models(inner)]


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the dotted place of a model and of every model below it; NAME stands for a name of the user's."""
    yield prefix, model
    for name, field in model.model_fields.items():
        step = f"{name}.NAME" if "dict[" in str(field.annotation) else name
        for inner in inner_models(field.annotation):
            yield from sections(inner, f"{prefix}.{step}".strip("."))


def allowed(schema: Mapping[str, Any]) -> str:
    """Return what a setting may be, in words, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(allowed(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{name}`" for name in schema["enum"])
    kind = str(schema.get("format", schema.get("type", "settings")))
    if kind == "array":
        return f"list of {allowed(schema.get('items', {}))}"
    if kind == "object":
        return "mapping"
    bounds = {
        "from": schema.get("minimum"),
        "above": schema.get("exclusiveMinimum"),
        "to": schema.get("maximum"),
    }
    return " ".join([kind, *(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)])


def default(model: type[BaseModel], name: str) -> str:
    """Return the default of a field as YAML shows it; "required" if there is none, "" if it is computed."""
    field = model.model_fields[name]
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined or value == ():
        return ""
    return f"`{value:.4g}`" if type(value) is float else f"`{json.dumps(value)}`".replace('"', "")


def settings_tables(model: type[BaseModel], prefix: str, leave_out: tuple[str, ...] = ()) -> str:
    """Return one table per group of settings below `model`: key, default, what it may be, meaning."""
    parts = []
    for place, group in sections(model, prefix):
        docs, schema = field_docs(group), group.model_json_schema(by_alias=True)["properties"]
        rows = []
        for name, field in group.model_fields.items():
            key = field.alias or name
            if name not in leave_out and not inner_models(field.annotation):
                rows.append([f"`{key}`", default(group, name), allowed(schema[key]), docs.get(name, "")])
        text = " ".join((inspect.getdoc(group) or "").split("\n\n")[0].split())
        heading = f"## `{place}`" if place else "## Top level"
        if group is OwnHeadConfig:
            heading += " with a class of your own"
        if rows:
            parts.append(f"{heading}\n\n{text}\n\n" + table(("key", "default", "allowed", "meaning"), rows))
    return "\n\n".join(parts)


def settings_page() -> str:
    """Return the settings of an experiment."""
    return (
        "# Settings of an experiment\n\nKeys of a file in `configs/`, and of `--set KEY=VALUE` with the dotted place "
        "before the key: `--set train.lr=3e-4`. [Experiments](../experiments.md) describes files, sets and sweeps.\n\n"
        + settings_tables(ExperimentConfig, "", leave_out=("name", "refresh_args"))
        + "\n"
    )


def catalog_page() -> str:
    """Return the keys of a catalog."""
    return (
        "# Keys of the catalog\n\n`data_catalog.yaml` says where data sets, weights and outputs are. "
        "[Data sets](../datasets.md) and [weights](../weights.md) explain the keys with examples.\n\n"
        + settings_tables(Catalog, "")
        + "\n"
    )


VARIABLES = {
    "FANTRANS_CATALOG": "The catalog in use; default: the nearest `data_catalog.yaml`, else the shipped one.",
    "FANTRANS_WORK": "Root of frame indexes, boxes and crops.",
    "FANTRANS_CACHE": "Root of feature caches.",
    "FANTRANS_RUNS": "Root of runs and tables.",
    "FANTRANS_WEIGHTS": "Root of weights that were fetched or added.",
    "FANTRANS_TRACKING": "Where trainings also log: none, tensorboard, mlflow or wandb ([runs](../runs.md)).",
    "FANTRANS_LOCKS": "A folder for lock files, or none ([network disks](../operations.md#network-disks)).",
    "BP4D_ROOT": "The unpacked BP4D.",
    "DISFA_ROOT": "The unpacked DISFA.",
    "BP4D_SYNTHETIC_ROOT": "Rendered faces in BP4D's layout, for the demo.",
    "BP4D_SYNTHETIC_41_ROOT": "As many rendered subjects as BP4D has, for claims.",
    "BP4D_SYNTHETIC_FRESH_ROOT": "Other rendered subjects than the demo's, for claims.",
    "DISFA_SYNTHETIC_ROOT": "Rendered faces in DISFA's layout.",
    "FANTRANS_DEMO_QUICK": "Rendered faces of the quick demo.",
    "FANTRANS_TIMEZONE": "Time zone of the schedules, read by `fantrans ops deploy`; default: UTC.",
    "FANTRANS_WEBHOOK": "Address that receives one line per run that failed or crashed.",
    "FANTRANS_GPUS": "Number of GPUs, read by the systemd units.",
    "FANTRANS_PROJECT": "Set by `fantrans ops deploy` for `prefect.yaml`; do not set it.",
    "NUMBA_CACHE_DIR": "Where numba keeps the compiled renderer.",
    "PREFECT_API_URL": "The Prefect server that records flows.",
    "PREFECT_API_AUTH_STRING": "USER:PASSWORD, for workers, commands and `prefect`.",
    "PREFECT_SERVER_API_AUTH_STRING": "USER:PASSWORD, for the server.",
    "PREFECT_HOME": "Folder of Prefect's database; default: `prefect` below the work root.",
    "NO_PROXY": "Hosts that are reached past a proxy; this machine is added.",
    "NO_COLOR": "Print no colours and no bold text.",
    "COLUMNS": "Width of printed tables.",
}
"""Environment variables and their meanings. Those of trackers (MLFLOW_..., WANDB_...) are on the page of runs."""


def found_variables() -> dict[str, str]:
    """Return the variables that catalog, site files and code read, with the default that the catalog gives."""
    catalog = (ROOT / "data_catalog.yaml").read_text()
    found = dict(re.findall(r"\$\{oc\.env:([A-Z0-9]+_\w+),(.+?)\}", catalog))
    sources = [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("flows/**/*.py"), ROOT / "prefect.yaml"]
    code = "\n".join(path.read_text() for path in sources)
    found |= dict.fromkeys(set(re.findall(r"\bFANTRANS_[A-Z_]+\b", code)) - set(found), "")
    site = re.findall(r"^#?((?:FANTRANS|NUMBA)_\w+)=", (ROOT / "ops/fantrans.env").read_text(), re.M)
    return found | dict.fromkeys(set(site) - set(found), "")


def environment_page() -> str:
    """Return the environment variables; raises `ValueError` if one that is read has no meaning here."""
    defaults = found_variables()
    if missing := sorted(set(defaults) - set(VARIABLES)):
        raise ValueError(f"docs/reference.py describes no variable {', '.join(missing)}; add it to VARIABLES")
    rows = [
        [f"`{name}`", f"`{defaults[name]}`" if defaults.get(name) else "", meaning]
        for name, meaning in VARIABLES.items()
    ]
    return (
        "# Environment variables\n\nA catalog of your own may read others with `${oc.env:NAME,default}`. "
        "[Operations](../operations.md) describes those of a server.\n\n"
        + table(("variable", "default", "meaning"), rows)
        + "\n"
    )


def exit_page() -> str:
    """Return the classes of errors with the exit status of the command line."""
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.FantransError)
    ]
    rows = [
        [f"`{cls.__name__}`", f"`{cls.__bases__[0].__name__}`", cls.exit_status, (cls.__doc__ or "").split("\n")[0]]
        for cls in classes
    ]
    return (
        "# Errors\n\nThe [exit status](../cli.md#exit-status) says what kind of error ended a command. With `--json`, "
        "`error.type` is one of these classes; in Python they are raised as they are.\n\n"
        + table(("class", "is a", "exit status", "meaning"), rows)
        + "\n"
    )


HEADING = re.compile(r"### (?P<title>.*: `(?P<schema>fantrans/[\w-]+/\d+)`)")


def slug(title: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def json_page() -> str:
    """Return the JSON documents, each with a link to its keys."""
    text = (ROOT / "docs/cli.md").read_text()
    rows = [
        [f"[`{found['schema']}`](../cli.md#{slug(found['title'])})", found["title"].rpartition(": ")[0]]
        for found in HEADING.finditer(text)
    ]
    return (
        "# JSON documents\n\nEach link leads to the keys of a document. Tests compare them with what the commands "
        "print.\n\n" + table(("schema", "printed by"), rows) + "\n"
    )


def docstring_files(module: Any) -> list[list[str]]:
    """Return the names and meanings of the files that the second paragraph of a module's docstring lists."""
    rows: list[list[str]] = []
    for line in (inspect.getdoc(module) or "").split("\n\n")[1].splitlines():
        name, _, meaning = line.strip().partition("  ")
        if line.startswith(" " * 20):  # the meaning continues
            rows[-1][1] += f" {line.strip()}"
        else:
            names = ", ".join(f"`{each}`" for each in name.split(", ") if not each.startswith("and "))
            rows.append([names, meaning.strip()])
    return rows


def files_page() -> str:
    """Return the files that refreshes, trainings, exports and predictions write, with the columns of tables."""
    columns = {
        run_files.PREDICTIONS_NAME: "`frame_id`, `subject`, `part`, then per action unit `p_01`... (probability, 0..1) "
        "and `au_01`... (label: 1 present, 0 absent, -1 unknown); one row per tested frame",
        run_files.COUNTS_NAME: ", ".join(f"`{name}`" for name in metrics.COUNT_COLUMNS)
        + "; one row per subject and action unit, in frames",
        run_files.HISTORY_NAME: ", ".join(f"`{name}`" for name in run_files.HISTORY_COLUMNS)
        + "; one row per finished epoch",
    }
    return "\n\n".join(
        [
            "# Files that are written",
            "Tables are Parquet unless their name says otherwise. A name in braces stands for a value.",
            "## Of a run\n\n" + table(("file", "holds"), docstring_files(run_files)),
            table(("table", "columns"), [[f"`{name}`", text] for name, text in columns.items()]),
            "`fantrans report RUN` adds `report.md`, `report.html`, `report.csv` and `report.json`; with `--figures` "
            "also `figures/`.",
            "## Of an export\n\n" + table(("file", "holds"), docstring_files(export)),
            "`model.onnx` is written with `--whole`: [from crop to probabilities](../predict.md#one-onnx-file).",
            "## Of a refresh\n\n" + "\n".join(f"- {name}" for name, _ in docstring_files(job)),
            "[The cache's format](../cache_format.md) describes the folders of crops and caches.",
            "## Pages\n\n" + "\n".join(f"- {name}" for name, _ in docstring_files(page_files)),
            "[What each shows](../pages.md).",
            "## Of a prediction\n\n"
            + ", ".join(f"`{name}`" for name in FACE_COLUMNS)
            + ", then `p_01`... and `au_01`...: [what they mean](../predict.md#columns).\n",
        ]
    )


_OF_EVERY_COMMAND = re.compile(r"^\* `(?:-v, --verbose|-q, --quiet|--help)`.*\n", re.M)
_EPILOG = re.compile(r"^\[bold\](Examples?)\[/\]\n((?:  .*\n?)+)", re.M)


def commands(group: Any, path: tuple[str, ...] = ("fantrans",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the words of a group and of every command below it, and itself."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


def command_text(path: tuple[str, ...], command: Any) -> str:
    """Return a command with its usage, arguments, options and examples; of a group, its commands."""
    title, below = " ".join(path), getattr(command, "commands", {})
    if below:
        rows = [
            f"- [`{title} {name}`](#{slug(f'{title} {name}')}): {each.help.partition(chr(10))[0]}"
            for name, each in below.items()
        ]
        return f"## `{title}`\n\n{command.help}\n\n" + "\n".join(rows) + "\n"
    context = command.make_context(path[-1], [], resilient_parsing=True)
    text = get_docs_for_click(obj=command, ctx=context, indent=2, name=path[-1], call_prefix=" ".join(path[:-1]))
    text = _OF_EVERY_COMMAND.sub("", text).replace("**Options**:\n\n\n", "")
    return _EPILOG.sub(lambda found: f"**{found[1]}**:\n\n```sh\n{textwrap.dedent(found[2]).strip()}\n```\n", text)


def cli_page() -> str:
    """Return every command with its arguments, options and examples."""
    found = "\n".join(command_text(path, command).strip() + "\n" for path, command in commands(get_command(app)))
    return (
        "# Commands\n\n[The command line](../cli.md) describes the order of arguments, the exit status, JSON, and the "
        f"options that every command has: `--verbose`, `--quiet` and `--help`.\n\n{found}"
    )


def api_page() -> str:
    """Return the directives from which mkdocstrings writes the Python API."""
    names = "\n\n".join(f"::: fantrans.{name}" for name in fantrans.__all__)
    return f"# Python API in full\n\n[The Python API](../api.md) lists the same by topic.\n\n{names}\n"


def glossary_page() -> str:
    """Return the glossary of the page on names and words."""
    return "# Glossary\n" + (ROOT / "docs/naming.md").read_text().partition("## Glossary\n")[2]


_PAGES: dict[str, Callable[[], str]] = {
    "commands.md": cli_page,
    "settings.md": settings_page,
    "catalog.md": catalog_page,
    "environment.md": environment_page,
    "errors.md": exit_page,
    "json.md": json_page,
    "files.md": files_page,
    "glossary.md": glossary_page,
    "python.md": api_page,
}


def reference_pages() -> dict[str, str]:
    """Return the reference pages by file name below docs/reference/; the name of a page within them is a link."""
    return {name: re.sub(r"(?<![\[/])docs/(\w+)\.md", r"[\1](../\1.md)", page()) for name, page in _PAGES.items()}
