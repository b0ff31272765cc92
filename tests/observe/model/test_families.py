"""Every family behind the policy gives what transformers' own model gives, and is trained."""

import dataclasses

import pytest
import torch
from conftest import SMALL
from dense import dense_logprobs, padded
from small_runs import CONFIG, changed, rows, run

from observe.base import train_base
from observe.config import BaseConfig, LoraConfig, ModelConfig
from observe.errors import InputError
from observe.glyphs import questions
from observe.glyphs.model import build_policy
from observe.model.batch import pack
from observe.model.family import FAMILIES
from observe.model.logprobs import completion_logprobs
from observe.model.policy import load_policy
from observe.model.trainable import trainable_policy
from observe.prompts import build_messages
from observe.rollout.engine import SamplingParams
from observe.rollout.native import NativeEngine

FAMILY = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def policies():
    """A random policy of each family in double precision."""
    made = {}
    for family in FAMILIES:
        config = BaseConfig(
            family=family, hidden_size=64, layers=3, tokenizer_texts=200, initializer_range=0.07
        )
        made[family] = build_policy(config)
        made[family].model.double().eval()
    return made


@pytest.fixture(scope="module")
def qwen3_base(tmp_path_factory):
    """The folder of a small Qwen3-VL that answers in the right form now and then."""
    out = tmp_path_factory.mktemp("qwen3")
    train_base(dataclasses.replace(SMALL, family="qwen3_vl"), out, lambda *told: None)
    return out


def prompts(policy, images=(1, 0, 2)):
    return [
        policy.processor.sample(
            build_messages("think", question.text, (), number), question.open_images() * number
        )
        for number, question in zip(images, questions("ood", len(images), seed=2), strict=True)
    ]


@FAMILY
def test_positions_are_those_that_the_model_makes_itself(policies, family):
    policy = policies[family]
    for sample in prompts(policy):
        positions_31L, _ = policy.model.model.get_rope_index(
            sample.token_ids_L[None],
            mm_token_type_ids=(sample.token_ids_L[None] == policy.processor.image_pad_id).int(),
            image_grid_thw=sample.grid_I3 if len(sample.grid_I3) else None,
        )
        assert torch.equal(positions_31L[:, 0], sample.positions_3L)


@FAMILY
def test_what_is_sampled_has_the_probabilities_of_a_plain_forward(policies, family, tmp_path):
    """Sampler, packed row and padded rows agree in double precision, and with transformers."""
    policy = policies[family]
    samples = prompts(policy)
    groups = NativeEngine(policy).generate(samples, SamplingParams(max_new_tokens=12, n=3), [5] * 3)
    tokens = [[completion.token_ids for completion in group] for group in groups]
    assert len({tuple(one) for group in tokens for one in group}) > 3
    with torch.no_grad():
        packed_NT, _, mask_NT = completion_logprobs(policy, samples, tokens)
        padded_NT, _ = dense_logprobs(policy, samples, tokens)
    drawn = [completion.logprobs for group in groups for completion in group]
    for logprobs, of_packed in zip(drawn, packed_NT, strict=True):
        expected = torch.tensor(logprobs, dtype=torch.double)
        torch.testing.assert_close(of_packed[: len(logprobs)], expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(packed_NT, padded_NT * mask_NT, rtol=1e-9, atol=1e-10)

    policy.save(tmp_path)
    theirs = FAMILIES[family].model.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(theirs) is type(policy.model)
    with torch.no_grad():
        plain_NT, _ = dense_logprobs(dataclasses.replace(policy, model=theirs), samples, tokens)
    # transformers' norms and rotations round to single precision.
    torch.testing.assert_close(packed_NT, plain_NT * mask_NT, rtol=0, atol=2e-5)


@FAMILY
def test_greedy_is_what_hugging_face_generates(policies, family):
    policy = policies[family]
    samples = prompts(policy)
    params = SamplingParams(max_new_tokens=16, temperature=0.0)
    for sample, (ours,) in zip(
        samples, NativeEngine(policy).generate(samples, params, [0] * 3), strict=True
    ):
        inputs = padded(policy, [(sample, [])])
        del inputs["position_ids"]
        theirs = policy.model.generate(
            **inputs,
            mm_token_type_ids=(inputs["input_ids"] == policy.processor.image_pad_id).int(),
            max_new_tokens=16,
            do_sample=False,
            suppress_tokens=policy.processor.banned_ids,
        )
        assert ours.token_ids == theirs[0, sample.length :].tolist()


@FAMILY
def test_a_loaded_model_has_our_layers_and_its_own_names(policies, family):
    policy = policies[family]
    kinds = {type(module) for module in policy.model.modules()}
    assert set(FAMILIES[family].layers.values()) <= kinds
    assert not set(FAMILIES[family].layers) & kinds
    fresh = FAMILIES[family].model(policy.model.config)
    assert policy.model.state_dict().keys() == fresh.state_dict().keys()


def test_qwen3s_deep_features_count(policies):
    """Without what the tower's first layers hand over, the answer is another."""
    policy = policies["qwen3_vl"]
    inputs = policy.inputs(pack(prompts(policy)))
    assert len(inputs["deepstack_visual_embeds"]) == 1
    with torch.no_grad():
        whole = policy.hidden(**inputs)
        del inputs["deepstack_visual_embeds"], inputs["visual_pos_masks"]
        assert (policy.hidden(**inputs) - whole).abs().max() > 1e-3


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(),
        ModelConfig(gradient_checkpointing=True, dtype="bfloat16"),
        ModelConfig(freeze_vision=True),
        ModelConfig(lora=LoraConfig(rank=4)),
    ],
    ids=["all weights", "bfloat16", "frozen tower", "adapter"],
)
def test_qwen3_is_trained_and_opened_by_transformers(qwen3_base, tmp_path, model):
    config = changed(model=model, data=dataclasses.replace(CONFIG.data, size=8), eval_steps=())
    run(config, tmp_path, qwen3_base)
    before = load_policy(qwen3_base / "checkpoint").model.state_dict()
    after = FAMILIES["qwen3_vl"].model.from_pretrained(tmp_path / "checkpoint").state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name].float())}
    assert any("language_model" in name for name in moved)
    whole = not (model.freeze_vision or model.lora.rank)
    assert any("deepstack_merger" in name for name in moved) == whole
    assert [row["step"] for row in rows(tmp_path)][-1] == 2
    assert any(row.get("grad_norm", 0) > 0 for row in rows(tmp_path))


def test_what_is_remembered_of_pictures_has_their_deep_features(qwen3_base):
    frozen = trainable_policy(
        ModelConfig(freeze_vision=True), qwen3_base / "checkpoint", None, seed=0
    )
    plain = load_policy(qwen3_base / "checkpoint")
    batch = pack(prompts(plain))
    with torch.no_grad():
        expected = plain.hidden(**plain.inputs(batch))
        for _ in range(2):
            torch.testing.assert_close(frozen.hidden(**frozen.inputs(batch)), expected)
    assert frozen.features.hits >= 3


def test_a_model_of_another_family_is_named(policies, tmp_path):
    policies["qwen2_5_vl"].processor.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(InputError, match="type llava.*qwen2_5_vl, qwen3_vl.*docs/models.md"):
        load_policy(tmp_path)
