"""A Hub on this machine: as much of its protocol as a download needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(folder: Path, repository: str) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder as a model repository; the address, and the paths that were asked for."""
    asked: list[str] = []
    files = {path.name: path for path in folder.iterdir() if path.is_file()}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            asked.append(f"{self.command} {path}")
            api = f"/api/models/{repository}"
            said: object = None
            if path in (api, f"{api}/revision/{COMMIT}"):
                said = self.info()
            elif path == f"{api}/tree/{COMMIT}":
                said = self.tree()
            if said is not None:
                self.send(json.dumps(said).encode(), {"Content-Type": "application/json"})
                return
            name = path.removeprefix(f"/{repository}/resolve/{COMMIT}/")
            if name not in files:
                self.send_error(404)
                return
            content = files[name].read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            self.send(content, headers, body=body)

        def info(self) -> dict[str, object]:
            siblings = []
            for name, path in files.items():
                content = path.read_bytes()
                lfs = {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 134,
                }
                large = {"lfs": lfs} if name.endswith(".safetensors") else {}
                siblings.append({"rfilename": name, "size": len(content), "blobId": "x", **large})
            return {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}

        def tree(self) -> list[dict[str, object]]:
            rows = []
            for name, path in files.items():
                content = path.read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                large = {"lfs": {"oid": digest, "size": len(content), "pointerSize": 134}}
                row = {"type": "file", "path": name, "size": len(content), "oid": "x" * 40}
                rows.append(row | (large if name.endswith(".safetensors") else {}))
            return rows

        def send(self, content: bytes, headers: dict[str, str], *, body: bool = True) -> None:
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body and self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
