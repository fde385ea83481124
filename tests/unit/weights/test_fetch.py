"""Downloads from a server on this machine: resumed, checked, and useful without a network."""

from __future__ import annotations

import errno
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from models.fan import FAN
from pipeline.catalog import added_weights
from pipeline.errors import StoreError, UsageError, WeightsError, WriteError
from pipeline.runtime.atomic import file_sha256
from pipeline.store.lock import writer_lock
from pipeline.weights import published
from pipeline.weights.download import download
from pipeline.weights.fetch import fetch_weights
from pipeline.weights.published import PublishedWeights


class Site:
    """A server of one file. `ends`: bytes after which the next answers break off. `ranges`: what was asked for."""

    def __init__(self) -> None:
        self.data, self.tag, self.status = b"", '"1"', 200
        self.ends: list[int] = []
        self.ranges: list[str | None] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                site.ranges.append(asked := self.headers.get("Range"))
                if site.status != 200:
                    self.send_error(site.status)
                    return
                first = 0
                if asked and self.headers.get("If-Range") in (None, site.tag):
                    first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
                if first >= len(site.data) > 0:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(site.data)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206 if first else 200)
                if first:
                    self.send_header("Content-Range", f"bytes {first}-{len(site.data) - 1}/{len(site.data)}")
                if site.tag:
                    self.send_header("ETag", site.tag)
                self.send_header("Content-Length", str(len(site.data) - first))
                self.end_headers()
                body = site.data[first:]
                if site.ends:
                    self.wfile.write(body[: site.ends.pop(0)])
                    self.wfile.flush()
                    self.close_connection = True
                    return
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = Site()
    yield served
    served.close()


def get(site: Site, path: Path, **settings) -> Path:
    return download(f"{site.address}/a/file.pth", path, otherwise="bring it", **settings)


def test_an_interrupted_download_resumes_where_it_ended(site, tmp_path):
    site.data = bytes(range(256)) * 400
    site.ends = [1000, 5000]
    path = get(site, tmp_path / "file.pth")
    assert path.read_bytes() == site.data
    assert site.ranges == [None, "bytes=1000-", "bytes=6000-"]
    assert [each.name for each in tmp_path.iterdir()] == ["file.pth"]
    assert get(site, path) == path
    assert len(site.ranges) == 3


def test_a_later_call_resumes_and_a_changed_file_starts_again(site, tmp_path):
    site.data, site.ends = b"a" * 9000, [1000, 1000, 1000]
    with pytest.raises(WeightsError, match=r"file.pth cannot be downloaded: .*; bring it$"):
        get(site, tmp_path / "file.pth")
    assert not (tmp_path / "file.pth").exists()
    assert (tmp_path / "file.pth.part").stat().st_size == 3000
    site.data, site.tag = b"b" * 5000, '"2"'
    assert get(site, tmp_path / "file.pth").read_bytes() == site.data
    assert site.ranges[-1] == "bytes=3000-"


def test_a_full_disk_is_one_sentence_and_what_arrived_is_kept(site, tmp_path, monkeypatch):
    site.data = b"a" * 9000
    file = type("Full", (), {"__enter__": lambda self: self, "__exit__": lambda *_: None})()

    def write(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    file.write = write
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *a, **k: file if path.suffix == ".part" else opened(path, *a, **k))
    with pytest.raises(WriteError, match=r"file.pth.part cannot be written: No space left on device; free") as caught:
        get(site, tmp_path / "file.pth")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert get(site, tmp_path / "file.pth").read_bytes() == site.data


def test_without_a_validator_every_try_starts_from_the_beginning(site, tmp_path):
    site.data, site.tag, site.ends = b"a" * 9000, 'W/"weak"', [4000]
    assert get(site, tmp_path / "file.pth").read_bytes() == site.data
    assert site.ranges == [None, None]


def test_a_part_that_is_complete_is_put_in_place_and_a_longer_one_is_not(site, tmp_path):
    site.data = b"a" * 9000
    for kept in (site.data, b"c" * 9500):
        (tmp_path / "file.pth.part").write_bytes(kept)
        (tmp_path / "file.pth.part.validator").write_text(site.tag)
        assert get(site, tmp_path / "file.pth").read_bytes() == site.data
        (tmp_path / "file.pth").unlink()


def test_another_file_than_expected_is_removed(site, tmp_path):
    site.data = b"\x80" + b"a" * 9000
    (tmp_path / "right").write_bytes(site.data)
    digits = file_sha256(tmp_path / "right")
    assert get(site, tmp_path / "file.pth", sha256=("00000000", digits[:8]))
    (tmp_path / "file.pth").unlink()
    with pytest.raises(
        WeightsError, match=rf"has sha256 {digits[:12]}..., expected 00000000...; the download was removed"
    ):
        get(site, tmp_path / "file.pth", sha256=("00000000",))
    assert not (tmp_path / "file.pth").exists()
    site.data = b"<!DOCTYPE html><title>Sign in"
    with pytest.raises(WeightsError, match="is a web page, not weights"):
        get(site, tmp_path / "file.pth", sha256=("00000000",))
    assert not (tmp_path / "file.pth").exists()
    site.status = 404
    with pytest.raises(WeightsError, match="the server answers 404; bring it"):
        get(site, tmp_path / "file.pth")


@pytest.fixture
def tiny(site, tmp_path, monkeypatch) -> FAN:
    """A FAN that the site publishes as `tiny`."""
    torch.manual_seed(0)
    fan = FAN(16)
    torch.save(fan.state_dict(), tmp_path / "tiny.pth")
    site.data = (tmp_path / "tiny.pth").read_bytes()
    digits = file_sha256(tmp_path / "tiny.pth")
    shape = {"family": "fan", "width": 16, "num_stacks": 2, "pooling": "max"}
    known = PublishedWeights(url=f"{site.address}/tiny.pth", sha256=(digits[:10],), publisher="a", licence="b", **shape)
    monkeypatch.setitem(published.PUBLISHED, "tiny", known)
    return fan


def test_fetched_weights_are_added_once_and_the_original_is_removed(site, tiny, tmp_path):
    folder = tmp_path / "weights"
    site.ends = [2000]
    assert fetch_weights("tiny", folder)
    entry = added_weights(folder)["tiny"]
    assert (entry.pooling, entry.source.url) == ("max", f"{site.address}/tiny.pth")
    assert not list((folder / "downloads").glob("tiny*"))
    num = len(site.ranges)
    assert not fetch_weights("tiny", folder)
    assert len(site.ranges) == num
    (folder / "tiny.safetensors").unlink()
    assert fetch_weights("tiny", folder)
    assert added_weights(folder)["tiny"] == entry


def test_what_fetch_refuses(site, tiny, tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    with pytest.raises(UsageError, match="published file of weights 'tinyy' does not exist; did you mean 'tiny'"):
        fetch_weights("tinyy", folder)
    with pytest.raises(UsageError, match="the catalog already has weights 'tiny'"):
        fetch_weights("tiny", folder, taken={"tiny"})
    assert site.ranges == []
    with writer_lock(folder), pytest.raises(StoreError, match="is being written by process"):
        fetch_weights("tiny", folder)
    unchecked = PublishedWeights(url=f"{site.address}/tiny.pth", family="resnet18", publisher="a", licence="b")
    monkeypatch.setitem(published.PUBLISHED, "tiny", unchecked)
    site.data = b"<html>"
    for _ in range(2):  # a page is not kept as the download
        with pytest.raises(WeightsError, match=r"tiny.pth is not the file of weights: .* is a web page"):
            fetch_weights("tiny", folder)
    assert len(site.ranges) == 2


def test_without_a_network_the_sentence_names_the_file_to_bring(site, tiny, tmp_path):
    site.close()
    with pytest.raises(WeightsError) as caught:
        fetch_weights("tiny", tmp_path / "weights")
    assert str(caught.value).endswith(
        "; on a machine with a network, download it, copy it here and run `fantrans weights add tiny.pth --name tiny`"
    )
    assert added_weights(tmp_path / "weights") == {}
