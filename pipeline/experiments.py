"""Read experiments and sets from YAML files; an experiment may derive from another one, and be overridden."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError, field_validator

from pipeline.catalog import Catalog
from pipeline.config import CacheConfig, ExperimentConfig, Settings, first_fault
from pipeline.errors import ConfigError
from pipeline.project import find_experiment, is_experiment_path
from pipeline.runtime.text import unknown_name
from pipeline.yaml_settings import Override, merge_settings, parse_overrides, read_yaml, resolve_settings


class Member(NamedTuple):
    """One experiment of a set, once per seed."""

    name: str
    published: str | None
    """The method's name in the published table that the set is printed beside."""
    experiments: tuple[ExperimentConfig, ...]


class ExperimentSet(NamedTuple):
    """Experiments that are trained together and reported in one table."""

    name: str
    """Name of the file, with that of the member if one was chosen, and the overrides."""
    spec: str
    """The name, path or SET:MEMBER that it was read by."""
    published_table: str | None
    """Name of a table in pipeline/report/published_f1.csv, such as "table1"."""
    members: tuple[Member, ...]
    is_derived: bool = True
    """Whether its experiments are derived from a base."""

    @property
    def experiments(self) -> tuple[ExperimentConfig, ...]:
        """The experiments of all members."""
        return tuple(experiment for member in self.members for experiment in member.experiments)

    @property
    def cache(self) -> CacheConfig:
        """Settings of the cache that all experiments share; `ConfigError` if they need several."""
        first, *others = self.experiments
        for other in others:
            if other.cache != first.cache:
                raise ConfigError(
                    f"{self.name} trains on several caches, those of {first.name} and {other.name} among them; name "
                    f"one member, such as {self.spec}:{self.members[-1].name}"
                )
        return first.cache


def resolve(
    catalog: Catalog,
    dataset: str,
    name: str | None = None,
    *,
    base: str | None = None,
    overrides: Sequence[str] = (),
) -> ExperimentSet:
    """Read the experiment, set or SET:MEMBER `name` (default: the data set's experiment).

    base: the experiment that a set's members change; default: the data set's. overrides: KEY=VALUE[,VALUE...], see
    `load_set`. Raises `CatalogError` for an unknown data set, `ConfigError` for unknown or faulty experiments.
    """
    own = catalog.get_dataset(dataset).experiment
    chosen = load_set(name or own, base=base or own, overrides=overrides)
    if base is not None and not chosen.is_derived:
        raise ConfigError(f"{name or own} is one experiment and not derived from {base}; leave --base out")
    return chosen


def load_experiment(name_or_path: str, *, folder: Path | None = None) -> ExperimentConfig:
    """Read an experiment by its name (in `folder`, the project or the package) or path, overlaid on its `base`.

    Raises `ConfigError` in one sentence for an unknown name, a typo or a value out of range.
    """
    path = find_experiment(name_or_path, beside=folder)
    return _experiment(_one_experiment(path) | {"name": path.stem, "refresh_args": name_or_path}, path)


def _one_experiment(path: Path) -> dict[str, Any]:
    merged = _merged_with_bases(path, seen=())
    if "members" in merged:
        raise ConfigError(f"{path} is a set of experiments, expected one experiment; name another file")
    return merged


class _SetFile(Settings):
    published_table: str | None = None
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    members: Annotated[dict[str, dict[str, Any] | None], Field(min_length=1)]

    @field_validator("seeds")
    @classmethod
    def _are_different(cls, seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if seeds is not None and len(set(seeds)) < len(seeds):
            raise ValueError("a seed appears twice")
        return seeds


def load_set(spec: str, *, base: str, overrides: Sequence[str] = ()) -> ExperimentSet:
    """Read a set: a file with `members:`, each merged over the experiment `base`.

    `SET:MEMBER` is one member of a set; an experiment is read as a set of one. Keys: `published_table`, `seeds`, and
    `members`, a mapping of names to settings, where `published` names the member's row of that table. overrides:
    settings for all members, KEY=VALUE; with several values, KEY=VALUE,VALUE, each member becomes one per value, and
    several values of `train.seed` are the seeds of each member. Raises `ConfigError` as `load_experiment` does.
    """
    name_or_path, chosen = split_member(spec)
    path = find_experiment(name_or_path)
    content = _read(path)
    seeds, combinations = _seeds_and_others(overrides)
    suffix = f" {' '.join(overrides)}" if overrides else ""
    if "members" not in content:
        under = _one_experiment(path)
        if chosen is not None:
            raise ConfigError(f"{path} is one experiment and has no members; name it without `:{chosen}`")
        members = [
            _member(path.stem, under | {"refresh_args": name_or_path}, each, seeds, path, is_in_set=False)
            for each in combinations
        ]
        return ExperimentSet(path.stem + suffix, spec, None, tuple(members), is_derived=False)
    try:
        file = _SetFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_fault(error, _SetFile)}") from None
    if chosen is not None and chosen not in file.members:
        raise ConfigError(unknown_name("member", chosen, file.members, where=f" in {path}"))
    under = _merged_with_bases(find_experiment(base), seen=())
    if "members" in under:
        raise ConfigError(f"{base} is a set of experiments, and members derive from one experiment; name another base")
    members = []
    for name in file.members if chosen is None else [chosen]:
        over = dict(file.members[name] or {})
        published = over.pop("published", None)
        if "seed" in (over.get("train") or {}):
            raise ConfigError(f"{path}: member {name} has a `train.seed`; list its seeds in the set's `seeds`")
        refresh_args = f"{name_or_path}:{name} --base {base}" if "cache" in over else base
        merged = merge_settings(under, over) | {"refresh_args": refresh_args}
        members += [
            _member(name, merged, each, seeds or file.seeds, path, published=published) for each in combinations
        ]
    set_name = path.stem if chosen is None else f"{path.stem}_{chosen}"
    return ExperimentSet(set_name + suffix, spec, file.published_table, tuple(members))


def _seeds_and_others(overrides: Sequence[str]) -> tuple[tuple[Any, ...], list[Override]]:
    """Return the seeds that overrides name, and every combination of the other overrides."""
    of_seeds = [each for each in overrides if each.startswith("train.seed=")]
    seeds = tuple(each.settings["train"]["seed"] for each in parse_overrides(of_seeds)) if of_seeds else ()
    return seeds, parse_overrides([each for each in overrides if each not in of_seeds])


def _member(
    name: str,
    settings: dict[str, Any],
    override: Override,
    seeds: Sequence[Any] | None,
    path: Path,
    *,
    published: str | None = None,
    is_in_set: bool = True,
) -> Member:
    """Return a member with its experiments, one per seed, under an override.

    A member is named by what differs, its experiments by all overrides.
    """
    shown = " ".join(filter(None, (name if is_in_set else "", *override.differing))) or name
    name = " ".join((name, *override.words))
    merged = merge_settings(settings, override.settings)
    sets = "".join(f" --set {shlex.quote(word)}" for word in override.words if word.startswith("cache."))
    merged["refresh_args"] = settings["refresh_args"] + sets
    if not seeds:
        train = merged.get("train")
        seed = train.get("seed", 0) if isinstance(train, dict) else 0
        experiments = [merged | {"name": f"{name}-seed{seed}" if is_in_set or override.words else name}]
    else:
        experiments = [
            merge_settings(merged, {"train": {"seed": seed}, "name": f"{name}-seed{seed}"}) for seed in seeds
        ]
    where = " ".join((str(path), *(f"--set {word}" for word in override.words)))
    return Member(shown, published, tuple(_experiment(each, where) for each in experiments))


def split_member(spec: str) -> tuple[str, str | None]:
    """Return a file's name or path, and the member after the colon; None without one."""
    if is_experiment_path(spec) or ":" not in spec:
        return spec, None
    name_or_path, _, member = spec.rpartition(":")
    if not name_or_path:
        raise ConfigError(f"the set is missing before `:{member}`; name it as SET:{member}")
    return name_or_path, member


def _experiment(settings: dict[str, Any], where: object) -> ExperimentConfig:
    settings = resolve_settings(settings, where=where, error=ConfigError)
    try:
        return ExperimentConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_fault(error, ExperimentConfig)}") from None


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path, error=ConfigError)
    if not content:
        raise ConfigError(f"{path} is empty; write `base: fan_trans`, and what differs from it")
    if "variants" in content:
        raise ConfigError(f"{path}: the key `variants` is now `members`; rename it")
    return content


def _merged_with_bases(path: Path, *, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise ConfigError(f"{path} derives from itself; remove one `base` of {', '.join(p.stem for p in seen)}")
    content = _read(path)
    base = content.pop("base", None)
    if not isinstance(base, str | None):
        raise ConfigError(f"{path}: `base` is {base!r}; expected the name of one experiment")
    if base is None:
        return content
    below = find_experiment(base, beside=path.parent)
    return merge_settings(_merged_with_bases(below, seen=(*seen, path)), content)
