"""How a run goes: frozen, closed settings, read from small YAML files that each derive from another.

A setting that can change a cached value is in the cache's fingerprint (see pipeline/fingerprint.py); settings that
only change speed (device, batch size, workers) are arguments of the stages and not here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]
Profile = Literal["exact", "standard", "compact"]
Part = Literal["P1", "P2", "P3"]
PROFILES: tuple[Profile, ...] = get_args(Profile)


class Settings(BaseModel):
    """Frozen and closed: an unknown key stops the run instead of training the default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DetectorConfig(Settings):
    """How faces are found."""

    weights: str = "retinaface-mobilenet"
    """Name of a RetinaFace in the catalog."""
    score_threshold: Fraction = 0.5
    nms_iou: Fraction = 0.4
    max_side_px: PositiveInt = 640
    """Larger frames are shrunk to this long side before detection; boxes come back in full-frame px."""
    max_gap_frames: Annotated[int, Field(ge=0)] = 5
    """Longest run of missed frames between two found ones, in one sequence, that is filled linearly."""


class CropConfig(Settings):
    """How a face is cut out (paper 4.1)."""

    side_per_box_frac: PositiveFloat = 200 / 260
    """Side of the square over (width + height) of the box."""
    size_px: PositiveInt = 256
    """Side of the FAN's input."""
    context_frac: Annotated[float, Field(ge=1)] = 1.75
    """Side of the stored crop over the side of the square, so that no augmented view samples outside."""


class ViewConfig(Settings):
    """Views of a crop that get cached: 0 clean, 1 clean and flipped, 2 and up augmented (paper 4.1)."""

    num_views: Annotated[int, Field(ge=2)] = 14
    seed: Annotated[int, Field(ge=0)] = 0
    max_rotation_deg: Annotated[float, Field(ge=0, le=15)] = 15.0
    min_scale: Annotated[float, Field(ge=0.75, le=1)] = 0.75
    max_scale: Annotated[float, Field(ge=1, le=1.25)] = 1.25
    max_shift_px: Annotated[float, Field(ge=0, le=10)] = 10.0
    flip_probability: Fraction = 0.5


class FeatureConfig(Settings):
    """Which frozen features are cached, and in what form."""

    weights: str = "fan-128"
    """Name of a FAN, or a ResNet-18, in the catalog."""
    profile: Profile = "standard"
    """exact: fp16 maps and 68 heatmaps; standard: int8 maps and the heatmaps' sum; compact: int8 components (FAN)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the FAN's forward pass."""


class CacheConfig(Settings):
    """Everything that decides the values in a feature cache."""

    detector: DetectorConfig = DetectorConfig()
    crop: CropConfig = CropConfig()
    views: ViewConfig = ViewConfig()
    features: FeatureConfig = FeatureConfig()


class HeadConfig(Settings):
    """The trained part of FAN-Trans (paper 3.2, 3.3)."""

    variant: Literal[
        "baseline",
        "c_t_o2o",
        "c_t_o2m",
        "t1_o2o_t1_o2m",
        "t1_o2o_t2_o2o",
        "t1_o2m_t2_o2m",
        "t1_o2o_t2_o2m",
        "t1_o2o_t2_o2m_t3_o2m",
    ] = "t1_o2o_t2_o2m"
    """Row of Table 1, the last of which is FAN-Trans, or its three branches."""
    attention_drop: Literal["learned", "learned_from_tokens", "full", "row", "column"] = "learned"
    input_features: Literal["bl", "bl_no_lf", "bl_no_hm", "lf_only"] = "bl"
    """Row of Table 2: all maps, without LF, H1 and H2 without the heatmap gate, or the one map of a ResNet."""
    dim: PositiveInt | None = None
    """Width D of the head; None is a quarter of three maps' channels, as in the paper, whichever are read."""
    num_blocks: PositiveInt = 5
    top_k: PositiveInt | None = None
    """Evidence summed by C_o2m; None is half the action units."""
    mask_start: Annotated[float, Field(ge=0)] = 0.0
    """Where the logits of a learned drop start: 0 or more keeps, less drops. From far above 0 none comes to drop."""


class TrainConfig(Settings):
    """Optimisation (paper 4.1)."""

    num_epochs: PositiveInt = 12
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 1e-4
    schedule: Literal["step", "one_cycle"] = "step"
    """step: x `lr_decay` after every `lr_step_epochs`; one_cycle: rise to `lr`, then fall to zero, a step at a time."""
    lr_decay: Fraction = 0.3
    lr_step_epochs: PositiveInt = 4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    kd_weight: Annotated[float, Field(ge=0)] = 0.2
    """Lambda of Eq. 10."""
    kd_form: Literal["bernoulli", "softmax"] = "bernoulli"
    kd_temperature: PositiveFloat | None = None
    """None is the form's own: 1 for bernoulli, 4 for softmax."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the conv module in training, most of the work; tokens, losses, weights and scoring are fp32."""
    averages_flip: bool = False
    """Whether test logits are averaged with those of the flipped view."""
    seed: Annotated[int, Field(ge=0)] = 0


class ExperimentConfig(Settings):
    """One named experiment."""

    name: str
    source: str
    """What `fantrans refresh DATASET --config` takes to make the cache that this one trains on."""
    cache: CacheConfig = CacheConfig()
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = ("P1", "P2", "P3")
    """Test parts to train a fold for."""


CONFIG_FOLDER = Path(__file__).parent.parent / "configs"


def load_experiment(name_or_path: str, *, folder: Path = CONFIG_FOLDER) -> ExperimentConfig:
    """Read an experiment by its name in `folder`, or by path; its `base` is read first and overlaid.

    Raises `ConfigError` in one sentence for an unknown name, a typo or a value out of range.
    """
    path = _path_of(name_or_path, folder)
    merged = _merged_with_bases(path, seen=())
    if "variants" in merged:
        raise ConfigError(f"{path} names a set of experiments, and one experiment is asked for; name another file")
    return _experiment(merged | {"name": path.stem, "source": name_or_path}, path)


class Variant(NamedTuple):
    """One experiment of a set, once for each seed."""

    name: str
    published: str | None
    """The method's name in the published table that the set is printed beside."""
    experiments: tuple[ExperimentConfig, ...]


class ExperimentSet(NamedTuple):
    """Experiments that are trained together and reported in one table."""

    name: str
    """Of its file, and of the variant if one was chosen."""
    address: str
    """What it was asked for by."""
    published_table: str | None
    """Such as "table1", in pipeline/report/published_f1.csv."""
    variants: tuple[Variant, ...]
    is_derived: bool = True
    """Whether its experiments are variants of another one."""

    @property
    def experiments(self) -> tuple[ExperimentConfig, ...]:
        """All of them."""
        return tuple(experiment for variant in self.variants for experiment in variant.experiments)

    @property
    def cache(self) -> CacheConfig:
        """The settings of the cache that they share; `ConfigError` where they need several."""
        first, *others = self.experiments
        for other in others:
            if other.cache != first.cache:
                raise ConfigError(
                    f"{self.name} trains on several caches, those of {first.name} and {other.name} among them; name "
                    f"one variant, such as {self.address}:{self.variants[-1].name}"
                )
        return first.cache


class _SetFile(Settings):
    published_table: str | None = None
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    variants: Annotated[dict[str, dict[str, Any] | None], Field(min_length=1)]

    @field_validator("seeds")
    @classmethod
    def _are_different(cls, seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if seeds is not None and len(set(seeds)) < len(seeds):
            raise ValueError("the same seed is there twice")
        return seeds


def load_set(address: str, *, base: str) -> ExperimentSet:
    """Read a file with `variants:`, each overlaid on the experiment `base`; any other file is a set of its own.

    `SET:VARIANT` is one variant of a set. Keys: `published_table`, `seeds`, and `variants`, a mapping of names to
    settings, where `published` names the variant's row of that table. Raises `ConfigError` as `load_experiment` does.
    """
    name_or_path, chosen = _split(address)
    path = _path_of(name_or_path, CONFIG_FOLDER)
    content = read_yaml(path, error=ConfigError) if path.is_file() else {}
    if "variants" not in content:
        experiment = load_experiment(name_or_path)
        if chosen is not None:
            raise ConfigError(f"{path} is one experiment and has no variants; name it without `:{chosen}`")
        alone = Variant(experiment.name, None, (experiment,))
        return ExperimentSet(experiment.name, address, None, (alone,), is_derived=False)
    try:
        file = _SetFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_fault(error)}") from None
    if chosen is not None and chosen not in file.variants:
        raise ConfigError(f"{path} has no variant {chosen!r}; known ones: {', '.join(file.variants)}")
    under = _merged_with_bases(_path_of(base, CONFIG_FOLDER), seen=())
    if "variants" in under:
        raise ConfigError(f"{base} names a set of experiments, and variants change one experiment; name another base")
    seeds = file.seeds or (under.get("train", {}).get("seed", 0),)
    made = []
    for name in file.variants if chosen is None else [chosen]:
        over = dict(file.variants[name] or {})
        published = over.pop("published", None)
        if "seed" in (over.get("train") or {}):
            raise ConfigError(f"{path}: variant {name} has a `train.seed`; list its seeds in the set's `seeds`")
        source = f"{name_or_path}:{name} --base {base}" if "cache" in over else base
        merged = _overlaid(under, over)
        experiments = tuple(
            _experiment(
                _overlaid(merged, {"train": {"seed": seed}}) | {"name": f"{name}-seed{seed}", "source": source}, path
            )
            for seed in seeds
        )
        made.append(Variant(name, published, experiments))
    set_name = path.stem if chosen is None else f"{path.stem}_{chosen}"
    return ExperimentSet(set_name, address, file.published_table, tuple(made))


def _split(address: str) -> tuple[str, str | None]:
    """A file's name or path, and the variant after the colon if there is one."""
    if _is_path(address) or ":" not in address:
        return address, None
    name_or_path, _, variant = address.rpartition(":")
    return name_or_path, variant


def _is_path(address: str) -> bool:
    return address.endswith((".yaml", ".yml"))


def _path_of(name_or_path: str, folder: Path) -> Path:
    return Path(name_or_path) if _is_path(name_or_path) else folder / f"{name_or_path}.yaml"


def _experiment(settings: dict[str, Any], path: Path) -> ExperimentConfig:
    try:
        return ExperimentConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_fault(error)}") from None


def first_fault(error: ValidationError) -> str:
    """The first fault of a pydantic error in words: where, what was found, what was expected."""
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")  # a typo makes a gap, too
    where = ".".join(str(step) for step in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key `{where}`; mend the spelling or remove it"
    message = fault["msg"].removeprefix("Value error, ")
    found = f" is {fault['input']!r}" if isinstance(fault["input"], str | int | float) else ""
    return f"`{where}`{found}: {message[0].lower()}{message[1:]}"


def read_yaml(path: Path, *, error: type[Exception]) -> dict[str, Any]:
    """A YAML file's mapping; duplicate keys, which YAML itself lets pass, raise `error`."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except UnicodeDecodeError as fault:
        raise error(f"{path} is no UTF-8 text: {fault.reason} at byte {fault.start}") from None
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise error(f"{path}{line}: {getattr(fault, 'problem', fault)}") from None
    if not isinstance(content, dict):
        raise error(f"{path} must hold a mapping of keys, not {type(content).__name__}")
    return content


class _UniqueKeyLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the name {key!r} is there twice; rename or remove one", node.value[i][0].start_mark
                )
        return super().construct_mapping(node, deep)


def _merged_with_bases(path: Path, *, seen: tuple[Path, ...]) -> dict[str, Any]:
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"there is no experiment {path.stem!r} in {path.parent}; known ones: {known}")
    if path in seen:
        raise ConfigError(f"{path} derives from itself; remove one `base` of {', '.join(p.stem for p in seen)}")
    content = read_yaml(path, error=ConfigError)
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
