"""Format validity and the breakdown of rewards."""

from dataclasses import dataclass

import pytest
import torch

from observe.config import BonusConfig, OverlongConfig, RewardConfig
from observe.errors import InputError
from observe.rewards import compute_rewards, format_valid, shuffle_within_groups

OBSERVE, THINK, ANSWER = (
    "<observe>a red circle</observe>",
    "<think>1 + 1</think>",
    "<answer>2</answer>",
)


@pytest.mark.parametrize(
    ("text", "think", "observe"),
    [
        (THINK + ANSWER, True, False),
        (f"  \n{THINK}\n\n{ANSWER}\t", True, False),
        (OBSERVE + THINK + ANSWER, False, True),
        (f"\n{OBSERVE}\n{THINK} {ANSWER}\n", False, True),
        (f"<think>see {OBSERVE} so 1 + 1</think>{ANSWER}", False, True),
        (f"<think>\n{OBSERVE}\nso</think>\n{ANSWER}", False, True),
        ("<observe>a\nb</observe><think>c\n\nd</think><answer>e\nf</answer>", False, True),
        (f"<think>{OBSERVE}</think>{ANSWER}", False, False),
        (f"<think><observe> </observe>so</think>{ANSWER}", False, False),
        (OBSERVE + ANSWER, False, False),
        (ANSWER, False, False),
        (ANSWER + THINK, False, False),
        (THINK + OBSERVE + ANSWER, False, False),
        (OBSERVE + THINK + ANSWER + ANSWER, False, False),
        (THINK + ANSWER + ANSWER, False, False),
        (THINK + THINK + ANSWER, False, False),
        (f"Well: {THINK}{ANSWER}", False, False),
        (f"{THINK}{ANSWER} done", False, False),
        (f"{THINK} so {ANSWER}", False, False),
        (f"{OBSERVE} so {THINK}{ANSWER}", False, False),
        ("<think></think>" + ANSWER, False, False),
        ("<think> \n</think>" + ANSWER, False, False),
        (THINK + "<answer> </answer>", False, False),
        ("<observe>\n</observe>" + THINK + ANSWER, False, False),
        (f"<think>1<answer>2</answer></think>{ANSWER}", False, False),
        (f"<think>1{ANSWER}</think>", False, False),
        (f"<think>1 + 1{ANSWER}", False, False),
        (THINK + "<answer>2", False, False),
        (THINK.upper() + ANSWER, False, False),
        ("", False, False),
        ("2", False, False),
    ],
)
def test_format_valid(text, think, observe):
    assert format_valid(text, "think") is think
    assert format_valid(text, "observe") is observe


def test_format_of_hostile_text_is_quick():
    assert not format_valid("<think>" * 20_000, "think")
    assert not format_valid("<observe><think><answer>" * 5_000, "observe")
    assert format_valid(f"<think>{'x ' * 50_000}</think>{ANSWER}", "think")


@dataclass(frozen=True)
class Asked:
    gold: str
    answer_type: str = "integer"
    options: tuple[str, ...] = ()


GROUPS = [
    [THINK + ANSWER, "<answer>2</answer>", "<think>x</think><answer>3</answer>", "nothing"],
    ["<think>x</think><answer>5</answer>"] * 3 + [""],
    [THINK + ANSWER] * 4,
]
QUESTIONS = [Asked("2"), Asked("4"), Asked("no number")]
LENGTHS_PG = torch.tensor([[12, 6, 9, 1], [9, 9, 9, 0], [12, 12, 12, 12]])


def test_the_breakdown_adds_up():
    config = RewardConfig(format="think", bonus=BonusConfig(weight=0.2, min_length=5))
    rewards = compute_rewards(GROUPS, LENGTHS_PG, QUESTIONS, config)
    assert rewards.correct_PG[:2].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert rewards.format_ok_PG.tolist() == [
        [True, False, True, False],
        [True] * 3 + [False],
        [True] * 4,
    ]
    torch.testing.assert_close(
        rewards.total_PG[:2], torch.tensor([[1.5, 1.2, 0.5, 0.0], [0.5, 0.5, 0.5, 0.0]])
    )
    torch.testing.assert_close(rewards.bonus_PG[0], torch.tensor([0.0, 0.2, 0.0, 0.0]))
    torch.testing.assert_close(
        rewards.total_PG, rewards.accuracy_PG + rewards.format_PG + rewards.bonus_PG, equal_nan=True
    )
    assert rewards.answers[0] == ("2", "2", "3", None)
    assert rewards.reasons[0][3] == "integer: no answer"


def test_length_is_punished_within_the_buffer_and_beyond():
    overlong = OverlongConfig(weight=0.5, max_length=10, buffer_share=0.4)
    rewards = compute_rewards(GROUPS, LENGTHS_PG, QUESTIONS, RewardConfig(overlong=overlong))
    expected_PG = 0.5 * torch.tensor([[-1, 0, -0.75, 0], [-0.75, -0.75, -0.75, 0], [-1] * 4])
    torch.testing.assert_close(rewards.overlong_PG, expected_PG)
    plain = compute_rewards(GROUPS, LENGTHS_PG, QUESTIONS, RewardConfig())
    assert not plain.overlong_PG.any()
    torch.testing.assert_close(
        rewards.total_PG, plain.total_PG + rewards.overlong_PG, equal_nan=True
    )
    with pytest.raises(InputError, match=r"reward\.overlong\.max_length: missing"):
        unresolved = RewardConfig(overlong=OverlongConfig(weight=0.5))
        compute_rewards(GROUPS, LENGTHS_PG, QUESTIONS, unresolved)


def test_groups_can_be_replaced_by_others():
    config = RewardConfig(bonus=BonusConfig(weight=0.2, min_length=5))
    rewards = compute_rewards(GROUPS, LENGTHS_PG, QUESTIONS, config)
    texts = [GROUPS[1], ["<think>x</think><answer>4</answer>", *GROUPS[0][1:]]]
    asked, lengths_PG = [QUESTIONS[0], QUESTIONS[1]], LENGTHS_PG[[1, 0]]
    others = compute_rewards(texts, lengths_PG, asked, config)
    found = rewards.with_groups([0, 1], others)
    expected = compute_rewards(
        [*texts, GROUPS[2]], torch.cat([lengths_PG, LENGTHS_PG[2:]]), QUESTIONS, config
    )
    for name, value in vars(expected).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(found, name), value, equal_nan=True)
        else:
            assert getattr(found, name) == value


def test_an_unreadable_gold_is_never_rewarded():
    """Released code gave reward 1 when the gold could not be parsed."""
    config = RewardConfig(bonus=BonusConfig(weight=0.2))
    rewards = compute_rewards(GROUPS, LENGTHS_PG, QUESTIONS, config)
    assert rewards.total_PG[2].isnan().all()
    assert not rewards.scored_PG[2].any() and rewards.scored_PG[:2].all()
    assert (rewards.bonus_PG[1:] == 0).all()
    assert set(rewards.reasons[2]) == {"tag/integer: gold is not a number"}


def test_without_a_form_there_is_no_format_reward():
    rewards = compute_rewards(GROUPS, LENGTHS_PG, QUESTIONS, RewardConfig(format="none"))
    assert (rewards.format_PG == 0).all() and rewards.format_ok_PG.all()
    assert rewards.total_PG[:2].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]


def test_weights_of_the_config_are_used():
    config = RewardConfig(accuracy=2.0, format="observe", format_weight=0.25)
    texts = [[OBSERVE + THINK + ANSWER, THINK + ANSWER]]
    rewards = compute_rewards(texts, torch.tensor([[9, 9]]), [Asked("2")], config)
    assert rewards.total_PG.tolist() == [[2.25, 2.0]]


def test_the_placebo_permutes_rewards_within_their_group():
    total_PG = torch.arange(24.0).reshape(3, 8)
    shuffled_PG = shuffle_within_groups(total_PG, torch.Generator().manual_seed(1))
    assert shuffled_PG.tolist() != total_PG.tolist()
    assert shuffled_PG.sort(-1).values.tolist() == total_PG.tolist()
    again_PG = shuffle_within_groups(total_PG, torch.Generator().manual_seed(1))
    assert again_PG.tolist() == shuffled_PG.tolist()
