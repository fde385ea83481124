"""Read experiments and sets from YAML files; an experiment may derive from another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError, field_validator

from pipeline.catalog import Catalog
from pipeline.config import CacheConfig, ExperimentConfig, Settings, first_fault, read_yaml
from pipeline.errors import ConfigError
from pipeline.runtime.text import unknown_name

CONFIG_FOLDER = Path(__file__).parent.parent / "configs"


class Member(NamedTuple):
    """One experiment of a set, once per seed."""

    name: str
    published: str | None
    """The method's name in the published table that the set is printed beside."""
    experiments: tuple[ExperimentConfig, ...]


class ExperimentSet(NamedTuple):
    """Experiments that are trained together and reported in one table."""

    name: str
    """Name of the file, with that of the member if one was chosen."""
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


def resolve(catalog: Catalog, dataset: str, name: str | None = None, *, base: str | None = None) -> ExperimentSet:
    """Read the experiment, set or SET:MEMBER `name` (default: the data set's experiment).

    base: the experiment that a set's members change; default: the data set's. Raises `CatalogError` for an unknown data
    set, `ConfigError` for unknown or faulty experiments.
    """
    own = catalog.get_dataset(dataset).experiment
    chosen = load_set(name or own, base=base or own)
    if base is not None and not chosen.is_derived:
        raise ConfigError(f"{name or own} is one experiment and not derived from {base}; leave --base out")
    return chosen


def load_experiment(name_or_path: str, *, folder: Path = CONFIG_FOLDER) -> ExperimentConfig:
    """Read an experiment by its name in `folder`, or by path; its `base` is read first and overlaid.

    Raises `ConfigError` in one sentence for an unknown name, a typo or a value out of range.
    """
    path = _find_file(name_or_path, folder)
    merged = _merged_with_bases(path, seen=())
    if "members" in merged:
        raise ConfigError(f"{path} is a set of experiments, expected one experiment; name another file")
    return _experiment(merged | {"name": path.stem, "refresh_args": name_or_path}, path)


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


def load_set(spec: str, *, base: str) -> ExperimentSet:
    """Read a set: a file with `members:`, each overlaid on the experiment `base`.

    `SET:MEMBER` is one member of a set; an experiment is read as a set of one. Keys: `published_table`, `seeds`, and
    `members`, a mapping of names to settings, where `published` names the member's row of that table. Raises
    `ConfigError` as `load_experiment` does.
    """
    name_or_path, chosen = _split(spec)
    path = _find_file(name_or_path, CONFIG_FOLDER)
    content = _read(path) if path.is_file() else {}
    if "members" not in content:
        experiment = load_experiment(name_or_path)
        if chosen is not None:
            raise ConfigError(f"{path} is one experiment and has no members; name it without `:{chosen}`")
        alone = Member(experiment.name, None, (experiment,))
        return ExperimentSet(experiment.name, spec, None, (alone,), is_derived=False)
    try:
        file = _SetFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_fault(error, _SetFile)}") from None
    if chosen is not None and chosen not in file.members:
        raise ConfigError(unknown_name("member", chosen, file.members, where=f" in {path}"))
    under = _merged_with_bases(_find_file(base, CONFIG_FOLDER), seen=())
    if "members" in under:
        raise ConfigError(f"{base} is a set of experiments, and members derive from one experiment; name another base")
    seeds = file.seeds or (under.get("train", {}).get("seed", 0),)
    members = []
    for name in file.members if chosen is None else [chosen]:
        over = dict(file.members[name] or {})
        published = over.pop("published", None)
        if "seed" in (over.get("train") or {}):
            raise ConfigError(f"{path}: member {name} has a `train.seed`; list its seeds in the set's `seeds`")
        refresh_args = f"{name_or_path}:{name} --base {base}" if "cache" in over else base
        merged = _overlaid(under, over) | {"refresh_args": refresh_args}
        experiments = tuple(
            _experiment(_overlaid(merged, {"train": {"seed": seed}, "name": f"{name}-seed{seed}"}), path)
            for seed in seeds
        )
        members.append(Member(name, published, experiments))
    set_name = path.stem if chosen is None else f"{path.stem}_{chosen}"
    return ExperimentSet(set_name, spec, file.published_table, tuple(members))


def _split(spec: str) -> tuple[str, str | None]:
    """Return a file's name or path, and the member after the colon; None without one."""
    if _is_path(spec) or ":" not in spec:
        return spec, None
    name_or_path, _, member = spec.rpartition(":")
    return name_or_path, member


def _is_path(spec: str) -> bool:
    return spec.endswith((".yaml", ".yml"))


def _find_file(name_or_path: str, folder: Path) -> Path:
    return Path(name_or_path) if _is_path(name_or_path) else folder / f"{name_or_path}.yaml"


def _experiment(settings: dict[str, Any], path: Path) -> ExperimentConfig:
    try:
        return ExperimentConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_fault(error, ExperimentConfig)}") from None


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path, error=ConfigError)
    if "variants" in content:
        raise ConfigError(f"{path}: the key `variants` is now `members`; rename it")
    return content


def _merged_with_bases(path: Path, *, seen: tuple[Path, ...]) -> dict[str, Any]:
    if not path.is_file():
        known = sorted(each.stem for each in path.parent.glob("*.yaml"))
        raise ConfigError(unknown_name("experiment", path.stem, known, where=f" in {path.parent}"))
    if path in seen:
        raise ConfigError(f"{path} derives from itself; remove one `base` of {', '.join(p.stem for p in seen)}")
    content = _read(path)
    base = content.pop("base", None)
    if base is None:
        return content
    beside = path.parent / f"{base}.yaml"
    below = beside if beside.is_file() else CONFIG_FOLDER / f"{base}.yaml"
    return _overlaid(_merged_with_bases(below, seen=(*seen, path)), content)


def _overlaid(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both_nest = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlaid(merged[key], value) if both_nest else value
    return merged
