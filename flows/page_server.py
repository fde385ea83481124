"""Serve the start page on this machine: it, made again for each request, and the files that it links to, no others."""

from __future__ import annotations

import errno
import logging
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.catalog import Catalog
from pipeline.errors import FantransError, UsageError
from pipeline.report.page_files import START_PAGE
from pipeline.report.start_page import read_start_page

logger = logging.getLogger("fantrans")

HOST = "127.0.0.1"
_LOCAL_NAMES = (HOST, "localhost")


class PageServer(ThreadingHTTPServer):
    """A server of the pages below a catalog's runs root, for browsers of this machine."""

    daemon_threads = True

    def __init__(self, catalog: Catalog, port: int) -> None:
        """Listen on a port, 0 for any free one. Raises `UsageError` if another process has it."""
        self._catalog = catalog
        self._files: dict[str, Path] = {}
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise UsageError(f"port {port} cannot be used: {error.strerror}; choose another with --port") from None

    @property
    def address(self) -> str:
        """Address of the start page."""
        return f"http://{HOST}:{self.server_port}/"

    def find(self, address: str) -> bytes | None:
        """Return the start page, or a file that it links to; None for any other address."""
        is_start = address in ("", START_PAGE)
        if is_start or address not in self._files:  # it may be new
            page = read_start_page(self._catalog)
            self._files = {unquote(link): path for link, path in page.files.items()}
            if is_start:
                return page.html.encode()
        path, root = self._files.get(address), self._catalog.roots.runs.resolve()
        if path is None or not path.is_file() or not path.resolve().is_relative_to(root):  # a link may lead elsewhere
            return None
        return path.read_bytes()


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "fantrans", ""

    def do_GET(self) -> None:
        """Answer with a page."""
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        """Answer with the head of a page."""
        self._answer(has_body=False)

    def _answer(self, *, has_body: bool) -> None:
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in _LOCAL_NAMES:
            self.send_error(HTTPStatus.FORBIDDEN, "Only for browsers of this machine")  # no site may give it its name
            return
        try:
            content = self.server.find(unquote(urlsplit(self.path).path.removeprefix("/")))
        except (FantransError, OSError) as error:
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "The page cannot be made", str(error))
            return
        if content is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        for name, value in (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Log a request with --verbose only."""
        logger.debug("%s %s", self.address_string(), format % arguments)
