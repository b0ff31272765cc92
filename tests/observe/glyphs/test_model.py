"""The tiny policy is a real Qwen2.5-VL with all three rotary axes in use."""

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from observe.config import BaseConfig
from observe.glyphs import questions
from observe.glyphs.model import build_policy
from observe.model.policy import load_policy
from observe.prompts import build_messages


def sample(policy, index=0):
    question = questions("train", index + 1)[index]
    messages = build_messages("think", question.text, question.options, 1)
    return policy.processor.sample(messages, question.open_images())


def last_logits(policy, one, positions_3L):
    with torch.no_grad():
        return policy.model(
            input_ids=one.token_ids_L[None],
            position_ids=positions_3L.unsqueeze(1),
            pixel_values=one.pixels_RD,
            image_grid_thw=one.grid_I3,
        ).logits[0, -1]


def test_it_has_about_a_million_parameters():
    policy = build_policy(BaseConfig(tokenizer_texts=400))
    assert 0.8e6 < sum(p.numel() for p in policy.model.parameters()) < 1.5e6


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["time", "height", "width"])
def test_every_rotary_axis_matters(untrained, axis):
    one = sample(untrained)
    positions = one.positions_3L.clone()
    is_image = one.token_ids_L == untrained.processor.image_pad_id
    positions[axis, is_image] = positions[axis, is_image].flip(0) + (axis == 0)
    before = last_logits(untrained, one, one.positions_3L)
    after = last_logits(untrained, one, positions)
    # Rounding in the single precision of the rotary embedding stays below 1e-6.
    assert (before - after).abs().max() > 1e-5


def test_shifting_all_positions_alike_changes_nothing(untrained):
    one = sample(untrained)
    before = last_logits(untrained, one, one.positions_3L)
    after = last_logits(untrained, one, one.positions_3L + 7)
    torch.testing.assert_close(before, after, rtol=0, atol=2e-6)


def test_the_picture_matters(untrained):
    one = sample(untrained)
    blank = type(one)(
        token_ids_L=one.token_ids_L,
        positions_3L=one.positions_3L,
        pixels_RD=torch.zeros_like(one.pixels_RD),
        grid_I3=one.grid_I3,
    )
    before = last_logits(untrained, one, one.positions_3L)
    assert (before - last_logits(untrained, blank, one.positions_3L)).abs().max() > 1e-4


def test_transformers_opens_what_is_saved(untrained, tmp_path):
    untrained.save(tmp_path)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float64)
    for name, tensor in untrained.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)
    one = sample(untrained)
    again = load_policy(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(
        last_logits(again, one, one.positions_3L),
        last_logits(untrained, one, one.positions_3L),
        rtol=0,
        atol=1e-13,  # A mapped file lies in memory in its own way, which may change a last bit.
    )
    assert set(model.generation_config.eos_token_id) == set(untrained.processor.eos_ids)


def test_weights_come_from_the_seed_alone():
    def weights(seed):
        torch.rand(seed + 3)
        return build_policy(
            BaseConfig(seed=seed, hidden_size=32, layers=1, tokenizer_texts=50)
        ).model.lm_head.weight

    assert torch.equal(weights(1), weights(1))
    assert weights(1).shape != weights(2).shape or not torch.equal(weights(1), weights(2))


def test_one_image_token_covers_one_cell(untrained):
    one = sample(untrained)
    assert int((one.token_ids_L == untrained.processor.image_pad_id).sum()) == 9
