"""Names that the user may type: completion, and how a command is spelled that was typed in another order.

Nothing here loads torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, FantransError, UsageError

if TYPE_CHECKING:
    from pipeline.catalog import Catalog
    from pipeline.experiments import ExperimentSet

RENAMED = {
    "bootstrap": "ops deploy",
    "cache collect": "cache prune",
    "catalog show": "catalog ls",
    "collect": "cache prune",
    "deploy": "ops deploy",
    "synth": "render",
}
"""Commands of earlier versions, and the present ones."""

_TAKE_EXPERIMENT = ("refresh", "report", "train", "weights fit-codec")
_TAKE_DATASET = (*_TAKE_EXPERIMENT, "cache", "compare", "render")


_Completion = Callable[[str], list[str]]
"""A function from the beginning of a name to names."""


def _completion(list_names: Callable[[str], Collection[str]]) -> _Completion:
    """Return a completion from the names that a function lists; none where the catalog is faulty."""

    def complete(incomplete: str) -> list[str]:
        try:
            return [name for name in list_names(incomplete) if name.startswith(incomplete)]
        except (FantransError, OSError):
            return []

    return complete


def _catalog() -> Catalog:
    from pipeline.catalog import load_catalog

    return load_catalog()


def _added() -> Collection[str]:
    from pipeline.catalog import added_weights

    return added_weights(_catalog().roots.weights)


def _published() -> Collection[str]:
    from pipeline.weights.published import PUBLISHED

    return PUBLISHED


def _experiments(incomplete: str) -> Collection[str]:
    """Return experiments and sets of configs/, and the members of a set after its colon."""
    if ":" not in incomplete:
        return experiment_names()
    from pipeline.experiments import load_set

    name = incomplete.split(":", maxsplit=1)[0]
    return [f"{name}:{member.name}" for member in load_set(name, base="fan_trans").members]


complete_dataset = _completion(lambda _: _catalog().datasets)
complete_weights = _completion(lambda _: _catalog().weights)
complete_added = _completion(lambda _: _added())
complete_published = _completion(lambda _: _published())
complete_run = _completion(lambda _: _catalog().run_names())
complete_dataset_or_run = _completion(lambda _: [*_catalog().datasets, *_catalog().run_names()])
complete_experiment = _completion(_experiments)


def experiment_names() -> list[str]:
    """Return the names of the files in configs/."""
    from pipeline.project import experiment_folders

    return sorted({path.stem for folder in experiment_folders() for path in folder.glob("*.yaml")})


def is_experiment(name: str) -> bool:
    """Return whether a name is that of an experiment, a set or one of its members."""
    return name.split(":", maxsplit=1)[0] in experiment_names() or name.endswith((".yaml", ".yml"))


def resolve_experiment(
    dataset: str, experiment: str | None, base: str | None = None, overrides: Sequence[str] = ()
) -> ExperimentSet:
    """Return what a data set and an experiment name; raises `UsageError` for unknown ones, before torch is loaded."""
    from pipeline.catalog import load_catalog
    from pipeline.experiments import resolve

    if experiment == "" or base == "":
        raise UsageError("--experiment or --base is empty; name an experiment, or leave the option out")
    return resolve(load_catalog(), dataset, experiment, base=base, overrides=overrides)


def check_spelling(path: str, arguments: Sequence[str], takes_value: Collection[str], known: Collection[str]) -> None:
    """Raise `ConfigError` that contains the right command for options of earlier versions and for experiments.

    path: words of the command, such as "cache ls". takes_value: its options that are followed by a value. known: all
    its options.
    """
    words = _split_values(arguments, ("--config", "--dataset"))
    if "--config" in words and path in _TAKE_EXPERIMENT:
        right = ["--experiment" if word == "--config" else word for word in words]
        if "--dataset" not in words:
            right = right if _positions(right, {*takes_value, "--experiment"}) else ["DATASET", *right]
            raise ConfigError(f"--config is now --experiment; run `{_command(path, right)}`")
        words = right
    if "--dataset" in words[:-1] and path.split(maxsplit=1)[0] in _TAKE_DATASET:
        i = words.index("--dataset")
        command = with_dataset(path, words[:i] + words[i + 2 :], takes_value, words[i + 1])
        raise ConfigError(f"the data set is the first argument, without --dataset; run `{command}`")

    if path not in _TAKE_EXPERIMENT or path == "report":
        return
    if any(word.startswith("--") and word.partition("=")[0] not in known for word in words):
        return  # a misspelt option, whose value would be taken for a name
    if sum(word in ("--experiment", "-e") for word in words) > 1:
        raise ConfigError(f"`fantrans {path}` takes one --experiment; name a set of experiments, or run it for each")
    places = _positions(words, takes_value)
    _check_one_word(path, words, places)
    if len(places) > 1 and places[0] == 0 and (is_experiment(words[places[1]]) or is_experiment(words[0])):
        first, second = words[0], words[places[1]]
        if first not in _catalog().datasets and second in _catalog().datasets:
            words[0], words[places[1]] = second, first
        command = with_dataset(path, words[1:], takes_value, words[0])
        raise ConfigError(f"an experiment is named with --experiment; run `{command}`")


def _check_one_word(path: str, words: Sequence[str], places: Sequence[int]) -> None:
    """Raise `ConfigError` with the right command for `--parts P1 P2`, `--set parts=[P1, P2]` and `--set a=1 b=2`."""
    for i in places:
        option, value, extra = ("", "", "") if i < 2 else words[i - 2 : i + 1]
        if option == "--parts":
            right = [option, f"{value.rstrip(',')},{extra}"]
        elif option == "--set":
            right = [option, value, option, extra] if "=" in extra else [option, value + extra]
        else:
            continue
        command = _command(path, [*words[: i - 2], *right, *words[i + 1 :]])
        raise ConfigError(f"{option} takes one word, found {value} {extra}; run `{command}`")


def check_dataset(path: str, arguments: Sequence[str], takes_value: Collection[str], dataset: str) -> None:
    """Raise `CatalogError` for an unknown data set, `ConfigError` with the right command if it is an experiment."""
    from pipeline.catalog import load_catalog

    catalog = load_catalog()
    if dataset in catalog.datasets or not is_experiment(dataset):
        catalog.get_dataset(dataset)
        return
    named = next((i + 1 for i, word in enumerate(arguments[:-1]) if word in ("--experiment", "-e")), None)
    if named is not None and arguments[named] in catalog.datasets:
        words = [arguments[named] if word == dataset else word for word in arguments]
        words[named] = dataset
        raise ConfigError(f"{dataset} is an experiment, not a data set; run `{_command(path, words)}`")
    others = [arguments[i] for i in _positions(arguments, takes_value) if arguments[i] in catalog.datasets]
    own = [name for name, entry in catalog.datasets.items() if entry.experiment == dataset]
    right = [word for word in arguments if word not in others]
    chosen = [*others, *own, *catalog.datasets][0]
    command = with_dataset(path, right, takes_value, chosen)
    raise ConfigError(f"{dataset} is an experiment, not a data set; run `{command}`")


def with_dataset(path: str, arguments: Sequence[str], takes_value: Collection[str], dataset: str) -> str:
    """Return the command with the data set first; further arguments of a command with --experiment are its values."""
    places = _positions(arguments, takes_value)
    words = [dataset]
    for i, word in enumerate(arguments):
        words += ["--experiment", word] if i in places and path in _TAKE_EXPERIMENT else [word]
    return _command(path, words)


def _positions(arguments: Sequence[str], takes_value: Collection[str]) -> list[int]:
    """Return where arguments stand among options and their values."""
    return [
        i
        for i, word in enumerate(arguments)
        if not word.startswith("-") and (i == 0 or arguments[i - 1] not in takes_value)
    ]


def _split_values(arguments: Sequence[str], options: Collection[str]) -> list[str]:
    """Return the arguments with `--option=value` as two words, for these options."""
    words: list[str] = []
    for word in arguments:
        name, equals, value = word.partition("=")
        words += [name, value] if equals and name in options else [word]
    return words


def _command(path: str, words: Sequence[str]) -> str:
    return shlex.join(["fantrans", *path.split(), *words])
