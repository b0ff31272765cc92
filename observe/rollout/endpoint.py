"""Any server that speaks OpenAI's chat completions as an engine.

The server has its own template, tokenizer and image processing, so a sample carries the chat and
the images alone; images travel as PNG in data URIs, which loses nothing.
"""

import base64
import hashlib
import io
import json
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any

import torch
from PIL import Image

from observe.config import EndpointConfig
from observe.errors import EngineError, InputError
from observe.model.processor import PromptSize, Sample
from observe.rollout.engine import Completion, Finished, SamplingParams

_MAX_PAUSE_S = 60.0
_MAX_ASKED_PAUSE_S = 600.0
"""Longest pause that a server is granted when it names one."""
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""HTTP statuses after which the same request can succeed later."""


class EndpointProcessor:
    """Leaves chats and images as they are: the server does the rest."""

    name = "endpoint"
    chat_template = "the server's own"

    def sample(self, messages: list[dict[str, Any]], images: Sequence[Image.Image]) -> Sample:
        """A chat and its images; raises InputError when their numbers differ."""
        placeholders = sum(part.get("type") == "image" for m in messages for part in m["content"])
        if placeholders != len(images):
            raise InputError(f"{placeholders} image placeholders for {len(images)} images")
        return Sample(
            token_ids_L=torch.zeros(0, dtype=torch.long),
            positions_3L=torch.zeros(3, 0, dtype=torch.long),
            pixels_RD=torch.zeros(0, 0),
            grid_I3=torch.zeros(0, 3, dtype=torch.long),
            # They may be decoded when they are looked at: in `to_messages`, few at a time.
            images=images,
            messages=tuple(messages),
        )

    def prompt_size(
        self, messages: list[dict[str, Any]], images: Sequence[Image.Image]
    ) -> PromptSize:
        """Unknown here: 0."""
        return PromptSize(length=0, image_tokens=0)


class EndpointEngine:
    """Asks a server, several requests at a time, and again when it is busy or out of reach."""

    def __init__(self, config: EndpointConfig) -> None:
        """The server is asked for nothing yet. Raises InputError for an address that is none."""
        address = urllib.parse.urlsplit(config.url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputError(
                f"endpoint.url: {config.url!r} is no address; expected one as in "
                "http://127.0.0.1:8000/v1"
            )
        self.config = config
        self._key = os.environ.get(config.key_variable, "").strip()
        self._extra = json.loads(config.extra)
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if address.hostname in ("localhost", "127.0.0.1", "::1"):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def generate(
        self,
        samples: Sequence[Sample],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """See Engine.generate; how far a seed decides about a completion is up to the server.

        Raises InputError when the server refuses a request, EngineError when it stays busy, out of
        reach, or answers something else. What is answered before is given to ``finished``.
        """
        draws = params.n if params.temperature > 0 else 1
        groups: list[list[Completion | None]] = [[None] * draws for _ in samples]
        left = [draws] * len(samples)
        jobs = iter((i, j) for i in range(len(samples)) for j in range(draws))
        running: dict[Future[Completion], tuple[int, int]] = {}
        failure: Exception | None = None
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            while True:
                # Images are encoded when their turn comes, so that few are in memory.
                while failure is None and len(running) < self.config.concurrency:
                    job = next(jobs, None)
                    if job is None:
                        break
                    i, j = job
                    running[pool.submit(self._complete, samples[i], params, f"{seeds[i]}/{j}")] = (
                        job
                    )
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    i, j = running.pop(future)
                    error = future.exception()
                    if isinstance(error, Exception):
                        failure = failure or error
                        continue
                    groups[i][j] = future.result()
                    left[i] -= 1
                    if finished and not left[i]:
                        finished({i: self._group(groups[i], params)})
        if failure is not None:
            raise failure
        return [self._group(group, params) for group in groups]

    def sync(self) -> None:
        """Nothing to do: the weights are the server's."""

    def _group(
        self, group: Sequence[Completion | None], params: SamplingParams
    ) -> list[Completion]:
        whole = [completion for completion in group if completion is not None]
        return whole if params.temperature > 0 else whole * params.n

    def _complete(self, sample: Sample, params: SamplingParams, seed: str) -> Completion:
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": to_messages(sample),
            self.config.limit_key: params.max_new_tokens,
            "temperature": params.temperature,
        }
        if params.temperature > 0:
            # Servers take integers of 32 bits at least.
            digest = hashlib.sha256(f"endpoint/{seed}".encode()).digest()
            body["seed"] = int.from_bytes(digest[:4], "big") >> 1
        if params.top_p < 1:
            body["top_p"] = params.top_p
        if params.top_k:
            body["top_k"] = params.top_k
        answer = self._insist({**body, **self._extra})
        try:
            (choice,) = answer["choices"]
            text = choice["message"].get("content") or ""
            tokens = int(answer["usage"]["completion_tokens"])
            truncated = choice["finish_reason"] == "length"
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EngineError(
                f"{self.config.url}: not an answer of OpenAI's chat completions "
                f"({type(error).__name__}: {error}): {json.dumps(answer)[:300]}"
            ) from None
        # Half a surrogate pair is valid JSON, and no text.
        text = text.encode("utf-8", "replace").decode("utf-8")
        return Completion(token_ids=[], text=text, truncated=truncated, counted=tokens)

    def _insist(self, body: dict[str, Any]) -> dict[str, Any]:
        """Make a request until it is answered, at most ``retries`` times more."""
        data = json.dumps(body).encode()
        for attempt in range(self.config.retries + 1):
            try:
                return self._post(data)
            except _Later as later:
                if attempt == self.config.retries:
                    raise EngineError(
                        f"{self.config.url}: no answer after {attempt + 1} requests ({later}); "
                        "what was answered is kept, and the same command goes on from there"
                    ) from None
                pause = min(self.config.backoff_s * 2**attempt, _MAX_PAUSE_S)
                # Spread, lest all that were refused together come back together.
                time.sleep(max(later.pause_s, pause * random.uniform(0.5, 1.0)))
        raise AssertionError("unreachable")

    def _post(self, data: bytes) -> dict[str, Any]:
        """One request; _Later when it can be made again."""
        url = self.config.url.rstrip("/") + "/chat/completions"
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(url, data, headers)
        try:
            with self._opener.open(request, timeout=self.config.timeout_s) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(2000).decode("utf-8", "replace").strip()
            message = f"HTTP {error.code}: {said[:500] or error.reason}"
            if error.code in _BUSY:
                raise _Later(message, _asked_pause(error.headers)) from None
            remedy = ""
            if error.code in (401, 403):
                held = "holds one" if self._key else "is not set"
                remedy = f"; the key is read from {self.config.key_variable}, which {held}"
            raise InputError(f"{url}: the server refuses the request ({message}){remedy}") from None
        except (OSError, HTTPException) as error:
            # URLError and TimeoutError are OSErrors.
            raise _Later(str(getattr(error, "reason", error)) or type(error).__name__) from None
        try:
            return json.loads(answer)
        except ValueError:
            raise EngineError(f"{url}: answers no JSON but {answer[:80]!r}") from None


class _Later(Exception):
    """The request was not answered, and can be made again."""

    def __init__(self, message: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.pause_s = pause_s
        """The pause that the server asks for."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are refused: the key would go wherever they point."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def to_messages(sample: Sample) -> list[dict[str, Any]]:
    """A sample's chat in OpenAI's form, its images as data URIs."""
    images = iter(sample.images)
    messages = []
    for message in sample.messages:
        parts = [
            {"type": "image_url", "image_url": {"url": _data_uri(next(images))}}
            if part["type"] == "image"
            else {"type": "text", "text": part["text"]}
            for part in message["content"]
        ]
        alone = len(parts) == 1 and parts[0]["type"] == "text"
        # Some servers take a system message as a string only.
        content = parts[0]["text"] if alone else parts
        messages.append({"role": message["role"], "content": content})
    return messages


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _asked_pause(headers: Message) -> float:
    """Seconds that a Retry-After header asks for; 0 without one."""
    value = headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return min(max(seconds, 0.0), _MAX_ASKED_PAUSE_S)
