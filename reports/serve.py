"""`--serve`: the report on this machine alone, built again whenever its tables have changed."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from reports.tables import TableError

HOST = "127.0.0.1"
REFRESH_S = 20
"""Seconds after which the browser asks again, and between two looks at the tables."""


class Live:
    """The newest report of tables that may change, built when it is asked for."""

    def __init__(
        self, build: Callable[[], Path], tables: Sequence[Path], before: str | None = None
    ) -> None:
        self.build = build
        self.tables = tables
        self.before = shlex.split(before) if before else None
        self.page = b""
        self._seen: object = None
        self._looked = -float(REFRESH_S)
        self._lock = threading.Lock()

    def newest(self) -> bytes:
        """The page; what is wrong with the tables instead, where they cannot be reported."""
        with self._lock:
            if time.monotonic() - self._looked < REFRESH_S and self.page:
                return self.page
            self._looked = time.monotonic()
            said = ""
            try:
                said = self._update()
                seen = self._state()
                if seen != self._seen or not self.page:
                    self._seen = seen
                    self.page = (self.build() / "index.html").read_bytes()
            except TableError as error:
                self.page = _explanation(f"{error}{said}")
            return self.page

    def _update(self) -> str:
        if self.before is None:
            return ""
        try:
            done = subprocess.run(self.before, capture_output=True, text=True, check=False)
        except OSError as error:
            raise TableError("--before", self.before[0], f"cannot be run: {error}") from error
        if done.returncode == 0:
            return ""
        print(f"{done.stdout}{done.stderr}", file=sys.stderr)
        return f"\n{done.stdout}{done.stderr}"

    def _state(self) -> object:
        files = [file for folder in self.tables for file in sorted(folder.glob("*.*"))]
        return [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]


def _explanation(text: str) -> bytes:
    page = "<!doctype html><html lang='en'><meta charset='utf-8'><title>No report yet</title>"
    page += f"<h1>No report yet</h1><pre style='white-space: pre-wrap'>{escape(text)}</pre>"
    return page.encode("utf-8", "replace")


def make_server(live: Live, port: int) -> ThreadingHTTPServer:
    """A server on this machine's own address, which answers `/` and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page elsewhere may send a browser here under a name of its own.
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (HOST, "localhost") or self.path not in ("/", "/index.html"):
                self.send_error(404)
                return
            page = live.newest()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Refresh", str(REFRESH_S))
            self.end_headers()
            with suppress(ConnectionError):  # Who asked has gone.
                self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: every refresh would be a line."""

    return ThreadingHTTPServer((HOST, port), Handler)


def serve(
    build: Callable[[], Path], tables: Sequence[Path], *, port: int, before: str | None
) -> None:
    """Serve until interrupted. Raises TableError when the port is taken."""
    try:
        server = make_server(Live(build, tables, before), port)
    except OSError as error:
        raise TableError("--port", str(port), f"cannot be used ({error}); name another") from error
    with server:
        print(f"http://{HOST}:{server.server_address[1]}/ (Ctrl-C ends it)", file=sys.stderr)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
