"""Settings of a run as frozen models, in which a typo is an error.

A setting that can change a cached value is in the cache's fingerprint (see pipeline/fingerprint.py); settings that
only change speed (device, batch size, workers) are arguments of the stages and not here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from models.variants import ATTENTION_DROPS, INPUT_MAPS, KD_FORMS, VARIANTS
from pipeline.head_class import HeadClass, check_arguments, load_head_class
from pipeline.protocols import PARTS
from pipeline.runtime.text import nearest_name

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Profile = Literal["exact", "standard", "compact"]
PROFILES: tuple[Profile, ...] = get_args(Profile)


class OneOf:
    """Validator for a setting that is one of the names in a table, so that the names are listed once.

    `Annotated[str, OneOf(VARIANTS)]` accepts the keys that `VARIANTS` has when the setting is read.
    """

    def __init__(self, known: Collection[str]) -> None:
        self.known = known

    def check(self, name: str) -> str:
        """Return a known name; raise `ValueError` that lists the known ones for another."""
        if name not in self.known:
            near = nearest_name(name, self.known)
            raise ValueError((f"did you mean {near!r}? " if near else "") + f"expected one of {', '.join(self.known)}")
        return name

    def __get_pydantic_core_schema__(self, source: type[str], handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.known)}


Part = Annotated[str, OneOf(PARTS)]


class Settings(BaseModel):
    """Base of settings: frozen; an unknown key is an error, so that a typo never trains the default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for a number: Python counts them as 1 and 0."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        kinds = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("expected a number")
        return value


class TrackConfig(Settings):
    """When two faces of a sequence are one person's: settings of tracks and cuts."""

    min_iou: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Overlap (intersection over union) from which a face continues a track."""
    max_move_sides: Annotated[float, Field(ge=0)] = 0.75
    """Largest distance of a face that overlaps less from where the track is expected, in sides of its box."""
    max_size_ratio: Annotated[float, Field(ge=1)] = 1.5
    """Largest ratio of the two sides over that distance."""
    max_missed_frames: Annotated[int, Field(ge=0)] = 50
    """Longest run of frames without its face that a track survives: two seconds at 25 frames per second."""
    min_cut_difference: PositiveFloat = 0.6
    """Change of the image, in standard deviations, from which a new scene begins."""


class DetectorConfig(Settings):
    """Settings of face detection, and of the choice of the subject's face."""

    weights: str = "retinaface-mobilenet"
    """Name of a RetinaFace in the catalog."""
    score_threshold: Fraction = 0.5
    """Lowest score of a face."""
    nms_iou: Fraction = 0.4
    """Overlap from which the face with the lower score is dropped."""
    max_side_px: PositiveInt = 640
    """Longest side before detection; larger frames are shrunk to it. Boxes are in full-frame px."""
    tracks: TrackConfig = TrackConfig()
    subject: Literal["largest", "longest", "central"] = "largest"
    """Whose tracks are the subject's: the largest sum over frames of score x area, of 1, or of score x closeness to the
    image's centre."""
    max_gap_frames: Annotated[int, Field(ge=0)] = 5
    """Longest run of missed frames between two found ones, in one track, that is filled linearly."""
    min_side_px: Annotated[float, Field(ge=0)] = 32.0
    """A box is implausible if its side, the square root of its area, is smaller..."""
    min_side_frac: Fraction = 0.4
    """...or smaller than this fraction of the median side in the sequence..."""
    min_inside_frac: Fraction = 0.85
    """...or if less of its area is in the image..."""
    max_roll_deg: Annotated[float, Field(ge=0, le=180)] = 45.0
    """...or if the line from eye to eye is turned further. Points outside of the box are implausible, too."""
    keeps_implausible: bool = False
    """Whether faces with implausible boxes are cropped and trained on like others."""


class CropConfig(Settings):
    """Settings of crops (paper 4.1)."""

    side_per_box_frac: PositiveFloat = 200 / 260
    """Side of the square over (width + height) of the box."""
    size_px: PositiveInt = 256
    """Side of the FAN's input."""
    context_frac: Annotated[float, Field(ge=1)] = 1.75
    """Side of the stored crop over the side of the square; large enough that augmented views sample only inside."""


class ViewConfig(Settings):
    """Cached views of a crop: 0 clean, 1 clean and flipped, 2 and up augmented (paper 4.1)."""

    num_views: Annotated[int, Field(ge=2)] = 14
    """Clean and flipped ones included; an epoch trains on one augmented view."""
    seed: Seed = 0
    """Of the augmented views."""
    max_rotation_deg: Annotated[float, Field(ge=0, le=15)] = 15.0
    min_scale: Annotated[float, Field(ge=0.75, le=1)] = 0.75
    max_scale: Annotated[float, Field(ge=1, le=1.25)] = 1.25
    max_shift_px: Annotated[float, Field(ge=0, le=10)] = 10.0
    """Along each axis."""
    flip_probability: Fraction = 0.5


class FeatureConfig(Settings):
    """Network and storage of the cached features."""

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
    """A head of the paper: the trained part of FAN-Trans (paper 3.2, 3.3)."""

    variant: Annotated[str, OneOf(VARIANTS)] = "t1_o2o_t2_o2m"
    """Row of Table 1, the last of which is FAN-Trans, or its three branches."""
    attention_drop: Annotated[str, OneOf(ATTENTION_DROPS)] = "learned"
    """Which attention a transblock zeroes: see the glossary."""
    input_features: Annotated[str, OneOf(INPUT_MAPS)] = "bl"
    """Row of Table 2: all maps, without LF, H1 and H2 without the heatmap gate, or the one map of a ResNet."""
    dim: PositiveInt | None = None
    """Width D of the head; None is a quarter of three maps' channels, as in the paper, whichever are read, or a
    third of them with `pools_early`."""
    num_blocks: PositiveInt = 5
    """Transblocks per trunk."""
    top_k: PositiveInt | None = None
    """Evidence summed by C_o2m; None is half the action units."""
    mask_start: Annotated[float, Field(ge=0)] = 0.0
    """Where the logits of a learned drop start: 0 or more keeps, less drops. Far above 0, training drops none."""
    token_rank: PositiveInt = 1
    """Rank of each action unit's weight over channels and cells, from which its token comes; 1 is the paper's."""
    pools_early: bool = False
    """Max-pool 2 x 2 cells in the place of the conv module's first block, its most expensive one."""

    @property
    def title(self) -> str:
        """Name in those of runs."""
        return self.variant

    @property
    def input_maps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Maps that are read as they are, and those that are multiplied by the heatmaps' sum."""
        return INPUT_MAPS[self.input_features]

    def document(self) -> dict[str, Any]:
        """Return everything that decides the head, given its inputs; newer fields at their defaults are left out."""
        newer = {"token_rank": 1, "pools_early": False}
        return self.model_dump(exclude={name for name, default in newer.items() if getattr(self, name) == default})


class OwnHeadConfig(Settings):
    """A head of one's own: a class, and the arguments that it is built with after its inputs (docs/heads.md)."""

    model_config = ConfigDict(extra="allow", serialize_by_alias=True)

    class_: Annotated[str, Field(alias="class")]
    """MODULE:CLASS, from the working folder or an installed package."""

    @model_validator(mode="after")
    def _can_be_built(self) -> OwnHeadConfig:
        check_arguments(self.load().cls, self.arguments)
        return self

    def load(self) -> HeadClass:
        """Import the class; raises `ValueError` as `load_head_class` does."""
        return load_head_class(self.class_)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the class by name."""
        return dict(self.model_extra or {})

    @property
    def title(self) -> str:
        """Name in those of runs."""
        return self.class_.partition(":")[2]

    def document(self) -> dict[str, Any]:
        """Return everything that decides the head, given its inputs; the source counts by content."""
        return {"class": self.class_, **self.arguments, "source_sha256": self.load().source_sha256}


_TAGS = ("_variant", "_class")
"""Tags of the kinds of head, which pydantic adds to the place of a fault."""


def _kind_of_head(head: object) -> str:
    is_own = "class" in head if isinstance(head, Mapping) else isinstance(head, OwnHeadConfig)
    return _TAGS[is_own]


AnyHeadConfig = Annotated[
    Annotated[HeadConfig, Tag(_TAGS[0])] | Annotated[OwnHeadConfig, Tag(_TAGS[1])], Discriminator(_kind_of_head)
]


class TrainConfig(Settings):
    """Optimisation (paper 4.1)."""

    num_epochs: PositiveInt = 12
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 1e-4
    """Learning rate; the highest one with one_cycle."""
    schedule: Literal["step", "one_cycle"] = "step"
    """step: x `lr_decay` after every `lr_step_epochs`; one_cycle: rise to `lr`, then fall to zero, step by step."""
    lr_decay: Fraction = 0.3
    lr_step_epochs: PositiveInt = 4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    kd_weight: Annotated[float, Field(ge=0)] = 0.2
    """Lambda of Eq. 10."""
    kd_form: Annotated[str, OneOf(KD_FORMS)] = "bernoulli"
    """Distillation per action unit, or over all of them."""
    kd_temperature: PositiveFloat | None = None
    """None is the form's own: 1 for bernoulli, 4 for softmax."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the conv module in training, most of the work; tokens, losses, weights and scoring are fp32."""
    averages_flip: bool = False
    """Whether test logits are averaged with those of the flipped view."""
    max_shift_cells: Annotated[int, Field(ge=0, le=8)] = 0
    """Most rows and columns that a frame's maps are moved by in training, at random; a cell is 4 px of a crop."""
    seed: Seed = 0

    def document(self) -> dict[str, Any]:
        """Return everything that decides a training; newer fields at their defaults are left out."""
        return self.model_dump(exclude=set() if self.max_shift_cells else {"max_shift_cells"})


class ExperimentConfig(Settings):
    """One named experiment."""

    name: str
    refresh_args: str
    """Argument of `fantrans refresh DATASET --experiment` for the cache that this experiment trains on."""
    cache: CacheConfig = CacheConfig()
    head: AnyHeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = PARTS
    """Test parts; one fold is trained per part."""


_MAX_SHOWN = 60
_EXPECTED = {
    "dict_type": "a mapping of keys",
    "list_type": "a list",
    "model_attributes_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "tuple_type": "a list",
}
"""What settings must be, by pydantic's type of a fault whose own sentence has Python's words."""


def first_fault(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Describe the first fault of a pydantic error: where, what was found, what was expected.

    model: the validated one, to suggest the key that an unknown one may mean.
    """
    fault = min(
        error.errors(), key=lambda fault: fault["type"] != "extra_forbidden"
    )  # a typo also causes a missing key
    steps = [step for step in fault["loc"] if step not in _TAGS]
    if steps and steps[-1] == "[key]":
        reason = fault["msg"].removeprefix("Value error, ")
        return f"`{'.'.join(map(str, steps[:-2]))}` has the name {fault['input']!r}: {reason}"
    where = ".".join(map(str, steps))
    if fault["type"] == "extra_forbidden":
        name = str(steps[-1])
        near = nearest_name(name, _keys_at(model, steps[:-1]))
        near = None if near is None else ".".join([*map(str, steps[:-1]), near])
        if near is None and len(steps) == 1:
            near = next(
                (f"{section}.{name}" for section in _keys_at(model, ()) if name in _keys_at(model, [section])), None
            )
        known = _keys_at(model, steps[:-1])
        fix = f"known ones: {', '.join(known)}" if known else "fix the spelling or remove it"
        return f"unknown key `{where}`; " + (f"did you mean `{near}`?" if near else fix)
    if fault["type"] == "missing":
        return f"`{where}` is missing; add it"
    if fault["type"] == "too_short":
        return f"`{where}` must have at least {fault['ctx']['min_length']} value"
    if fault["type"] in _EXPECTED:
        found = repr(fault["input"]) if len(repr(fault["input"])) < _MAX_SHOWN else type(fault["input"]).__name__
        return f"`{where}` must be {_EXPECTED[fault['type']]}, found {found}"
    message = fault["msg"].removeprefix("Value error, ")
    found = f" is {fault['input']!r}" if isinstance(fault["input"], str | int | float) else ""
    if fault["type"] != "value_error":  # a sentence of pydantic's
        message = message[0].lower() + message[1:]
    return f"`{where}`{found}: {message}"


def _keys_at(model: object, steps: Sequence[int | str]) -> list[str]:
    """Return the keys of the settings at a place within `model`; [] if there are none."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        if not steps:
            return list(model.model_fields)
        field = model.model_fields.get(str(steps[0]))
        return [] if field is None else _keys_at(field.annotation, steps[1:])
    inner = get_args(model)  # of dict[str, X], the step is a key; of X | None, it is one of X
    return [key for each in inner for key in _keys_at(each, steps[1:] if get_origin(model) is dict else steps)]
