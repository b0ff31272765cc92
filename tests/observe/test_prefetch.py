"""Prompts processed ahead: the same ones, once each, whoever processes them."""

import threading
from types import SimpleNamespace

import pytest
from small_runs import changed, run, untimed

from observe.errors import InputError
from observe.prefetch import Prompts


def question(name):
    return SimpleNamespace(id=name)


class Processor:
    """Notes which thread processed what; ``gate`` holds it back."""

    def __init__(self):
        self.calls, self.gate = [], threading.Event()
        self.gate.set()

    def __call__(self, one):
        self.gate.wait()
        self.calls.append((one.id, threading.current_thread() is threading.main_thread()))
        if one.id == "broken":
            raise InputError("broken.png: cannot be read")
        return f"prompt of {one.id}"


def test_what_is_expected_is_processed_by_other_threads_and_once():
    process = Processor()
    prompts = Prompts(process, threads=2)
    prompts.expect([question("a"), question("b")])
    assert [prompts.get(question(n)) for n in "aba"] == [f"prompt of {n}" for n in "aba"]
    prompts.expect([question("b"), question("c")])
    assert prompts.get(question("c")) == "prompt of c"
    prompts.close()
    assert sorted(process.calls) == [("a", False), ("b", False), ("c", False)]


def test_without_threads_a_prompt_is_processed_where_it_is_asked_for():
    process = Processor()
    prompts = Prompts(process, threads=0)
    prompts.expect([question("a"), question("b")])
    assert process.calls == []
    assert prompts.get(question("b")) == prompts.get(question("b")) == "prompt of b"
    assert process.calls == [("b", True)]


@pytest.mark.parametrize("threads", [0, 1])
def test_what_is_no_longer_expected_is_forgotten(threads):
    process = Processor()
    prompts = Prompts(process, threads=threads)
    for _ in range(2):
        prompts.expect([question("a")])
        prompts.get(question("a"))
        prompts.expect([])
    prompts.close()
    assert [name for name, _ in process.calls] == ["a", "a"]


def test_an_unreadable_image_is_raised_where_the_prompt_is_asked_for():
    prompts = Prompts(Processor(), threads=1)
    prompts.expect([question("broken"), question("a")])
    assert prompts.get(question("a")) == "prompt of a"
    with pytest.raises(InputError, match=r"broken\.png"):
        prompts.get(question("broken"))
    prompts.close()


def test_closing_drops_what_was_not_begun():
    process = Processor()
    process.gate.clear()
    prompts = Prompts(process, threads=1)
    prompts.expect([question(str(i)) for i in range(50)])
    threading.Timer(0.2, process.gate.set).start()
    prompts.close()
    assert len(process.calls) <= 1


def test_a_training_is_the_same_with_and_without_prefetching(base, tmp_path):
    metrics = []
    for threads in (0, 2):
        out = tmp_path / str(threads)
        run(changed(prefetch_threads=threads), out, base)
        metrics.append(untimed(out))
    assert metrics[0] == metrics[1]
