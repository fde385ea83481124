import pytest

from pipeline.errors import StoreError
from pipeline.store import mirror
from pipeline.store.mirror import (
    copy_paths,
    find_intact_copy,
    has_copy,
    has_sha256,
    is_sealed,
    read_copy,
    read_sealed_json,
    repair,
    sealed_json,
    write_copies,
)

DOCUMENT = {"b": [1, 2], "a": "text"}
DATA = sealed_json(DOCUMENT)


@pytest.fixture
def twice(tmp_path):
    write_copies(tmp_path, "value.json", DATA)
    return tmp_path


def test_any_flipped_bit_or_missing_end_breaks_the_seal():
    assert is_sealed(DATA)
    values = [at for at in range(len(DATA)) if not DATA[at : at + 1].isspace()]
    for at in values:
        assert not is_sealed(DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :]), at
    for size in range(len(DATA) - 1):
        assert not is_sealed(DATA[:size])


@pytest.mark.parametrize("data", [b"", b"[1]", b"3", b"{}", b'{"crc32c": 1}', b"\xff"])
def test_what_has_no_seal_is_not_sealed(data):
    assert not is_sealed(data)


def test_a_sealed_file_is_read_or_replaced_by_the_fallback_or_refused(tmp_path):
    path = tmp_path / "value.json"
    assert read_sealed_json(path, fallback={}) == {}
    with pytest.raises(StoreError, match=r"value.json is missing or damaged; run `fantrans refresh`"):
        read_sealed_json(path)
    path.write_bytes(DATA)
    found = read_sealed_json(path)
    assert {name: found[name] for name in DOCUMENT} == DOCUMENT
    path.write_bytes(DATA[:-5])
    assert read_sealed_json(path, fallback={"a": 1}) == {"a": 1}


def test_a_file_lies_in_two_places_and_the_copy_is_written_first(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(mirror, "write_bytes_atomically", lambda path, data: written.append(path))
    write_copies(tmp_path, "value.json", DATA)
    assert written == [tmp_path / "mirror" / "value.json", tmp_path / "value.json"]


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(DATA[:-3])])
@pytest.mark.parametrize("at", [0, 1])
def test_one_good_copy_is_enough_and_repair_puts_the_other_back(twice, caplog, harm, at):
    harm(copy_paths(twice, "value.json")[at])
    assert read_copy(twice, "value.json", is_sealed) == DATA
    assert find_intact_copy(twice, "value.json", is_sealed) == DATA
    assert has_copy(twice, "value.json")
    assert bool(caplog.messages) == (at == 0)
    repair(twice, "value.json", is_sealed)
    assert [path.read_bytes() for path in copy_paths(twice, "value.json")] == [DATA, DATA]


def test_two_bad_copies_are_refused_and_left_as_they_are(twice):
    path, copy = copy_paths(twice, "value.json")
    path.write_bytes(b"half")
    copy.unlink()
    with pytest.raises(StoreError, match=r"value.json is damaged, and so is its copy in mirror/"):
        read_copy(twice, "value.json", is_sealed)
    assert find_intact_copy(twice, "value.json", is_sealed) is None
    repair(twice, "value.json", is_sealed)
    assert path.read_bytes() == b"half"
    assert not copy.exists()
    path.unlink()
    assert not has_copy(twice, "value.json")
    with pytest.raises(StoreError, match=r"value.json is missing, and so is its copy"):
        read_copy(twice, "value.json", is_sealed)


def test_a_table_is_good_if_it_has_its_sha256():
    check = has_sha256("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert check(b"abc")
    assert not check(b"abd")
