"""The engine that samples on a rollout server, and goes on when the server dies."""

import dataclasses
import functools
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from observe.config import VllmConfig
from observe.errors import EngineError, InputError
from observe.model.policy import Policy
from observe.model.processor import Sample
from observe.rollout.engine import Completion, Finished, SamplingParams
from observe.rollout.prompt import prompt_from_sample, prompt_to_json
from observe.rollout.vllm import dtype_name, slices, write_weights

_ATTEMPTS = 3
"""Times that a request is made before a server that keeps dying over it is given up."""
_PAUSE_S = 0.25


class ServerGone(Exception):
    """The server does not answer: not started yet, ended, or unreachable."""


class StaleWeights(Exception):
    """The server holds other weights than the policy's, as after a restart."""


class ServerEngine:
    """Samples on a server (observe.rollout.server) that this engine starts, or is given.

    Completions depend on weights, prompts and seeds alone, so a request that the server did not
    live to answer is simply made again, once it is back and has the weights.
    """

    def __init__(self, policy: Policy, config: VllmConfig) -> None:
        self.policy = policy
        self.config = config
        self.launched = None if config.url else LaunchedServer(policy, config)
        self.restarts = 0
        """Times that the server was gone and came back."""
        self._weights = ""
        if self.launched:
            self.launched.start()
        else:
            self._wait_for_server()
        self.sync()

    @property
    def url(self) -> str:
        """Where the server listens."""
        return self.launched.url if self.launched else str(self.config.url).rstrip("/")

    def generate(
        self,
        samples: Sequence[Sample],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """See Engine.generate. The server sleeps afterwards, as rollout.vllm.sleep_level says."""
        groups: list[list[Completion]] = []
        for part in slices(len(samples), params, self.config):
            prompts = [
                prompt_from_sample(self.policy.processor, sample) for sample in samples[part]
            ]
            body = {
                "prompts": [prompt_to_json(prompt) for prompt in prompts],
                "params": dataclasses.asdict(params),
                "seeds": list(seeds[part]),
            }
            answer = self._insist(functools.partial(self._generate, body))
            groups.extend([Completion(**one) for one in group] for group in answer["groups"])
            if finished:
                finished(dict(enumerate(groups[part], part.start)))
        if self.config.sleep_level:
            self._insist(functools.partial(self._post, "/sleep", {}))
        return groups

    def sync(self) -> None:
        """Hand the policy's weights over, as a file that both sides see."""
        self._insist(self._send_weights)

    def close(self) -> None:
        """End the server if this engine started it."""
        if self.launched:
            self.launched.stop()

    def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._post("/generate", {**body, "weights": self._weights})
        except StaleWeights:
            self._send_weights()
            return self._post("/generate", {**body, "weights": self._weights})

    def _send_weights(self) -> dict[str, Any]:
        weights = uuid.uuid4().hex
        folder = self.config.sync_folder or tempfile.gettempdir()
        file = Path(folder) / f"observe-weights-{weights}.safetensors"
        try:
            write_weights(self.policy, file)
            answer = self._post("/weights", {"path": str(file.absolute()), "weights": weights})
        finally:
            file.unlink(missing_ok=True)
        self._weights = weights
        return answer

    def _insist(self, request: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Make a request until it is answered; a server that is gone is waited for."""
        for attempt in range(_ATTEMPTS):
            try:
                return request()
            except ServerGone as error:
                if attempt + 1 == _ATTEMPTS:
                    raise EngineError(
                        f"{self.url}: the rollout server died {_ATTEMPTS} times over one request "
                        f"({error}){self._log_tail()}"
                    ) from None
                print(f"{self.url}: the rollout server is gone ({error})", file=sys.stderr)
                if self.launched:
                    self.launched.start()
                else:
                    self._wait_for_server()
                self.restarts += 1
        raise AssertionError("unreachable")

    def _wait_for_server(self) -> None:
        """Wait until the server answers, at most start_timeout_s."""
        deadline = time.monotonic() + self.config.start_timeout_s
        while True:
            try:
                request_json(f"{self.url}/health", None, timeout_s=10)
                return
            except ServerGone as error:
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"{self.url}: no rollout server answers ({error}); start it with "
                        "`python -m observe.rollout.server --model FOLDER`, or leave "
                        "rollout.vllm.url null to have it started. Training goes on from its last "
                        "checkpoint when the command is given again"
                    ) from None
                time.sleep(_PAUSE_S)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return request_json(f"{self.url}{path}", body, timeout_s=self.config.request_timeout_s)

    def _log_tail(self) -> str:
        return f"; its log ends:\n{self.launched.log_tail()}" if self.launched else ""


class LaunchedServer:
    """A server process on this machine; it ends with the trainer, however that ends."""

    def __init__(self, policy: Policy, config: VllmConfig) -> None:
        self.config = config
        self.dtype = dtype_name(policy)
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="observe-server-")
        policy.save(Path(self._folder.name) / "model")
        self.log = Path(self._folder.name) / "log.txt"
        self._finalizer: weakref.finalize | None = None

    def start(self) -> None:
        """Start the process and wait until it answers; EngineError when it does not."""
        self.stop()
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "observe.rollout.server", "--end_with_stdin"]
        command += ["--model", str(Path(self._folder.name) / "model")]
        command += ["--port", str(port), "--dtype", self.dtype]
        for field in dataclasses.fields(self.config):
            value = getattr(self.config, field.name)
            if value is not None and field.name not in ("url", "devices"):
                command += [f"--{field.name}", str(value).lower() if value is True else str(value)]
        environment = dict(os.environ)
        if self.config.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.config.devices
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
            )
        self._finalizer = weakref.finalize(self, _end, self.process)
        deadline = time.monotonic() + self.config.start_timeout_s
        while True:
            try:
                request_json(f"{self.url}/health", None, timeout_s=10)
                return
            except ServerGone:
                code = self.process.poll()
                if code is not None:
                    message = f"the rollout server did not start (exit code {code}); its log ends:"
                    error = InputError if code == 2 else EngineError
                    raise error(f"{message}\n{self.log_tail()}") from None
                if time.monotonic() > deadline:
                    raise EngineError(
                        "the rollout server did not start within rollout.vllm.start_timeout_s "
                        f"({self.config.start_timeout_s:g} s); its log ends:\n{self.log_tail()}"
                    ) from None
                time.sleep(_PAUSE_S)

    def stop(self) -> None:
        """End the process, if it runs."""
        if self._finalizer:
            self._finalizer()

    def log_tail(self, lines: int = 12) -> str:
        """The last lines that the process wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def request_json(url: str, body: dict[str, Any] | None, *, timeout_s: float) -> dict[str, Any]:
    """One request, POST when there is a body.

    Raises ServerGone without an answer, StaleWeights, and what went wrong on the server as the
    InputError or EngineError that it was there.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    # Never through a proxy: the server is on this machine or in its network.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as response:
            return _parsed(response, url)
    except urllib.error.HTTPError as error:
        with error:
            answer = _parsed(error, url)
        kind = answer.get("kind")
        if kind == "stale":
            raise StaleWeights(answer["error"]) from None
        if kind == "input":
            raise InputError(answer["error"]) from None
        raise EngineError(f"{url}: {answer.get('error', error)}") from None
    except TimeoutError:
        if body is None:
            raise ServerGone("it does not say that it is alive") from None
        raise EngineError(
            f"{url}: no answer within {timeout_s:g} s (rollout.vllm.request_timeout_s)"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        # URLError is an OSError; a server that dies while it answers leaves the others.
        raise ServerGone(str(getattr(error, "reason", error)) or type(error).__name__) from None


def _parsed(response: IO[bytes], url: str) -> dict[str, Any]:
    data = response.read()
    try:
        return json.loads(data)
    except ValueError:
        raise EngineError(f"{url}: no rollout server, it answers {data[:80]!r}") from None


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin:
        process.stdin.close()
