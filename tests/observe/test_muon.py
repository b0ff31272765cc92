"""Muon over matrices of a shape together: torch's own, matrix by matrix, is the reference."""

import torch

from observe.muon import Muon


def test_the_steps_are_those_of_torchs_muon():
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 16), (8, 16), (48, 16), (16, 48), (16, 16), (48, 16)]
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    optimizers = [
        Muon([{"params": ours}], lr=0.02, weight_decay=0.01),
        torch.optim.Muon([{"params": theirs}], lr=0.02, weight_decay=0.01),
    ]
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        # Both iterate in bfloat16: where kernels differ, a last bit of it times the rate.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


def test_a_matrix_without_gradient_stays():
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    Muon([{"params": [parameter]}], lr=0.1).step()
    assert torch.equal(parameter, torch.ones(4, 4))
