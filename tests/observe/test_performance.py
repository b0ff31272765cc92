"""What a step costs, against counts by hand."""

import time

import pytest
import torch

from observe import performance
from observe.data.sources import load_questions
from observe.performance import (
    Clock,
    max_memory_gb,
    mean_performance,
    peak_flops,
    performance_metrics,
    step_flops,
)
from observe.prompts import build_messages


@pytest.fixture(scope="module")
def samples(untrained):
    return [
        untrained.processor.sample(
            build_messages("think", question.text, question.options), question.open_images()
        )
        for question in load_questions("glyphs", size=2, seed=0)
    ]


def test_laps_split_the_step_and_add_up_to_it():
    clock = Clock()
    for _ in range(2):
        clock.start()
        for name in ("gen", "update", "gen"):
            time.sleep(0.002)
            clock.lap(name)
    found = clock.metrics()
    assert set(found) == {"timing_s/gen", "timing_s/update", "timing_s/step"}
    assert found["timing_s/step"] == found["timing_s/gen"] + found["timing_s/update"]
    assert found["timing_s/gen"] > 0.004 and found["timing_s/update"] > 0.002


def test_flops_are_those_of_the_matrices_counted_by_torch(untrained, samples):
    """A forward pass over one prompt, its attention scores aside."""
    from torch.utils.flop_counter import FlopCounterMode

    sample = samples[0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        untrained.model(
            input_ids=sample.token_ids_L[None],
            position_ids=sample.positions_3L[:, None],
            pixel_values=sample.pixels_RD.double(),
            image_grid_thw=sample.grid_I3,
        )
    counted = counter.get_total_flops()
    products = step_flops(untrained.model, [sample], [0], [False])
    # Scores and small vectors are the difference; this model's head is large beside its layers.
    assert products == pytest.approx(counted, rel=0.25)


def test_training_costs_four_forward_passes_and_sampling_one(untrained, samples):
    sampled = step_flops(untrained.model, samples, [100, 50], [False, False])
    trained = step_flops(untrained.model, samples, [100, 50], [True, True])
    assert trained == pytest.approx(4 * sampled)
    one = step_flops(untrained.model, samples, [100, 50], [True, False])
    assert sampled < one < trained


def test_on_a_cpu_there_is_memory_and_no_utilisation(untrained, samples):
    found = performance_metrics(
        untrained, samples, [10, 10], [True, True], 1.0, dtype=torch.float32
    )
    assert set(found) == {"perf/max_memory_gb"}
    assert 0.1 < found["perf/max_memory_gb"] < 100


def test_the_utilisation_is_of_the_rate_in_the_type_that_is_computed_in(
    untrained, samples, monkeypatch
):
    rates = {torch.bfloat16: 2e12, torch.float32: 1e12}
    monkeypatch.setattr(performance, "peak_flops", lambda device, dtype: rates[dtype])
    # Weights that are spread over processes are kept in float32 whatever it is.
    one, other = (
        performance_metrics(untrained, samples, [10, 10], [True, True], 1.0, dtype=dtype)
        for dtype in rates
    )
    assert other["perf/mfu"] == pytest.approx(2 * one["perf/mfu"])


def test_of_several_devices_the_fullest_and_the_mean_are_told():
    one = {"perf/max_memory_gb": 2.0, "perf/mfu": 0.25}
    other = {"perf/max_memory_gb": 3.0, "perf/mfu": 0.5}
    assert mean_performance([one, other]) == {"perf/max_memory_gb": 3.0, "perf/mfu": 0.375}
    assert mean_performance([{"perf/max_memory_gb": 2.0}]) == {"perf/max_memory_gb": 2.0}


def test_memory_is_a_peak(untrained):
    before = max_memory_gb(torch.device("cpu"))
    held = torch.ones(60_000_000)
    during = max_memory_gb(torch.device("cpu"))
    del held
    assert max_memory_gb(torch.device("cpu")) >= during > before - 1e-9
    assert during >= 0.24


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_memory_is_the_allocators_and_known_devices_have_a_rate():
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    held = torch.ones(250_000_000, device=device)
    assert max_memory_gb(device) == pytest.approx(1.0, rel=0.05)
    del held
    rate = peak_flops(device, torch.bfloat16)
    if rate is not None:
        assert peak_flops(device, torch.float32) == rate / 2
