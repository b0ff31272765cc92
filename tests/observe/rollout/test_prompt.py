"""Prompts for other engines: one placeholder per image, pixels as the trainer has them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from observe.errors import EngineError
from observe.prompts import build_messages
from observe.rollout.prompt import prompt_from_json, prompt_from_sample, prompt_to_json


def noise(width, height, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def sample_of(policy, *images):
    messages = build_messages("think", "How many?", None, len(images))
    return policy.processor.sample(messages, images)


@pytest.mark.parametrize(
    "images",
    [[], [noise(48, 48)], [noise(48, 48), noise(96, 64, seed=1), noise(70, 50, seed=2)]],
    ids=["none", "one", "several"],
)
def test_an_image_has_one_placeholder_and_the_ids_expand_to_the_trainer_s(untrained, images):
    sample = sample_of(untrained, *images)
    prompt = prompt_from_sample(untrained.processor, sample)
    pad, expanded = untrained.processor.image_pad_id, []
    counts = iter((sample.grid_I3.prod(-1) // 4).tolist())
    for token in prompt.token_ids:
        expanded += [token] * next(counts) if token == pad else [token]
    assert prompt.token_ids.count(pad) == len(images)
    assert expanded == prompt.expanded_ids == sample.token_ids_L.tolist()


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
@pytest.mark.parametrize("size", [(48, 48), (53, 75), (20, 200)])
def test_images_are_handed_over_at_the_size_of_their_patches(untrained, mode, size):
    """Processing them once more gives the very same pixels."""
    sample = sample_of(untrained, noise(*size, mode))
    (image,) = prompt_from_sample(untrained.processor, sample).images
    assert image.mode == "RGB"
    again = sample_of(untrained, image)
    assert torch.equal(again.grid_I3, sample.grid_I3)
    assert torch.equal(again.pixels_RD, sample.pixels_RD)


def test_json_loses_nothing(untrained):
    prompt = prompt_from_sample(
        untrained.processor, sample_of(untrained, noise(53, 75), noise(48, 48))
    )
    back = prompt_from_json(json.loads(json.dumps(prompt_to_json(prompt))))
    assert (back.token_ids, back.expanded_ids) == (prompt.token_ids, prompt.expanded_ids)
    for image, same in zip(prompt.images, back.images, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(same))


@pytest.mark.parametrize(
    ("change", "at"),
    [
        (lambda ids: [*ids[:5], 0, *ids[6:]], 5),
        (lambda ids: ids[:-2], -2),
        (lambda ids: [*ids, 1], 0),
    ],
    ids=["another", "too short", "too long"],
)
def test_the_first_difference_is_named(untrained, change, at):
    prompt = prompt_from_sample(untrained.processor, sample_of(untrained, noise(48, 48)))
    prompt.check(prompt.expanded_ids)
    length = len(prompt.expanded_ids)
    at = at if at > 0 else length + at
    with pytest.raises(EngineError, match=f"for {length}, the first difference at {at} "):
        prompt.check(change(prompt.expanded_ids))
