import numpy as np
import pytest
import torch
from safetensors.numpy import save

from models.fan_trans import FanTransHead
from models.head_shape import HeadShape
from models.variants import INPUT_MAPS
from pipeline.cache.codecs import COMPACT_MAPS, encode_rows, make_codec
from pipeline.errors import ConfigError, StoreError

C, SIZE = 8, 16
SHAPES = {"lf": (C, SIZE, SIZE), "h1": (C, SIZE, SIZE), "h2": (C, SIZE, SIZE), "hm": (68, SIZE, SIZE)}


def random_basis(width, *, num_components=None, step=1e-3):
    """A basis file of random orthonormal directions."""
    random = np.random.default_rng(0)
    tensors = {}
    for name in COMPACT_MAPS:
        vectors, _ = np.linalg.qr(random.normal(size=(width, width)))
        tensors[f"{name}.vectors"] = np.ascontiguousarray(vectors[:, : num_components or width], np.float32)
        tensors[f"{name}.channel_rms"] = random.uniform(0.5, 2, width).astype(np.float32)
        tensors[f"{name}.step"] = np.array(step, np.float32)
    return save(tensors)


@pytest.fixture(scope="module")
def maps():
    """Maps of three frames, H2 sparse and not negative, one channel dead."""
    random = np.random.default_rng(1)
    maps = {name: random.normal(size=(3, *shape)).astype(np.float16) for name, shape in SHAPES.items()}
    maps["h2"] = np.maximum(maps["h2"] - 1, 0)
    maps["h1"][:, 2] = 0
    maps["hm"] = (np.abs(maps["hm"]) / 68).astype(np.float16)
    return maps


def true_inputs(maps):
    """lf, hm * h1 and hm * h2 in float64."""
    hm = maps["hm"].astype(np.float64).sum(1, keepdims=True)
    return {"lf": maps["lf"].astype(np.float64), "hm_h1": hm * maps["h1"], "hm_h2": hm * maps["h2"]}


def decoded(codec, maps):
    rows = encode_rows(codec, maps)
    return rows, codec.decode({name: torch.from_numpy(rows[name]) for name in codec.inputs})


def relative_l2(found, true):
    return np.sqrt(((found - true) ** 2).sum() / (true**2).sum())


def test_exact_is_lossless(maps):
    rows, features = decoded(make_codec("exact", SHAPES), maps)
    for name in ("lf", "h1", "h2"):
        np.testing.assert_array_equal(rows[name], maps[name])
        np.testing.assert_array_equal(features[name].numpy(), maps[name])
    np.testing.assert_array_equal(rows["hm"], maps["hm"])
    np.testing.assert_allclose(features["hm"].numpy(), maps["hm"].astype(float).sum(1, keepdims=True), rtol=1e-3)


def test_standard_errs_by_half_a_step_at_most_and_its_heatmap_sum_equals_that_of_exact(maps):
    rows, features = decoded(make_codec("standard", SHAPES), maps)
    scales = dict(zip(("lf", "h1", "h2"), np.split(rows["scale"], 3, 1), strict=True))
    for name, scale in scales.items():
        greatest = np.abs(maps[name].astype(np.float32)).max((2, 3))
        np.testing.assert_allclose(scale[greatest > 0] * 127, greatest[greatest > 0], rtol=1e-6)
        gap = np.abs(features[name].numpy() - maps[name].astype(np.float32))
        assert (gap <= scale[:, :, None, None] * 0.5001).all()
    exact = decoded(make_codec("exact", SHAPES), maps)[1]
    np.testing.assert_array_equal(features["hm"].numpy(), exact["hm"].numpy())


@pytest.mark.parametrize("profile", ["standard", "compact"])
def test_the_stored_relative_l2_error_is_correct(maps, profile):
    codec = make_codec(profile, SHAPES, basis=random_basis(C, num_components=6, step=0.2))
    rows, features = decoded(codec, maps)
    plain = {name: maps[name].astype(float) for name in ("lf", "h1", "h2")}
    true = true_inputs(maps) if profile == "compact" else plain
    for i, (name, values) in enumerate(true.items()):
        found = features[name].numpy().astype(float)
        if profile == "compact":
            found = np.einsum("ck,nkhw->nchw", features[f"{name}_basis"].numpy(), found)
        for frame in range(3):
            assert rows["loss"][frame, i] == pytest.approx(relative_l2(found[frame], values[frame]), rel=2e-3)


def test_all_components_with_a_small_step_are_nearly_lossless(maps):
    rows, _ = decoded(make_codec("compact", SHAPES, basis=random_basis(C)), maps)
    assert (rows["loss"] < 0.02).all()


def test_a_step_bounds_the_scale_from_below_and_never_clips(maps):
    rows, _ = decoded(make_codec("compact", SHAPES, basis=random_basis(C, step=0.2)), maps)
    assert (rows["scale"] >= np.float32(0.2)).all()
    loud = {name: (values * np.float16(300)).astype(np.float16) for name, values in maps.items() if name != "hm"}
    rows, _ = decoded(make_codec("compact", SHAPES, basis=random_basis(C, step=0.2)), {**maps, **loud})
    assert (rows["loss"] < 0.05).all()
    assert np.abs(rows["lf"]).max() == 127


@pytest.mark.parametrize("profile", ["standard", "compact"])
def test_a_head_reads_every_profile_and_a_basis_folds_into_its_first_convolution(maps, profile):
    torch.manual_seed(0)
    head = FanTransHead(HeadShape.resolved(fan_width=C, num_aus=3, map_size=SIZE, dim=8, num_blocks=1)).eval()
    codec = make_codec(profile, SHAPES, basis=random_basis(C))
    with torch.inference_mode():
        expected = head(decoded(make_codec("exact", SHAPES), maps)[1]).deployed
        features = decoded(codec, maps)[1]
        found = head(features).deployed
        if profile == "compact":
            unfolded = {
                name: torch.einsum("ck,nkhw->nchw", features[f"{name}_basis"], features[name]) for name in COMPACT_MAPS
            }
            torch.testing.assert_close(head(unfolded).deployed, found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


def test_a_gated_profile_refuses_heads_without_the_gate():
    compact = make_codec("compact", SHAPES, basis=random_basis(C))
    with pytest.raises(ConfigError, match="no_gate reads h1 and h2 without the heatmap gate, and the profile compact"):
        compact.check_has_maps(plain=INPUT_MAPS["bl_no_hm"][0], gated=(), experiment="no_gate")
    for name in ("bl", "bl_no_lf"):
        compact.check_has_maps(plain=INPUT_MAPS[name][0], gated=INPUT_MAPS[name][1], experiment=name)
    make_codec("standard", SHAPES).check_has_maps(plain=INPUT_MAPS["bl_no_hm"][0], gated=(), experiment="no_gate")


@pytest.mark.parametrize("profile", ["exact", "standard"])
def test_a_network_without_heatmaps_is_stored_as_one_map(maps, profile):
    codec = make_codec(profile, {"lf": SHAPES["lf"]})
    rows, features = decoded(codec, {"lf": maps["lf"]})
    assert set(rows) == ({"lf"} if profile == "exact" else {"lf", "scale", "loss"})
    assert set(features) == {"lf"}
    of_all = decoded(make_codec(profile, SHAPES), maps)[1]
    np.testing.assert_array_equal(features["lf"].numpy(), of_all["lf"].numpy())
    plain, gated = INPUT_MAPS["bl"]
    with pytest.raises(ConfigError, match="full reads h1 and h2, and its cache holds only lf"):
        codec.check_has_maps(plain=plain, gated=gated, experiment="full")
    codec.check_has_maps(plain=INPUT_MAPS["lf_only"][0], gated=(), experiment="r18")


def test_a_foreign_or_broken_basis_is_refused():
    with pytest.raises(StoreError, match="basis is for maps with 4 channels, expected 8; name the FAN's own codec"):
        make_codec("compact", SHAPES, basis=random_basis(4))
    for broken in (b"nothing", save({"lf.vectors": np.eye(C, dtype=np.float32)})):
        with pytest.raises(StoreError, match="is not a basis"):
            make_codec("compact", SHAPES, basis=broken)
