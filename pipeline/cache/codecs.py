"""How maps become stored arrays, and stored arrays a head's input: one codec per profile.

    profile    arrays              values of a row
    exact      lf h1 h2 hm         fp16, all 68 heatmaps
    standard   lf h1 h2, hm        int8 with one scale per channel; the heatmaps' sum in fp16
    compact    lf hm_h1 hm_h2      int8 KLT components with one scale each; H1 and H2 are gated: times the heatmaps' sum

`standard` and `compact` also have `scale` (one number per stored channel, in the order of the maps) and `loss` (the
relative L2 error of each map). An int8 value times its scale is a channel or a component; components times a basis
(docs/cache_format.md) are channels.
"""

# N frames, C channels of a map, K stored channels or components of it, H W rows and columns
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pipeline.config import Profile
from pipeline.errors import ConfigError, StoreError
from pipeline.runtime.device import pad_batch
from pipeline.store.shards import ArraySpec

MAPS = ("lf", "h1", "h2")
HEATMAPS = "hm"
SCALE = "scale"
RELATIVE_L2 = "loss"
"""Array of each map's relative L2 error. On disk it is named "loss" until the next schema."""
COMPACT_MAPS = ("lf", "hm_h1", "hm_h2")

Shapes = Mapping[str, tuple[int, int, int]]
"""Shape (C, H, W) of each map: lf, h1, h2 and hm of a FAN, or only lf of another network."""

_MAX_CODE = 127
_LEAST_SCALE = 2.0**-100
_BATCH_FRAMES = 8


@dataclass(frozen=True)
class Basis:
    """Principal components (KLT) of a map's channels, each channel divided by its RMS.

    vectors: (C, K), orthonormal columns, strongest first. channel_rms: (C,). step: the smallest quantiser step, in
    units of the components.
    """

    vectors: Tensor
    channel_rms: Tensor
    step: float

    @property
    def analysis(self) -> Tensor:
        """Matrix (C, K): channels (.., C) times this are components (.., K)."""
        return self.vectors / self.channel_rms[:, None]

    @property
    def synthesis(self) -> Tensor:
        """Matrix (C, K): this times components (K, ..) approximates channels (C, ..)."""
        return self.vectors * self.channel_rms[:, None]


@dataclass(frozen=True, kw_only=True)
class Codec:
    """Encodes a FAN's maps into rows and decodes rows into a head's input, each frame independently."""

    profile: Profile
    shapes: Shapes
    bases: Mapping[str, Basis]

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """Specs of the stored arrays."""
        if self.profile == "exact":
            return tuple(_map_spec(name, self.shapes[name], dtype="float16", compressor=None) for name in self._taps)
        _, *size = self.shapes["lf"]
        nums = self._num_stored.items()
        maps = [_map_spec(name, (num, *size), dtype="int8", compressor="zstd") for name, num in nums]
        if self.profile == "standard" and HEATMAPS in self.shapes:
            maps.append(_map_spec(HEATMAPS, (1, *size), dtype="float16", compressor="zstd"))
        coded, num = list(self._num_stored), sum(self._num_stored.values())
        scale = ArraySpec(
            name=SCALE,
            row_shape=(num,),
            dtype="float32",
            axes=("scale_channel",),
            attributes={"of": coded, "times": "int8 values are channels or components"},
        )
        relative_l2 = ArraySpec(
            name=RELATIVE_L2,
            row_shape=(len(coded),),
            dtype="float32",
            axes=("map",),
            attributes={"of": coded, "is": "relative L2 error against fp16"},
        )
        return (*maps, scale, relative_l2)

    @property
    def _num_stored(self) -> dict[str, int]:
        """Number of channels or components of each int8 map."""
        if self.profile == "compact":
            return {name: self.bases[name].vectors.shape[1] for name in COMPACT_MAPS}
        return {name: self.shapes[name][0] for name in MAPS if name in self.shapes}

    @property
    def _taps(self) -> tuple[str, ...]:
        """Names of the network's maps, in the order in which they are stored."""
        return tuple(name for name in (*MAPS, HEATMAPS) if name in self.shapes)

    @property
    def input_specs(self) -> tuple[ArraySpec, ...]:
        """Specs of the arrays that `decode` reads."""
        return tuple(spec for spec in self.arrays if spec.name != RELATIVE_L2)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arrays that `decode` reads."""
        return tuple(spec.name for spec in self.input_specs)

    @property
    def num_channels(self) -> int:
        """Number of channels of lf, h1 and h2."""
        return self.shapes["lf"][0]

    @property
    def map_size(self) -> int:
        """Height and width of every map."""
        return self.shapes["lf"][1]

    def check_has_maps(self, *, plain: Collection[str], gated: Collection[str], experiment: str) -> None:
        """Raise `ConfigError` if `experiment` reads maps, plain or gated, that rows of this codec do not have."""
        absent = [name for name in (*plain, *gated) if name not in self.shapes]
        if absent:
            raise ConfigError(
                f"{experiment} reads {' and '.join(absent)}, and its cache holds only {' and '.join(self._taps)}; "
                "set `head: {input_features: lf_only}`, or use a FAN's features"
            )
        lacking = [name for name in plain if self.profile == "compact" and f"hm_{name}" in COMPACT_MAPS]
        if lacking:
            raise ConfigError(
                f"{experiment} reads {' and '.join(lacking)} without the heatmap gate, and the profile compact holds "
                "them only gated; refresh and train with `cache: {features: {profile: standard}}`"
            )

    def encode(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encode maps fp16 (N, C, H, W), hm with all landmarks, to rows by array name."""
        maps = {name: maps[name].contiguous() for name in self._taps}  # the order in memory decides how sums round
        if self.profile == "exact":
            return dict(maps)
        sums = {HEATMAPS: _landmark_sum(maps[HEATMAPS])} if HEATMAPS in maps else {}
        kept = {name: maps[name].float() for name in MAPS if name in maps}
        if self.profile == "compact":
            hm = sums.pop(HEATMAPS).float()
            kept = {"lf": kept["lf"], "hm_h1": hm * kept["h1"], "hm_h2": hm * kept["h2"]}
        rows: dict[str, Tensor] = {}
        scales, errors = [], []
        for name, values in kept.items():
            basis = self.bases.get(name)
            stored = values if basis is None else _apply_matrix(values, basis.analysis.t())
            rows[name], scale = _quantise(stored, least=_LEAST_SCALE if basis is None else basis.step)
            back = _dequantise(rows[name], scale)
            errors.append(_relative_l2(back if basis is None else _apply_matrix(back, basis.synthesis), values))
            scales.append(scale)
        return {**rows, **sums, SCALE: torch.cat(scales, 1), RELATIVE_L2: torch.stack(errors, 1)}

    def decode(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Decode rows by array name (at least `inputs`) to the maps that `models.fan_trans.ConvModule` takes.

        exact: lf, h1, h2 (N, C, H, W) and hm (N, 1, H, W), fp16; hm is the heatmaps' sum, rounded as in `standard`.
        standard: the same maps in fp32, hm in fp16. compact: components (N, K, H, W) fp32, and `lf_basis` (C, K) etc.
        """
        if self.profile == "exact":
            return {name: _landmark_sum(stored[name]) if name == HEATMAPS else stored[name] for name in self._taps}
        scales = stored[SCALE].split(list(self._num_stored.values()), 1)
        features = {
            name: _dequantise(stored[name], scale) for name, scale in zip(self._num_stored, scales, strict=True)
        }
        if HEATMAPS in stored:
            features[HEATMAPS] = stored[HEATMAPS]
        for name, basis in self.bases.items():
            features[f"{name}_basis"] = basis.synthesis.to(features[name].device, non_blocking=True)
        return features


def make_codec(profile: Profile, shapes: Shapes, *, basis: bytes | None = None) -> Codec:
    """Return the codec of a profile; `compact` needs the bytes of a basis file (see `pipeline.refresh.fit_codec`).

    Raises `StoreError` if the file is not a basis of these maps.
    """
    if profile != "compact":
        return Codec(profile=profile, shapes=shapes, bases={})
    assert basis is not None
    try:
        tensors = load(basis)
        bases = {
            name: Basis(tensors[f"{name}.vectors"], tensors[f"{name}.channel_rms"], float(tensors[f"{name}.step"]))
            for name in COMPACT_MAPS
        }
    except (SafetensorError, KeyError) as error:
        raise StoreError(
            f"the codec's file is not a basis ({error}); fit one with `fantrans weights fit-codec`"
        ) from None
    widths = {len(each.channel_rms) for each in bases.values()}
    if widths != {shapes["lf"][0]}:
        raise StoreError(
            f"the codec's basis is for maps with {max(widths)} channels, expected {shapes['lf'][0]}; "
            "name the FAN's own codec in the catalog"
        )
    return Codec(profile=profile, shapes=shapes, bases=bases)


def encode_rows(codec: Codec, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Encode rows of the profile exact, fp16 (n, C, H, W), to rows of `codec`, in batches of one size."""
    num = len(rows["lf"])
    out = {spec.name: np.empty((num, *spec.row_shape), spec.dtype) for spec in codec.arrays}
    for start in range(0, num, _BATCH_FRAMES):
        here = slice(start, min(start + _BATCH_FRAMES, num))
        maps = {name: torch.from_numpy(pad_batch(values[here], _BATCH_FRAMES)) for name, values in rows.items()}
        for name, values in codec.encode(maps).items():
            out[name][here] = values[: here.stop - start].numpy()
    return out


def _map_spec(name: str, row_shape: tuple[int, ...], *, dtype: str, compressor: Literal["zstd"] | None) -> ArraySpec:
    attributes = {
        "tap": name.removeprefix("hm_"),
        "is_gated": name.startswith("hm_"),
        "is_landmark_sum": name == HEATMAPS and row_shape[0] == 1,
    }
    return ArraySpec(
        name=name,
        row_shape=row_shape,
        dtype=dtype,
        axes=(f"{name}_channel", "y", "x"),
        attributes=attributes,
        compressor=compressor,
    )


def _landmark_sum(hm: Tensor) -> Tensor:
    """Sum heatmaps fp16 (N, L, H, W) over landmarks in fp32; return fp16 (N, 1, H, W)."""
    return hm.float().sum(1, keepdim=True).half() if hm.shape[1] > 1 else hm


def _quantise(values: Tensor, *, least: float) -> tuple[Tensor, Tensor]:
    """Return int8 codes (N, K, H, W) within +-127 and their scale (N, K), at least `least`."""
    scale = (values.abs().amax((2, 3)) / _MAX_CODE).clamp(min=least)
    codes = (values / scale[:, :, None, None]).round_().clamp_(-_MAX_CODE, _MAX_CODE)
    return codes.to(torch.int8), scale


def _dequantise(codes: Tensor, scale: Tensor) -> Tensor:
    return codes.float().mul_(scale[:, :, None, None])


def _apply_matrix(values: Tensor, matrix: Tensor) -> Tensor:
    """Multiply by a matrix (M, C) at every position: (N, C, H, W) -> (N, M, H, W)."""
    return torch.einsum("mc,nchw->nmhw", matrix.to(values.device), values)


def _relative_l2(found: Tensor, true: Tensor) -> Tensor:
    error, size = (_sum_of_squares(each) for each in (found - true, true))
    return torch.where(size > 0, (error / size).sqrt(), 0.0).float()


def _sum_of_squares(values: Tensor) -> Tensor:
    """Return the sum per frame, float64 (N,). On a CPU NumPy sums: torch's sums depend on the number of threads."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.square(values.numpy()).sum((1, 2, 3), dtype=np.float64))
    return values.double().square().sum((1, 2, 3))
