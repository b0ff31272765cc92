"""Batches: padding on the left for prompts, on the right for completions, pixels in order."""

import torch

from observe.model.batch import batch_prompts, pad_completions
from observe.model.processor import Sample

PAD = 99


def sample(length, images=0):
    return Sample(
        token_ids_L=torch.arange(length),
        positions_3L=torch.arange(3 * length).reshape(3, length),
        pixels_RD=torch.full((4 * images, 6), float(length)) if images else torch.zeros(0, 0),
        grid_I3=torch.tensor([[1, 2, 2]] * images) if images else torch.zeros(0, 3).long(),
    )


def test_prompts_are_padded_on_the_left():
    batch = batch_prompts([sample(2), sample(4)], pad_id=PAD)
    assert batch.token_ids_BL.tolist() == [[PAD, PAD, 0, 1], [0, 1, 2, 3]]
    assert batch.mask_BL.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert batch.positions_3BL[:, 0, 2:].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert torch.equal(batch.positions_3BL[:, 1], sample(4).positions_3L)


def test_the_next_position_is_beyond_every_axis():
    assert batch_prompts([sample(2), sample(4)], pad_id=PAD).next_position_B.tolist() == [6, 12]


def test_pixels_are_put_together_in_the_order_of_the_prompts():
    batch = batch_prompts([sample(3, images=1), sample(2), sample(5, images=2)], pad_id=PAD)
    assert batch.pixels_RD[:, 0].tolist() == [3.0] * 4 + [5.0] * 8
    assert batch.grid_I3.shape == (3, 3)


def test_prompts_without_images_have_no_pixels():
    batch = batch_prompts([sample(3), sample(2)], pad_id=PAD)
    assert batch.pixels_RD.shape[0] == 0
    assert batch.grid_I3.shape == (0, 3)


def test_completions_are_padded_on_the_right():
    token_ids, mask = pad_completions([[1, 2, 3], [4], []], pad_id=PAD)
    assert token_ids.tolist() == [[1, 2, 3], [4, PAD, PAD], [PAD, PAD, PAD]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
