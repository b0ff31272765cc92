"""vLLM asleep on a GPU: in which order its memory is taken back, told by a stand-in for its device.

On a CPU vLLM does not sleep; tests/vllm has the rest, on a real one.
"""

from types import SimpleNamespace

import pytest

from observe.config import VllmConfig
from observe.rollout.vllm import VllmModel

TAGS = {"weights", "kv_cache"}


class Device:
    """What vLLM's allocator (CuMemAllocator) does with its two kinds of memory, and refuses."""

    def __init__(self):
        self.mapped = set(TAGS)
        self.llm_engine = SimpleNamespace(reset_encoder_cache=lambda: None)

    def sleep(self, level):
        assert self.mapped == TAGS, "memory that is not there cannot be unmapped"
        self.mapped = set()

    def wake_up(self, tags=None):
        wanted = set(tags or TAGS)
        assert not wanted & self.mapped, "memory that is there cannot be mapped again"
        self.mapped |= wanted

    def collective_rpc(self, method, args=()):
        assert "weights" in self.mapped

    def reset_prefix_cache(self):
        pass


@pytest.fixture(params=[1, 2])
def model(request):
    made = VllmModel.__new__(VllmModel)
    made.config = VllmConfig(sleep_level=request.param)
    made.llm, made.on_cpu = Device(), False
    made.asleep, made.weights_awake, made.complete = False, True, True
    return made


def test_memory_is_taken_back_once(model):
    for _ in range(2):
        model.sleep()
        assert model.llm.mapped == set()
        model.load_weights([])
        model.load_weights([])
        assert model.llm.mapped == {"weights"} and model.asleep
        model.wake()
        assert model.llm.mapped == TAGS and model.complete and not model.asleep


def test_without_new_weights_all_is_taken_back(model):
    model.sleep()
    model.wake()
    assert model.llm.mapped == TAGS


def test_new_weights_for_a_model_that_is_awake(model):
    model.load_weights([])
    model.sleep()
    assert model.llm.mapped == set()
