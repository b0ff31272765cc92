"""vLLM in a process of its own, on other devices than the trainer: ``python -m
observe.rollout.server --model FOLDER``.

Requests and answers are JSON over HTTP:

| request        | body                            | answer                               |
|----------------|---------------------------------|--------------------------------------|
| GET  /health   |                                 | boot, weights, asleep, dtype         |
| POST /weights  | path (safetensors), weights     | as /health                           |
| POST /generate | prompts, params, seeds, weights | groups of completions                |
| POST /sleep    |                                 | as /health                           |
| POST /wake     |                                 | as /health                           |

``weights`` is the name that the trainer gives to a state of its policy. A request for completions
from other weights than the server holds, as after a restart, is answered with 409, so that stale
samples cannot be taken for new ones. Errors carry ``error`` and ``kind``. There is no
authentication: listen where only the trainer can reach it.
"""

import dataclasses
import json
import os
import threading
import uuid
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from observe.config import VllmConfig
from observe.errors import EngineError, InputError
from observe.rollout.engine import SamplingParams
from observe.rollout.prompt import prompt_from_json
from observe.rollout.vllm import VllmModel

STALE = 409
"""The server does not hold the weights that were asked for."""


class RolloutServer:
    """The model and what it holds; one request at a time, health at any time."""

    def __init__(self, model: VllmModel, *, dtype: str) -> None:
        self.model = model
        self.dtype = dtype
        self.boot = uuid.uuid4().hex
        """Another one after each start."""
        self.weights: str | None = None
        """The trainer's name of the weights; None while they are those of the folder."""
        self._lock = threading.Lock()

    def health(self) -> dict[str, Any]:
        """What the server is and holds."""
        return {
            "boot": self.boot,
            "weights": self.weights,
            "asleep": self.model.asleep,
            "dtype": self.dtype,
        }

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer of a POST request."""
        actions = {
            "/generate": self._generate,
            "/weights": self._load,
            "/sleep": self._sleep,
            "/wake": self._wake,
        }
        if path not in actions:
            return 404, {"error": f"{path}: no such request", "kind": "request"}
        try:
            with self._lock:
                return actions[path](body)
        except InputError as error:
            return 400, {"error": str(error), "kind": "input"}
        except EngineError as error:
            return 500, {"error": str(error), "kind": "engine"}
        except (KeyError, TypeError, ValueError, OSError) as error:
            detail = f"{type(error).__name__}: {error}"
            return 400, {"error": f"{path}: bad request ({detail})", "kind": "request"}

    def _generate(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["weights"] != self.weights or not self.model.complete:
            return STALE, {"error": f"holds weights {self.weights}", "kind": "stale"}
        prompts = [prompt_from_json(prompt) for prompt in body["prompts"]]
        groups = self.model.generate(prompts, SamplingParams(**body["params"]), body["seeds"])
        return 200, {
            "groups": [[dataclasses.asdict(completion) for completion in g] for g in groups]
        }

    def _load(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        path = Path(body["path"])
        if not path.is_file():
            raise InputError(
                f"{path}: the rollout server does not see this file; rollout.vllm.sync_folder must "
                "be a folder that trainer and server share"
            )
        self.weights = None
        self.model.load_weights(path)
        self.weights = str(body["weights"])
        return 200, self.health()

    def _sleep(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.model.sleep()
        return 200, self.health()

    def _wake(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.model.wake()
        return 200, self.health()


def serve(server: RolloutServer, *, host: str, port: int) -> None:
    """Answer requests until the process is ended."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/health":
                self._send(200, server.health())
            else:
                self._send(404, {"error": f"{self.path}: no such request", "kind": "request"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                data = json.loads(body or b"{}")
            except ValueError as error:
                self._send(400, {"error": f"{self.path}: no JSON ({error})", "kind": "request"})
                return
            self._send(*server.answer(self.path, data))

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Silent; what goes wrong is in the answers."""

    try:
        listener = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise InputError(f"--port: cannot listen on {host}:{port} ({error})") from None
    print(f"rollout server: http://{host}:{listener.server_port}", flush=True)
    listener.serve_forever()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (2 for bad input)."""
    from jsonargparse import ArgumentParser

    from observe.cli import exit_code

    parser = ArgumentParser(
        prog="python -m observe.rollout.server",
        description="Sample with vLLM for a trainer in another process (rollout.engine: server).",
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="Folder of the model that training starts from."
    )
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen on.")
    parser.add_argument("--port", type=int, default=8200, help="Port; 0 takes a free one.")
    parser.add_argument(
        "--dtype",
        type=Literal["float32", "bfloat16", "float16"],
        default="float32",
        help="Type that vLLM computes in.",
    )
    parser.add_argument(
        "--end_with_stdin",
        action="store_true",
        help="End when standard input closes, as it does when the trainer that started it dies.",
    )
    parser.add_class_arguments(VllmConfig)
    given = parser.parse_args(arguments).as_dict()
    model, host, port, dtype = (given.pop(name) for name in ("model", "host", "port", "dtype"))
    if given.pop("end_with_stdin"):
        threading.Thread(target=_end_with_stdin, daemon=True).start()

    def command() -> None:
        if not (model / "config.json").exists():
            raise InputError(f"--model: {model} is no model folder (config.json is missing)")
        loaded = VllmModel(model, VllmConfig(**given), dtype=dtype)
        serve(RolloutServer(loaded, dtype=dtype), host=host, port=port)

    return exit_code(command)


def _end_with_stdin() -> None:
    # Not through sys.stdin, whose lock a thread that still reads would hold when Python ends.
    while os.read(0, 4096):
        pass
    # At once, whatever vLLM is doing: nobody waits for its answer any more.
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main())
