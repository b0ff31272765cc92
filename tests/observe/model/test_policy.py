"""Policies: saved and loaded bit by bit; what cannot be loaded is named."""

import pytest
import torch
from dense import padded

from observe.errors import InputError
from observe.glyphs import questions
from observe.model.batch import pack
from observe.model.policy import load_policy
from observe.prompts import build_messages


def prompts(policy, images=(1, 0, 2)):
    return [
        policy.processor.sample(
            build_messages("think", question.text, (), number), question.open_images() * number
        )
        for number, question in zip(images, questions("train", 3), strict=True)
    ]


def test_a_saved_policy_is_the_same_policy(untrained, tmp_path):
    untrained.save(tmp_path)
    again = load_policy(tmp_path, dtype=torch.float64)
    for name, tensor in untrained.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)
    ours, theirs = prompts(untrained), prompts(again)
    for one, two in zip(ours, theirs, strict=True):
        assert torch.equal(one.token_ids_L, two.token_ids_L)
        assert torch.equal(one.pixels_RD, two.pixels_RD)


def test_a_packed_row_has_the_hidden_states_that_the_model_makes_itself(untrained):
    samples = prompts(untrained)
    batch = pack(samples)
    with torch.no_grad():
        packed = untrained.hidden(**untrained.inputs(batch))
        for sample, hidden in zip(samples, packed.split(batch.layout.prompts.lengths), strict=True):
            alone = untrained.model.model(**padded(untrained, [(sample, [])])).last_hidden_state[0]
            torch.testing.assert_close(hidden, alone, rtol=1e-9, atol=1e-11)


def test_prompts_without_images_need_no_vision_tower(untrained):
    batch = pack(prompts(untrained, images=(0, 0, 0)))
    expected = untrained.model.get_input_embeddings()(batch.token_ids_1S)
    assert torch.equal(untrained.inputs(batch)["inputs_embeds"], expected)


def test_a_missing_model_is_named(untrained, tmp_path):
    untrained.processor.save(tmp_path)
    with pytest.raises(InputError, match=str(tmp_path)):
        load_policy(tmp_path)


def test_truncated_weights_are_named_with_a_remedy(untrained, tmp_path):
    untrained.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=f"{tmp_path}.*delete the folder"):
        load_policy(tmp_path)


def test_weights_of_another_model_are_refused(untrained, tmp_path):
    untrained.save(tmp_path)
    config = (tmp_path / "config.json").read_text()
    assert '"intermediate_size": 192' in config
    (tmp_path / "config.json").write_text(
        config.replace('"intermediate_size": 192', '"intermediate_size": 176')
    )
    with pytest.raises(InputError, match=str(tmp_path)):
        load_policy(tmp_path)
