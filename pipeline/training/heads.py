"""Build the head of a run, and describe it so that it can be built again from a folder.

A description is what `head.json` holds: `shape` for a head of the paper, as it always was; `class`, `arguments`,
`inputs` and `source_sha256` for a head of one's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from models.fan_trans import FanTransHead
from models.head import HeadInputs, check_contract, deployed_head, maps_read
from models.head_shape import HeadShape
from models.registry import HEADS
from pipeline.cache.reader import Features
from pipeline.config import HeadConfig, OwnHeadConfig
from pipeline.errors import ConfigError, DataError
from pipeline.head_class import describe_error, load_head_class

if TYPE_CHECKING:
    from pipeline.training.runs import TrainingRun


BUILT_FROM = ("shape", "class", "arguments", "inputs", "source_sha256")
"""Keys of a description."""


class BuiltHead(NamedTuple):
    """A head, what it was built from, and whether its training draws random numbers, as dropout does."""

    head: nn.Module
    description: dict[str, Any]
    draws_random_numbers: bool = False


def head_inputs(cache: Features, num_aus: int) -> HeadInputs:
    """Return what the heads that are trained on a cache get."""
    names = tuple(name for name in ("lf", "h1", "h2") if name in cache.codec.shapes)
    return HeadInputs(cache.codec.num_channels, cache.codec.map_size, num_aus, names)


def check_maps(run_name: str, settings: HeadConfig | OwnHeadConfig, cache: Features) -> None:
    """Raise `ConfigError` if the head of an experiment reads maps that the cache does not hold."""
    inputs = head_inputs(cache, num_aus=1)
    if isinstance(settings, OwnHeadConfig):
        plain, gated = maps_read(settings.load().cls, inputs)
    else:
        plain, gated = settings.input_maps
    cache.codec.check_has_maps(plain=plain, gated=gated, experiment=run_name)


def build_head(run: TrainingRun) -> BuiltHead:
    """Return a new head for the run's settings, the maps of its cache and the protocol's action units.

    Raises `ConfigError` for settings from which no head can be built, and for a class that breaks the contract of
    `models.head`.
    """
    settings, inputs = run.experiment.head, head_inputs(run.cache, len(run.rules.aus))
    try:
        if isinstance(settings, HeadConfig):
            arguments = settings.model_dump(exclude={"variant"})
            return BuiltHead(
                HEADS[settings.variant](inputs, **arguments),
                describe_shape(HeadShape.from_inputs(inputs, **settings.model_dump())),
            )
        return _build_own(settings, inputs)
    except ValueError as error:
        raise ConfigError(f"experiment {run.experiment.name}: {error}") from None


def describe_shape(shape: HeadShape) -> dict[str, Any]:
    """Return the description of a head of the paper."""
    return {"shape": asdict(shape)}


def _build_own(settings: OwnHeadConfig, inputs: HeadInputs) -> BuiltHead:
    """Build a head of one's own and check that it keeps the contract; raises `ValueError` if it does not."""
    own = settings.load()
    description = {
        "class": settings.class_,
        "arguments": settings.arguments,
        "inputs": inputs._asdict(),
        "source_sha256": own.source_sha256,
    }
    try:
        head = own.cls(inputs, **settings.arguments)
        draws = check_contract(head, inputs)
    except ValueError as error:
        raise ValueError(f"{settings.class_} {error}") from error
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"{settings.class_} cannot run: {describe_error(error, own.files)}") from error
    return BuiltHead(head, description, draws)


def rebuild_head(description: Mapping[str, Any], *, source: Path) -> nn.Module:
    """Return an untrained head as described, to load its weights into.

    source: folder where the run keeps the source of a head of one's own, for the error.
    Raises `DataError` if the source of a head of one's own has changed since, or cannot be found.
    """
    if "shape" in description:
        return FanTransHead(HeadShape.resolved(**description["shape"]))
    try:
        own = load_head_class(description["class"])
    except ValueError as error:
        raise DataError(f"the head's class {description['class']}: {error}{_kept(source)}") from None
    if own.source_sha256 != description["source_sha256"]:
        raise DataError(
            f"{', '.join(map(str, own.files))} changed since the head was trained; restore that version or train again"
            + _kept(source)
        )
    head: nn.Module = own.cls(described_inputs(description), **description["arguments"])
    return head


def _kept(source: Path) -> str:
    return f"; the version that it was trained with is in {source}: run the command there" if source.is_dir() else ""


def rebuild_deployed(description: Mapping[str, Any], *, source: Path) -> nn.Module:
    """Return an untrained deployed head as described; raises `DataError` as `rebuild_head` does."""
    return deployed_head(rebuild_head(description, source=source))


def described_inputs(description: Mapping[str, Any]) -> HeadInputs:
    """Return what the described head gets from the cache and the protocol."""
    if "shape" in description:
        return HeadShape.resolved(**description["shape"]).inputs
    inputs = description["inputs"]
    return HeadInputs(**{**inputs, "names": tuple(inputs["names"])})


def described_maps(description: Mapping[str, Any], head: nn.Module) -> tuple[str, ...]:
    """Return the maps among lf, h1, h2 and hm that a described head reads, in the order of its inputs in ONNX."""
    plain, gated = maps_read(head, described_inputs(description))
    return (*plain, *gated, *(("hm",) if gated else ()))
