"""Golden caches: every later version opens them, or refuses them with one sentence.

`python -m tests.unit.cache.test_golden_cache` writes new ones; do so only for a new schema, into a new folder.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pipeline.cache.codecs import make_codec
from pipeline.cache.format import features_format
from pipeline.cache.reader import open_cache
from pipeline.config import PROFILES, ViewConfig
from pipeline.errors import StoreError
from pipeline.store.mirror import read_sealed_json, sealed_json
from pipeline.store.revisions import SCHEMA
from pipeline.store.verify import verify_store
from tests.unit import small_cache
from tests.unit.cache.test_codecs import random_basis

GOLDEN = Path(__file__).parents[2] / "golden"
SCHEMA_2 = GOLDEN / "cache_schema_2"
SHAPES = {**small_cache.SHAPES, "hm": (68, 8, 8)}


def decoded(cache):
    """Return the head's input from every view, by view and map."""
    features = {}
    for view in range(cache.num_views):
        stored = cache.read(cache.rows(), view=view)
        decoded = cache.codec.decode({name: torch.from_numpy(values) for name, values in stored.items()})
        features |= {f"view_{view}.{name}": np.ascontiguousarray(values.numpy()) for name, values in decoded.items()}
    return features


@pytest.mark.parametrize("profile", PROFILES)
def test_a_cache_of_schema_2_opens_with_the_same_values(profile):
    cache = open_cache(SCHEMA_2 / profile)
    assert cache.index["frame_id"].tolist() == ["F000/T1/0", "F000/T1/1"]
    assert cache.num_views == 2
    expected = load_file(SCHEMA_2 / f"{profile}.safetensors")
    found = decoded(cache)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)
    assert verify_store(SCHEMA_2 / profile, is_deep=True) == []


def test_a_cache_of_a_later_schema_is_refused_with_one_sentence(tmp_path):
    folder = tmp_path / "exact"
    shutil.copytree(SCHEMA_2 / "exact", folder)
    manifest = read_sealed_json(folder / "manifest-000001.json")
    manifest.pop("crc32c")
    (folder / "manifest-000001.json").write_bytes(sealed_json({**manifest, "schema": SCHEMA + 1}))
    with pytest.raises(StoreError, match=f"is written in schema {SCHEMA + 1}, this version reads schema {SCHEMA}; use"):
        open_cache(folder)


def test_a_cache_of_schema_1_is_refused_with_one_sentence(tmp_path):
    (tmp_path / "fingerprint.json").write_text('{"kind": "features"}')
    (tmp_path / "current.json").write_text('{"revision": 1}')
    (tmp_path / "manifest-000001.json").write_text('{"schema": 1, "revision": 1}')
    with pytest.raises(StoreError, match="is written in schema 1, this version reads schema 2; use"):
        open_cache(tmp_path)


def write_golden():
    """Write two frames in two views, in each profile."""
    folder = SCHEMA_2.with_name("making")
    frames, boxes = small_cache.make_world(folder, num_subjects=1, num_frames=2)
    crops = small_cache.make_crops(folder, frames, boxes)

    def maps(images):
        features = small_cache.extract(images)
        return {
            name: np.resize(features[name] / np.float16(256), (len(images), *shape)).astype(np.float16)
            for name, shape in SHAPES.items()
        }

    for profile in PROFILES:
        basis = random_basis(4, num_components=3, step=0.01) if profile == "compact" else None
        codec = make_codec(profile, SHAPES, basis=basis)
        document = small_cache.features_document(SHAPES, profile=profile)
        if basis is not None:
            document["features"]["codec"] = {"sha256": hashlib.sha256(basis).hexdigest()}
        format = features_format(document, codec, block_rows=small_cache.BLOCK_ROWS)

        def extractor(images, codec=codec):
            return {
                name: values.numpy()
                for name, values in codec.encode(
                    {name: torch.from_numpy(values) for name, values in maps(images).items()}
                ).items()
            }

        cache = small_cache.make_cache(
            folder,
            frames,
            crops,
            extractor=extractor,
            format=format,
            codec=codec,
            views=ViewConfig(num_views=2),
            basis=basis,
        )
        shutil.copytree(cache.folder, SCHEMA_2 / profile)
        save_file(decoded(open_cache(SCHEMA_2 / profile)), SCHEMA_2 / f"{profile}.safetensors")
    shutil.rmtree(folder)


if __name__ == "__main__":
    write_golden()
