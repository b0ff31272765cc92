"""A small server with OpenAI's chat completions, on this machine alone: the model of a folder,
sampled by the native engine."""

import base64
import contextlib
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from observe.rollout.engine import SamplingParams
from observe.rollout.native import NativeEngine

MODEL = "tiny"


class Server:
    """What was asked, and how to misbehave."""

    def __init__(self, policy, *, key=""):
        self.engine = NativeEngine(policy)
        self.key = key
        self.url = ""
        self.bodies = []
        """Requests that were answered, in order."""
        self.troubles = []
        """(status, body, headers) of the next answers, before any is a real one."""
        self.requests = 0
        self.busiest = 0
        """Most requests that were under way at a time."""
        self.pause_s = 0.0
        self._running = 0
        self._lock = threading.Lock()
        self._model_lock = threading.Lock()

    @contextlib.contextmanager
    def counted(self):
        with self._lock:
            self.requests += 1
            self._running += 1
            self.busiest = max(self.busiest, self._running)
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def answer(self, path, headers, body):
        with self._lock:
            if self.troubles:
                return self.troubles.pop(0)
        time.sleep(self.pause_s)
        if path != "/v1/chat/completions" or body["model"] != MODEL:
            return 404, {"error": {"message": "no such model"}}, {}
        if self.key and headers.get("Authorization") != f"Bearer {self.key}":
            return 401, {"error": {"message": "wrong key"}}, {}
        with self._lock:
            self.bodies.append(body)
        with self._model_lock:
            return 200, self.complete(body), {}

    def complete(self, body):
        messages, images = to_chat(body["messages"])
        params = SamplingParams(
            max_new_tokens=body["max_tokens"],
            temperature=body.get("temperature", 1.0),
            top_p=body.get("top_p", 1.0),
            top_k=body.get("top_k", 0),
        )
        sample = self.engine.policy.processor.sample(messages, images)
        ((completion,),) = self.engine.generate([sample], params, [body.get("seed", 0)])
        return {
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": completion.text},
                    "finish_reason": "length" if completion.truncated else "stop",
                }
            ],
            "usage": {
                "prompt_tokens": sample.length,
                "completion_tokens": len(completion.token_ids),
            },
        }


def to_chat(messages):
    chat, images = [], []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        kept = []
        for part in parts:
            if part["type"] == "image_url":
                head, _, data = part["image_url"]["url"].partition(",")
                assert head == "data:image/png;base64"
                images.append(Image.open(io.BytesIO(base64.b64decode(data))))
                part = {"type": "image"}
            kept.append(part)
        chat.append({"role": message["role"], "content": kept})
    return chat, images


@contextlib.contextmanager
def serving(policy, **settings):
    """The server, running at its ``url``."""
    server = Server(policy, **settings)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            with server.counted():
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer, headers = server.answer(self.path, self.headers, body)
            # Who has the answer may ask again at once: this request is over.
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        server.url = f"http://127.0.0.1:{listener.server_port}/v1"
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield server
        listener.shutdown()
