"""What is said when there is no rollout server, or no vLLM. With vLLM: tests/vllm."""

import http.server
import importlib.util
import os
import socket
import threading

import pytest

from observe.config import RolloutConfig, VllmConfig
from observe.errors import EngineError, InputError
from observe.glyphs.model import build_policy
from observe.rollout.client import ServerEngine, ServerGone, request_json
from observe.rollout.factory import make_engine
from observe.rollout.native import NativeEngine
from observe.rollout.server import main
from observe.rollout.vllm import VllmModel

absent = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here"
)


@pytest.fixture(scope="module")
def policy():
    from conftest import SMALL

    return build_policy(SMALL)


def test_without_a_server_the_error_names_the_command_that_starts_one(policy):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        config = VllmConfig(url=url, start_timeout_s=0.3)
        with pytest.raises(EngineError, match=f"{url}.*observe.rollout.server --model"):
            ServerEngine(policy, config)


def test_a_server_of_another_kind_is_told_apart(policy):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        config = VllmConfig(url=f"http://127.0.0.1:{other.server_port}", start_timeout_s=1)
        with pytest.raises(EngineError, match="no rollout server, it answers b'hello'"):
            ServerEngine(policy, config)
        other.shutdown()


def test_a_server_that_dies_while_it_answers_is_gone():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def die():
            connection, _ = listener.accept()
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            connection.close()

        threading.Thread(target=die, daemon=True).start()
        with pytest.raises(ServerGone):
            request_json(f"http://127.0.0.1:{listener.getsockname()[1]}/x", {}, timeout_s=5)


@absent
@pytest.mark.parametrize("engine", ["vllm", "server"])
def test_without_vllm_the_error_says_what_to_install(policy, engine):
    with pytest.raises(InputError, match="pip install vllm"):
        make_engine(policy, RolloutConfig(engine=engine))


@absent
def test_vllm_does_not_wait_for_the_group_of_torchrun(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(InputError, match="vLLM cannot be imported"):
        VllmModel(tmp_path, VllmConfig(), dtype="float32")
    assert "TORCHELASTIC_USE_AGENT_STORE" not in os.environ


def test_the_native_engine_is_the_one_that_is_taken_by_default(policy):
    assert isinstance(make_engine(policy, RolloutConfig()), NativeEngine)


def test_the_server_wants_a_model_folder(tmp_path, capsys):
    assert main(["--model", str(tmp_path)]) == 2
    assert "config.json is missing" in capsys.readouterr().err
