import json

import numpy as np
import pytest
import zarr

from pipeline.errors import StoreError
from pipeline.runtime.atomic import put_in_place
from pipeline.store.shards import (
    ArraySpec,
    array_metadata,
    file_crc32c,
    group_metadata,
    read_shard,
    shard_name,
    stage_shard,
    stored_slots,
)

BLOCK_ROWS, NUM_ROWS = 4, 12
SPECS = [
    ArraySpec(
        name="a", row_shape=(2, 3), dtype=dtype, axes=("y", "x"), attributes={"unit": "px"}, compressor=compressor
    )
    for dtype in ("uint8", "int8", "float16", "float32", "float64")
    for compressor in (None, "zstd")
]


def zarrs_own(place, spec):
    """The array that zarr makes for the same settings."""
    zstd = [zarr.codecs.ZstdCodec(level=1, checksum=False)] if spec.compressor else []
    return zarr.create_array(
        place,
        shape=(NUM_ROWS, *spec.row_shape),
        chunks=(1, *spec.row_shape),
        shards=(BLOCK_ROWS, *spec.row_shape),
        dtype=spec.dtype,
        compressors=[*zstd, zarr.codecs.Crc32cCodec()],
        fill_value=np.nan if np.dtype(spec.dtype).kind == "f" else 0,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=["row", *spec.axes],
        attributes=dict(spec.attributes),
    )


def make_rows(spec, num):
    return np.random.default_rng(0).integers(0, 99, (num, *spec.row_shape)).astype(spec.dtype)


@pytest.fixture(params=SPECS, ids=lambda spec: f"{spec.dtype}-{spec.compressor}")
def spec(request):
    return request.param


@pytest.fixture
def shard(tmp_path):
    """A shard of rows 0, 2 and 3 of its block, its spec and its rows."""
    spec = SPECS[0]
    path, rows = tmp_path / shard_name(spec, 1), make_rows(spec, 3)
    temp, record = stage_shard(path, rows, slots=np.array([0, 2, 3]), spec=spec, block_rows=BLOCK_ROWS)
    put_in_place(temp, path)
    return path, spec, rows, record


def read(path, spec, slots):
    out = np.empty((len(slots), *spec.row_shape), spec.dtype)
    read_shard(path, np.array(slots), spec=spec, block_rows=BLOCK_ROWS, out=out, at=np.arange(len(slots)))
    return out


def test_the_metadata_of_an_array_is_what_zarr_itself_writes(tmp_path, spec):
    zarrs_own(tmp_path, spec)
    ours = json.loads(array_metadata(spec, num_rows=NUM_ROWS, block_rows=BLOCK_ROWS))
    assert ours == json.loads((tmp_path / "zarr.json").read_bytes())


def test_the_metadata_of_a_group_is_what_zarr_itself_writes(tmp_path):
    zarr.create_group(tmp_path, attributes={"view": 1})
    assert json.loads(group_metadata({"view": 1})) == json.loads((tmp_path / "zarr.json").read_bytes())


def test_zarr_reads_a_shard_and_empty_rows_are_its_fill_value(tmp_path, spec):
    rows = make_rows(spec, 3)
    path = tmp_path / shard_name(spec, 1)
    temp, _ = stage_shard(path, rows, slots=np.array([0, 2, 3]), spec=spec, block_rows=BLOCK_ROWS)
    put_in_place(temp, path)
    (tmp_path / "zarr.json").write_bytes(array_metadata(spec, num_rows=NUM_ROWS, block_rows=BLOCK_ROWS))
    found = zarr.open_array(tmp_path, mode="r")[:]
    np.testing.assert_array_equal(found[[4, 6, 7]], rows)
    empty = found[[0, 1, 2, 3, 5, 8]]
    assert np.isnan(empty).all() if empty.dtype.kind == "f" else not empty.any()


def test_a_shard_is_read_in_any_order_and_its_record_is_that_of_the_file(shard):
    path, spec, rows, record = shard
    np.testing.assert_array_equal(read(path, spec, [3, 0]), rows[[2, 0]])
    assert stored_slots(path, block_rows=BLOCK_ROWS).tolist() == [True, False, True, True]
    assert (record.num_bytes, record.crc32c) == (path.stat().st_size, file_crc32c(path))
    with pytest.raises(StoreError, match="does not hold row 1"):
        read(path, spec, [1])


@pytest.mark.parametrize("compressor", [None, "zstd"])
def test_a_flipped_bit_anywhere_in_a_shard_is_never_served(tmp_path, compressor):
    spec = ArraySpec(name="a", row_shape=(5,), dtype="int8", axes=("x",), compressor=compressor)
    path = tmp_path / shard_name(spec, 0)
    slots = np.array([0, 1])
    temp, _ = stage_shard(path, make_rows(spec, 2), slots=slots, spec=spec, block_rows=BLOCK_ROWS)
    put_in_place(temp, path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(StoreError):
            read(path, spec, [0, 1])
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(StoreError):
            read(path, spec, [0, 1])
