"""Samples: placeholders, rotary positions and pixels agree with Qwen2.5-VL's own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from observe.errors import InputError
from observe.model.processor import Processor


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def messages(images, text="How many circles?"):
    parts = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


SIZES = {
    "no image": [],
    "one": [(48, 48)],
    "wide": [(96, 32)],
    "tall and wide": [(16, 80), (64, 32)],
    "two alike": [(48, 48), (48, 48)],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_positions_are_those_of_get_rope_index(untrained, sizes):
    images = [picture(*size) for size in sizes]
    sample = untrained.processor.sample(messages(len(images)), images)
    token_types = (sample.token_ids_L == untrained.processor.image_pad_id).int()
    expected, delta = untrained.model.model.get_rope_index(
        sample.token_ids_L[None],
        mm_token_type_ids=token_types[None],
        image_grid_thw=sample.grid_I3 if images else None,
    )
    assert torch.equal(sample.positions_3L, expected[:, 0])
    assert sample.next_position == sample.length + int(delta)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_every_image_has_its_tokens_and_its_patches(untrained, sizes):
    sample = untrained.processor.sample(messages(len(sizes)), [picture(*size) for size in sizes])
    pads = sample.token_ids_L == untrained.processor.image_pad_id
    cells = sum(width // 16 * (height // 16) for width, height in sizes)
    assert int(pads.sum()) == cells
    assert sample.pixels_RD.shape[0] == 4 * cells
    assert sample.grid_I3.tolist() == [[1, h // 8, w // 8] for w, h in sizes]


def test_the_images_keep_their_order(untrained):
    one, two = picture(48, 48, seed=1), picture(32, 32, seed=2)
    both = untrained.processor.sample(messages(2), [one, two]).pixels_RD
    alone = [untrained.processor.sample(messages(1), [image]).pixels_RD for image in (one, two)]
    assert torch.equal(both, torch.cat(alone))


@pytest.mark.parametrize(("placeholders", "images"), [(0, 1), (1, 0), (2, 1)])
def test_placeholders_without_images_are_refused(untrained, placeholders, images):
    with pytest.raises(InputError, match=f"{placeholders} image placeholders for {images} images"):
        untrained.processor.sample(messages(placeholders), [picture(48, 48)] * images)


def test_a_long_prompt_is_not_truncated(untrained):
    text = "How many circles? " * 2000
    sample = untrained.processor.sample(messages(1, text), [picture(48, 48)])
    assert untrained.processor.decode(sample.token_ids_L.tolist()).count("circles") == 2000


def test_decoding_leaves_special_tokens_out_and_tags_in(untrained):
    processor = untrained.processor
    ids = [*processor.encode("<think>red 1</think>"), *processor.eos_ids, *processor.banned_ids]
    assert processor.decode(ids) == "<think>red 1</think>"


def test_it_knows_the_ids_that_end_and_the_ids_that_must_not_be_sampled(untrained):
    processor = untrained.processor
    names = processor.tokenizer.convert_ids_to_tokens
    assert names(processor.eos_ids) == ["<|im_end|>", "<|endoftext|>"]
    assert len(processor.banned_ids) == 5
    assert processor.image_pad_id in processor.banned_ids
    assert not set(processor.banned_ids) & set(processor.eos_ids)


def test_a_folder_without_a_processor_is_named(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        Processor.load(tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        Processor.load(tmp_path / "nowhere" / "checkpoint")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_files_are_named_with_their_folder(untrained, tmp_path, name):
    untrained.processor.save(tmp_path)
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert json.loads(text)
    (tmp_path / name).write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(InputError, match=str(tmp_path)):
        Processor.load(tmp_path)
