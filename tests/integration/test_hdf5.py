"""HDF5 files of a cache and back: the same bytes, and one sentence for whatever the files or the disk lack."""

import multiprocessing
import resource

import h5py
import numpy as np
import pytest

from pipeline.cache.codecs import make_codec
from pipeline.cache.format import features_format
from pipeline.cache.hdf5 import export_hdf5, import_hdf5
from pipeline.cache.reader import open_cache
from pipeline.errors import StoreError, WriteError
from tests.processes import make_process
from tests.unit import small_cache
from tests.unit.small_cache import make_cache, make_crops, stored_bytes


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of three parts that no test changes."""
    folder = tmp_path_factory.mktemp("hdf5")
    frames, boxes = small_cache.make_world(folder)
    return make_cache(folder, frames, make_crops(folder, frames, boxes), provenance={"dataset": "small"})


@pytest.fixture
def paths(cache, tmp_path):
    """Its three files."""
    return export_hdf5(cache, tmp_path / "out")


def make_format(document, basis, block_rows):
    shapes = {name: tuple(shape) for name, shape in document["features"]["shapes"].items()}
    codec = make_codec(document["features"]["profile"], shapes, basis=basis)
    return features_format(document, codec, block_rows=block_rows)


def test_an_import_of_an_export_has_the_same_bytes(cache, paths, tmp_path):
    assert [path.name for path in paths] == ["P1.h5", "P2.h5", "P3.h5"]
    with h5py.File(paths[1]) as file:
        rows = cache.rows(["P2"])
        assert file["frame_id"].asstr()[()].tolist() == cache.index.set_index("row").loc[rows, "frame_id"].tolist()
        assert file["view_02/h2"].chunks == (1, *small_cache.SHAPES["h2"])
        np.testing.assert_array_equal(file["view_02/h2"][()], cache.read(rows, view=2)["h2"])
        assert file.attrs["part"] == "P2"
    imported = import_hdf5({"features": tmp_path / "in"}, paths, make_format)
    assert imported.folder.name == cache.folder.name
    assert stored_bytes(imported.folder) == stored_bytes(cache.folder)
    with pytest.raises(StoreError, match=r"no \.h5 file to import"):
        import_hdf5({"features": tmp_path / "in"}, [], make_format)


def test_frames_without_a_face_stay_listed_in_exported_crops(tmp_path):
    frames, boxes = small_cache.make_world(tmp_path)
    boxes.loc[[2, 7], "status"] = "no_face"
    crops = make_crops(tmp_path, frames, boxes)
    (path,) = export_hdf5(crops, tmp_path / "out")
    assert path.name == "all.h5"
    imported = import_hdf5({"crops": tmp_path / "in"}, [path], lambda *_: small_cache.CROPS_FORMAT)
    assert stored_bytes(imported.folder) == stored_bytes(crops.folder)


def import_into(tmp_path, paths, **more):
    return import_hdf5({"features": tmp_path / "in"}, paths, make_format, **more)


def refused(tmp_path, paths, words, **more):
    """An import that ends with one sentence and has written nothing."""
    with pytest.raises(StoreError, match=words) as caught:
        import_into(tmp_path, paths, **more)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "in").exists()


def test_all_parts_are_imported_together_and_each_once(paths, tmp_path):
    refused(tmp_path, paths[:1], "part P2 and part P3 of the cache is missing among the files")
    refused(tmp_path, [*paths, paths[0]], "part P1 is given twice")
    with h5py.File(paths[0], "r+") as file:
        del file.attrs["parts"]  # an export of an earlier version
    refused(tmp_path, paths[:1], "the files hold 10 of the cache's 30 frames; import all parts together")
    assert len(import_into(tmp_path, paths).index) == 30


def test_files_of_another_data_set_are_refused(paths, tmp_path):
    refused(tmp_path, paths, "P1.h5 is of the data set 'small', not of 'other'; import it as 'small'", dataset="other")
    assert len(import_into(tmp_path, paths, dataset="small").index) == 30


def test_files_of_two_revisions_or_two_caches_are_refused(paths, tmp_path):
    for key, words in (("manifest", "are of different revisions"), ("document", "caches with different settings")):
        with h5py.File(paths[2], "r+") as file:
            before = file.attrs[key]
            file.attrs[key] = before.replace("{", '{"other": 1, ', 1)
        refused(tmp_path, paths, words)
        with h5py.File(paths[2], "r+") as file:
            file.attrs[key] = before


@pytest.mark.parametrize("content", ["text", "empty", "cut", "another HDF5"])
def test_what_is_no_export_or_is_cut_is_named(paths, tmp_path, content):
    path = paths[1]
    data = path.read_bytes()
    path.write_bytes({"text": b"a,b\n1,2\n", "empty": b"", "cut": data[: len(data) // 2]}.get(content, b""))
    if content == "another HDF5":
        path.unlink()
        with h5py.File(path, "w") as file:
            file["x"] = [1]
    refused(tmp_path, paths, "P2.h5 is cut short or damaged, or not an export of a cache; export it again")


def test_a_flipped_bit_is_found_by_its_checksum_and_nothing_is_published(paths, tmp_path):
    with h5py.File(paths[1]) as file:
        place = file["view_01/lf"].id.get_chunk_info(3).byte_offset
    with paths[1].open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(StoreError, match=r"P2\.h5 is cut short or damaged"):
        import_into(tmp_path, paths)
    with pytest.raises(StoreError, match="has no finished revision"):
        open_cache(next((tmp_path / "in").iterdir()))


def test_frames_that_only_the_existing_cache_has_are_not_dropped(tmp_path):
    frames, boxes = small_cache.make_world(tmp_path)
    few = make_cache(tmp_path, frames[:25], make_crops(tmp_path, frames[:25], boxes[:25]))
    paths = export_hdf5(few, tmp_path / "out")
    make_cache(tmp_path, frames, make_crops(tmp_path, frames, boxes))
    with pytest.raises(StoreError, match=r"has 5 rows that the files lack, .+ `fantrans cache rm`"):
        import_hdf5({"features": tmp_path / "cache"}, paths, make_format)
    assert open_cache(few.folder).revision == 2


def export_with_quota(folder, out, limit, said):
    """Export with a quota of bytes per file, in a process of its own, and send the error's sentence."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        export_hdf5(open_cache(folder), out)
    except WriteError as error:
        said.send(str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # the process may write a coverage file at its end


@pytest.mark.parametrize("limit", [0, 1000, 100_000])
def test_a_full_disk_is_one_sentence_and_no_file(cache, tmp_path, limit):
    """A quota, which fails each write as a full disk does; HDF5 ended the process when a write failed."""
    said, sender = multiprocessing.Pipe(duplex=False)
    process = make_process(target=export_with_quota, args=(cache.folder, tmp_path / "out", limit, sender))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert said.poll()
    assert said.recv().startswith(f"{tmp_path}/out/P1.h5 cannot be written: File too large; free space")
    assert list((tmp_path / "out").iterdir()) == []
