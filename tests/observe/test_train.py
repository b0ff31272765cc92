"""Training: exact resume, each mechanism's switch, the gradient of a step, and learning."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import typing

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from observe import grpo
from observe.config import (
    BonusConfig,
    DataConfig,
    LossConfig,
    OptimConfig,
    RewardConfig,
    RolloutConfig,
    TrainConfig,
    WeightingConfig,
    from_mapping,
    load_yaml,
    to_mapping,
)
from observe.data.question import Question, write_jsonl
from observe.data.rungs import Ladder, Rung, save_ladder
from observe.data.sources import load_questions
from observe.errors import InputError
from observe.model.logprobs import completion_logprobs
from observe.model.policy import load_policy
from observe.rollout.engine import Completion
from observe.train import (
    choose_questions,
    main,
    prepare,
    prompt_of,
    resolve_bonus,
    reward_groups,
    set_lr,
    stable_seed,
    stage,
    train,
    update_policy,
    weigh,
)

CONFIG = TrainConfig(
    data=DataConfig(size=20, selection="raw"),
    rollout=RolloutConfig(group_size=4, max_new_tokens=40),
    optim=OptimConfig(lr=1e-3, warmup_steps=2),
    prompts_per_step=4,
    eval_steps=(0, 3),
    eval_size=6,
    checkpoint_every=2,
    log_completions_every=2,
)
STEPS = 5


def silent(done, total, message):
    pass


def changed(config=CONFIG, **values):
    return dataclasses.replace(config, **values)


def run(config, out, base, progress=silent, ladder=None):
    out.mkdir(exist_ok=True)
    return train(config, out, model=base / "checkpoint", ladder=ladder, progress=progress)


def rows(out, name="metrics.jsonl"):
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def untimed(out):
    return [
        {k: v for k, v in row.items() if not k.startswith(("timing_s/", "perf/"))}
        for row in rows(out)
    ]


def weights(out):
    return load_policy(out / "checkpoint").model.state_dict()


def assert_same_run(one, two):
    assert untimed(one) == untimed(two)
    assert rows(one, "completions.jsonl") == rows(two, "completions.jsonl")
    first, second = weights(one), weights(two)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """An undisturbed run and its summary."""
    out = tmp_path_factory.mktemp("finished")
    return out, run(CONFIG, out, base)


def test_a_run_logs_every_step_and_leaves_a_plain_checkpoint(finished):
    out, summary = finished
    logged = rows(out)
    assert [row["step"] for row in logged] == list(range(STEPS + 1))
    assert [row["samples"] for row in logged] == [4 * i for i in range(STEPS + 1)]
    for row in logged[1:]:
        assert {
            "reward",
            "loss",
            "entropy",
            "grad_norm",
            "learning_rate",
            "num_tokens",
            "completions/mean_length",
            "rewards/accuracy/mean",
            "timing_s/gen",
            "timing_s/update",
            "perf/throughput",
            "observe/weight_mean",
        } <= set(row)
    assert [row["step"] for row in logged if "eval/accuracy" in row] == [0, 3]
    assert [row["step"] for row in rows(out, "completions.jsonl")] == [1, 2, 4]
    assert len(rows(out, "completions.jsonl")[0]["completions"]) == 4
    Qwen2_5_VLForConditionalGeneration.from_pretrained(out / "checkpoint")
    assert summary["steps"] == STEPS
    assert summary["tokens"] == logged[-1]["num_tokens"]


def test_a_run_changes_the_policy(finished, base):
    before, after = weights(base), weights(finished[0])
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_finished_run_given_again_does_nothing(finished, base):
    out, summary = finished
    before = (out / "metrics.jsonl").read_bytes()
    again = run(CONFIG, out, base, progress=lambda *args: pytest.fail("trained again"))
    assert again == summary
    assert (out / "metrics.jsonl").read_bytes() == before


class Stopped(Exception):
    pass


@pytest.mark.parametrize("last", [1, 3])
def test_a_stopped_run_goes_on_as_if_undisturbed(finished, base, tmp_path, last):
    def stop(done, total, message):
        if done == last:
            raise Stopped

    with pytest.raises(Stopped):
        run(CONFIG, tmp_path, base, progress=stop)
    assert len(rows(tmp_path)) == last + 1
    resumed = run(CONFIG, tmp_path, base)
    assert_same_run(tmp_path, finished[0])
    assert resumed["tokens"] == finished[1]["tokens"]


def test_a_killed_process_goes_on_as_if_undisturbed(finished, base, tmp_path):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(json.dumps({**to_mapping(CONFIG), "checkpoint_every": 1}))
    command = [sys.executable, "-m", "observe.train", "--config", recipe, "--out", out]
    command += ["--base", base]
    # The number of threads changes floating-point results; the tests have one.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=one_thread, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len(rows(out)) < 4:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    assert not (out / "metrics.jsonl").read_text().count('"step": 5')
    run(changed(checkpoint_every=1), out, base)
    assert_same_run(out, finished[0])


def test_evaluation_and_logging_change_no_weights(finished, base, tmp_path):
    run(changed(eval_steps=(), log_completions_every=99, checkpoint_every=99), tmp_path, base)
    first, second = weights(finished[0]), weights(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_is_another_run(finished, base, tmp_path):
    run(changed(seed=1, data=dataclasses.replace(CONFIG.data, size=4)), tmp_path, base)
    assert rows(tmp_path)[1]["reward"] != rows(finished[0])[1]["reward"]


@pytest.mark.parametrize("name", ["trainer_state.pt", "model.safetensors", "tokenizer.json"])
def test_a_damaged_checkpoint_is_named_and_nothing_is_touched(base, tmp_path, name):
    run(changed(data=dataclasses.replace(CONFIG.data, size=4)), tmp_path, base)
    log = (tmp_path / "metrics.jsonl").read_bytes()
    damaged = tmp_path / "checkpoint" / name
    damaged.write_bytes(damaged.read_bytes()[:500])
    with pytest.raises(InputError, match=f"{tmp_path / 'checkpoint'}.*delete"):
        run(CONFIG, tmp_path, base)
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


def test_a_checkpoint_of_other_questions_is_refused(finished, base):
    out = finished[0]
    with pytest.raises(InputError, match=f"{out / 'checkpoint'}.*other questions"):
        run(changed(seed=5), out, base)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """A ladder of 60 questions whose difficulty is made up."""
    folder = tmp_path_factory.mktemp("ladder")
    pool = load_questions("glyphs", size=60, seed=0)
    rungs = []
    for i, question in enumerate(pool):
        right = i % 5
        rungs.append(
            Rung(
                question=question.id,
                family=question.family,
                difficulty=1 - right / 4,
                complexity=20.0 + i,
                prompts=("think", "observe") * 2,
                correct=tuple(j < right for j in range(4)),
                lengths=(20, 30, 20, 30),
                level=4 - right,
                order_index=0,
            )
        )
    rungs.sort(key=lambda rung: rung.level)
    rungs = [dataclasses.replace(rung, order_index=i) for i, rung in enumerate(rungs)]
    grid = {f"{i / 20:.2f}": 10.0 + i for i in range(21)}
    summary = {
        "origin": {"source": "glyphs", "split": "train", "pool": 60, "seed": 0},
        "correct_lengths": {"think": grid, "observe": {k: v + 100 for k, v in grid.items()}},
    }
    save_ladder(Ladder(rungs=tuple(rungs), dropped=(), summary=summary), folder)
    return folder


def handed_out(ladder, order, seed=0, size=20):
    data = DataConfig(size=size, selection="ladder", order=order)
    questions, curriculum = choose_questions(changed(data=data, seed=seed), ladder)
    batches = [curriculum.next_batch(4) for _ in range(size // 4)]
    assert curriculum.next_batch(4) == []
    assert {question.id for question in questions} == {i for batch in batches for i in batch}
    return [i for batch in batches for i in batch]


def test_every_order_and_seed_hands_out_the_same_questions_once(ladder):
    orders = [handed_out(ladder, order) for order in ("shuffled", "ladder", "easy_to_hard")]
    orders.append(handed_out(ladder, "shuffled", seed=1))
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len(set(orders[0])) == 20
    assert len({tuple(order) for order in (orders[0], orders[1], orders[3])}) == 3


@pytest.mark.parametrize("source", ["glyphs", "questions.jsonl"])
def test_the_seed_of_a_raw_run_changes_the_order_and_not_the_questions(tmp_path, source):
    if source != "glyphs":
        source = str(tmp_path / source)
        asked = [
            Question(id=f"q{i:02d}", text="?", gold="1", answer_type="integer") for i in range(60)
        ]
        write_jsonl(asked, tmp_path / "questions.jsonl")
    data = DataConfig(source=source, size=20, selection="raw")
    (questions, one), (same, two) = (
        choose_questions(changed(data=data, seed=seed), None) for seed in (1, 2)
    )
    assert questions == load_questions(source, size=20, seed=0)
    assert same == questions
    orders = one.next_batch(20), two.next_batch(20)
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(question.id for question in questions)
    assert orders[0] != orders[1]


def test_a_run_on_a_ladder_climbs_it(base, ladder, tmp_path):
    data = DataConfig(size=12, selection="ladder", order="ladder")
    summary = run(changed(data=data, eval_steps=()), tmp_path, base, ladder=ladder)
    difficulty = [row["observe/difficulty"] for row in rows(tmp_path)]
    assert difficulty == sorted(difficulty)
    assert summary["mechanisms"]["curriculum"]["acted"] is True


def test_what_needs_a_ladder_says_so(base, tmp_path):
    with pytest.raises(InputError, match=r"data\.selection: ladder needs .*--ladder"):
        run(changed(data=DataConfig(size=20)), tmp_path, base)
    bonus = BonusConfig(weight=0.2, min_length_quantile=0.5)
    with pytest.raises(InputError, match=r"min_length_quantile needs .*--ladder"):
        run(changed(reward=RewardConfig(bonus=bonus)), tmp_path, base)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("prompt", "bonus", "expected"),
    [
        ("think", BonusConfig(weight=0.2, min_length_quantile=0.5), 20),
        ("think", BonusConfig(weight=0.2, min_length_quantile=0.1), 12),
        ("observe", BonusConfig(weight=0.2, min_length_quantile=0.5), 120),
        ("think", BonusConfig(weight=0.2, min_length_quantile=0.5, min_length=7), 7),
        ("think", BonusConfig(weight=0.2), None),
        ("think", BonusConfig(weight=0.0, min_length_quantile=0.5), None),
    ],
)
def test_the_bonus_takes_its_least_length_from_the_ladder(ladder, prompt, bonus, expected):
    reward = RewardConfig(accuracy=0.9, format="observe", shuffle=True, bonus=bonus)
    resolved = resolve_bonus(changed(prompt=prompt, reward=reward), ladder)
    assert resolved.bonus.min_length == expected
    assert resolved.bonus.weight == bonus.weight
    assert dataclasses.replace(resolved, bonus=bonus) == reward


GROUP = 4


@pytest.fixture(scope="module")
def completions(base):
    """Four questions, each with a group whose rewards differ, and one whose do not."""
    questions = load_questions("glyphs", size=4, seed=0)
    policy = load_policy(base / "checkpoint")

    def made(text):
        ids = [*policy.processor.encode(text), policy.processor.eos_ids[0]]
        return Completion(token_ids=ids, text=text, truncated=False)

    groups = []
    for i, question in enumerate(questions):
        right = f"<think>so</think><answer>{question.gold}</answer>"
        texts = [right, f"<think>so it is</think><answer>{question.gold}</answer>", "none", right]
        texts[1 + i % 2] = f"The answer is {question.gold}."
        groups.append([made(text) for text in (texts if i != 2 else [right] * GROUP)])
    return questions, groups


def prepared(base, out, *, precise=False, **values):
    made = prepare(changed(**values), out, model=base / "checkpoint", ladder=None)
    if precise:
        made.policy.model.double()
    made.step = 3
    return made


def advantages(base, out, completions, **values):
    made = prepared(base, out, **values)
    rewards, _ = reward_groups(made, *completions)
    return rewards, *weigh(made, rewards)


def test_without_sigma_every_weight_is_1(base, tmp_path, completions):
    rewards, advantages_PG, weights_P = advantages(base, tmp_path, completions)
    assert weights_P.tolist() == [1.0] * 4
    assert torch.equal(advantages_PG, grpo.group_advantages(rewards.total_PG))


def test_dynamic_weights_scale_the_advantages_and_nothing_else(base, tmp_path, completions):
    plain_rewards, plain, _ = advantages(base, tmp_path, completions)
    rewards, weighted, weights_P = advantages(
        base, tmp_path, completions, weighting=WeightingConfig(sigma=1.8)
    )
    assert torch.equal(rewards.total_PG, plain_rewards.total_PG)
    share_P = rewards.correct_PG.mean(1)
    torch.testing.assert_close(weights_P, 4 * 1.8 * share_P * (1 - share_P))
    torch.testing.assert_close(weighted, plain * weights_P[:, None])
    assert set(weights_P.tolist()) > {0.0}


def test_the_bonus_adds_to_the_total_and_nothing_else(base, tmp_path, completions):
    plain, _, _ = advantages(base, tmp_path, completions)
    assert not plain.bonus_PG.any()
    paid, _, _ = advantages(
        base, tmp_path, completions, reward=RewardConfig(bonus=BonusConfig(weight=0.2))
    )
    assert torch.equal(paid.accuracy_PG, plain.accuracy_PG)
    assert torch.equal(paid.format_PG, plain.format_PG)
    torch.testing.assert_close(paid.total_PG, plain.total_PG + paid.bonus_PG)
    assert (paid.bonus_PG > 0).sum(1).tolist() == [1] * 4


def test_the_placebo_permutes_rewards_within_groups_anew_at_every_step(base, tmp_path, completions):
    plain, honest, _ = advantages(base, tmp_path, completions)
    made = prepared(base, tmp_path, reward=RewardConfig(shuffle=True))
    rewards, _ = reward_groups(made, *completions)
    assert torch.equal(rewards.total_PG, plain.total_PG)
    orders = set()
    for made.step in range(1, 6):
        placebo, weights_P = weigh(made, rewards)
        again, _ = weigh(made, rewards)
        assert torch.equal(placebo, again)
        torch.testing.assert_close(placebo.sort(1).values, honest.sort(1).values)
        assert weights_P.tolist() == [1.0] * 4
        orders.add(str(placebo.tolist()))
    assert len(orders) == 5


@pytest.mark.parametrize("form", ["none", "think", "observe"])
def test_the_form_asked_for_changes_the_format_reward_alone(base, tmp_path, completions, form):
    plain, _, _ = advantages(base, tmp_path, completions)
    rewards, _, _ = advantages(base, tmp_path, completions, reward=RewardConfig(format=form))
    assert torch.equal(rewards.accuracy_PG, plain.accuracy_PG)
    expected = {"none": [0.0] * 16, "think": plain.format_PG.flatten().tolist()}
    assert rewards.format_PG.flatten().tolist() == expected.get(form, [0.0] * 16)
    assert rewards.format_ok_PG.all() == (form == "none")


ADVANTAGES = torch.tensor(
    [[1.0, -0.5, -0.5, 0.0], [0.3, 0.3, -0.3, -0.3], [0.0] * 4, [-1.2, 0.4, 0.4, 0.4]]
)


def gradient_of(base, out, completions, **values):
    """The gradient of a step, read from what plain gradient descent does to the weights."""
    made = prepared(base, out, precise=True, **values)
    made.optimizer = torch.optim.SGD(made.policy.model.parameters(), lr=1.0)
    before = {n: p.detach().clone() for n, p in made.policy.model.named_parameters()}
    update_policy(made, *completions, ADVANTAGES)
    rate = made.optimizer.param_groups[0]["lr"]
    return {n: (before[n] - p.detach()) / rate for n, p in made.policy.model.named_parameters()}


def expected_gradient(base, out, completions, *, aggregation="sequence"):
    """Every group in one pass, the zero ones too, and the REINFORCE form of the loss."""
    made = prepared(base, out, precise=True)
    questions, groups = completions
    samples = [prompt_of(made, question) for question in questions]
    logprobs_NT, _, mask_NT = completion_logprobs(
        made.policy, samples, [[c.token_ids for c in group] for group in groups]
    )
    weighted_NT = logprobs_NT * mask_NT * ADVANTAGES.flatten()[:, None]
    if aggregation == "sequence":
        loss = -(weighted_NT.sum(1) / mask_NT.sum(1)).mean()
    else:
        loss = -weighted_NT.sum() / mask_NT.sum()
    loss.backward()
    return {n: p.grad for n, p in made.policy.model.named_parameters()}


def assert_same(found, expected):
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    assert norm > 1e-3
    for name, gradient in expected.items():
        # In the single precision of RMSNorm and rotary embedding.
        assert (found[name] - gradient).norm() <= 2e-6 * gradient.norm() + 1e-9 * norm, name


UNCLIPPED = OptimConfig(lr=1.0, max_grad_norm=1e9)


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
@pytest.mark.parametrize("micro_batch", [1, 4, 8, 12, 96])
def test_the_gradient_is_that_of_all_groups_at_once(
    base, tmp_path, completions, aggregation, micro_batch
):
    found = gradient_of(
        base,
        tmp_path,
        completions,
        micro_batch=micro_batch,
        optim=UNCLIPPED,
        loss=LossConfig(aggregation=aggregation),
    )
    assert_same(found, expected_gradient(base, tmp_path, completions, aggregation=aggregation))


def test_the_order_of_the_groups_changes_no_gradient(base, tmp_path, completions):
    questions, groups = completions
    made = prepared(base, tmp_path, precise=True, optim=UNCLIPPED, micro_batch=8)
    made.optimizer = torch.optim.SGD(made.policy.model.parameters(), lr=1.0)
    before = {n: p.detach().clone() for n, p in made.policy.model.named_parameters()}
    update_policy(made, questions[::-1], groups[::-1], ADVANTAGES.flip(0))
    found = {n: before[n] - p.detach() for n, p in made.policy.model.named_parameters()}
    assert_same(found, expected_gradient(base, tmp_path, completions))


def test_large_gradients_are_clipped_to_their_norm(base, tmp_path, completions):
    clipped = gradient_of(
        base, tmp_path, completions, optim=OptimConfig(lr=1.0, max_grad_norm=0.01)
    )
    norm = float(torch.stack([g.norm() for g in clipped.values()]).norm())
    assert norm == pytest.approx(0.01, rel=1e-4)


def test_a_step_without_any_signal_leaves_the_policy_alone(base, tmp_path, completions):
    made = prepared(base, tmp_path)
    before = {n: t.clone() for n, t in made.policy.model.state_dict().items()}
    metrics = update_policy(made, *completions, torch.zeros(4, 4))
    assert all(torch.equal(before[n], t) for n, t in made.policy.model.state_dict().items())
    assert metrics["grad_norm"] == metrics["loss"] == 0


def test_the_kl_term_starts_at_0_and_holds_the_policy_back(base, tmp_path):
    data = dataclasses.replace(CONFIG.data, size=16)
    divergence = {}
    for coefficient in (1e-6, 3.0):
        out = tmp_path / str(coefficient)
        config = changed(data=data, eval_steps=(), loss=LossConfig(kl_coefficient=coefficient))
        run(config, out, base)
        divergence[coefficient] = [row["kl"] for row in rows(out)]
        assert divergence[coefficient][0] == pytest.approx(0, abs=1e-7)
        assert all(kl > 0 for kl in divergence[coefficient][1:])
    assert divergence[3.0][-1] < 0.7 * divergence[1e-6][-1]


def test_without_a_kl_term_no_reference_is_loaded(finished, base, tmp_path):
    assert prepared(base, tmp_path).reference is None
    assert "kl" not in rows(finished[0])[1]


def test_the_learning_rate_warms_up_and_stays(base, tmp_path):
    made = prepared(base, tmp_path, optim=OptimConfig(lr=0.1, warmup_steps=4))
    rates = []
    for made.step in range(1, 7):
        set_lr(made)
        rates.append(made.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_seeds_are_stable_and_tell_their_parts_apart():
    assert stable_seed(0, 1, "a") == int(hashlib.sha256(b"0/1/a").hexdigest()[:16], 16) >> 1
    assert len({stable_seed(0, 1), stable_seed(1, 0), stable_seed(0, 11), stable_seed(0)}) == 4
    assert all(0 <= stable_seed(i) < 2**63 for i in range(100))


def test_the_stage_takes_its_model_from_what_it_consumes(finished, base, tmp_path):
    config = to_mapping(CONFIG)
    del config["model"]["base"], config["data"]["ladder"]
    summary = stage(config, tmp_path, {"model": base}, silent)
    assert_same_run(tmp_path, finished[0])
    assert {k: v for k, v in summary.items() if k != "seconds"} == {
        k: v for k, v in finished[1].items() if k != "seconds"
    }
    json.dumps(summary)


def test_a_summary_says_which_mechanism_acted(base, ladder, tmp_path):
    config = changed(
        data=DataConfig(size=12, selection="ladder", order="ladder"),
        reward=RewardConfig(bonus=BonusConfig(weight=0.2)),
        weighting=WeightingConfig(sigma=1.8),
        eval_steps=(),
    )
    mechanisms = run(config, tmp_path, base, ladder=ladder)["mechanisms"]
    logged = rows(tmp_path)
    assert mechanisms["bonus"]["share"] == pytest.approx(
        sum(row["observe/bonus_share"] for row in logged) / 3
    )
    assert all(mechanisms[name]["acted"] for name in mechanisms)


def test_switched_off_mechanisms_did_not_act(finished):
    mechanisms = finished[1]["mechanisms"]
    assert mechanisms["bonus"] == {"share": 0.0, "acted": False}
    assert mechanisms["dynamic_weights"] == {"active_share": 0.0, "acted": False}
    assert mechanisms["curriculum"]["acted"] is False


def test_training_learns_the_form_and_the_placebo_does_not(base, tmp_path):
    config = changed(
        data=DataConfig(size=20 * 6, selection="raw"),
        rollout=RolloutConfig(group_size=8, max_new_tokens=40),
        reward=RewardConfig(accuracy=0.0, format_weight=1.0),
        prompts_per_step=6,
        eval_steps=(),
        checkpoint_every=99,
    )
    gains = {}
    for shuffle in (False, True):
        out = tmp_path / str(shuffle)
        reward = dataclasses.replace(config.reward, shuffle=shuffle)
        run(changed(config, reward=reward), out, base)
        form = [row["rewards/format/mean"] for row in rows(out)]
        gains[shuffle] = sum(form[-5:]) / 5 - sum(form[:5]) / 5
    assert gains[False] > 0.2
    assert gains[True] < 0.5 * gains[False]


def command(capsys, *arguments):
    """Exit code and output of ``python -m observe.train`` with these arguments."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    return code, capsys.readouterr()


def settings(cls, prefix=""):
    """The dotted name of every setting below a config class."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from settings(hint, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_help_explains_every_setting(capsys):
    code, printed = command(capsys, "--help")
    assert code == 0
    entries = dict(
        (entry.split()[0], entry.split("(type:")[0].split()[2:])
        for entry in printed.out.split("\n  --")[1:]
    )
    for name in settings(TrainConfig):
        assert len(entries[name]) >= 2, name


def test_the_file_is_read_as_yaml_1_2_and_options_win_over_it(capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "data: {size: 48, selection: raw}\noptim: {lr: 1e-5}\nreward: {bonus: {weight: 0.2}}\n"
    )
    code, printed = command(
        capsys,
        *("--config", tmp_path / "recipe.yaml", "--reward.bonus.min_length", 9),
        *("--data", '{"size": 72}', "--eval_steps", "[1, 2]", "--print_config"),
    )
    assert code == 0
    (tmp_path / "printed.yaml").write_text(printed.out)
    resolved = from_mapping(TrainConfig, load_yaml(tmp_path / "printed.yaml"), source="printed")
    assert resolved == TrainConfig(
        data=DataConfig(size=72, selection="raw"),
        optim=OptimConfig(lr=1e-5),
        reward=RewardConfig(bonus=BonusConfig(weight=0.2, min_length=9)),
        eval_steps=(1, 2),
    )


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("propmts_per_step: 4\n", "recipe.yaml: propmts_per_step: unknown key; did you mean"),
        ("reward: {format: on}\n", "recipe.yaml: reward.format: expected one of none, think"),
        ("prompts_per_step: many\n", "recipe.yaml: prompts_per_step: expected int, got 'many'"),
        ("prompts_per_step: 7\n", "recipe.yaml: data.size: "),
        ("data: {selection: raw, order: ladder}\n", "recipe.yaml: data.order: ladder needs"),
        ("prompt: [\n", "recipe.yaml: not valid YAML: "),
        ("- prompt\n", "recipe.yaml: the file: expected a mapping"),
        ("", "recipe.yaml: the file: expected a mapping"),
        ("prompt: think\n", "--base: model.path glyphs needs"),
    ],
)
def test_a_bad_file_is_named_and_nothing_is_written(capsys, tmp_path, recipe, message):
    (tmp_path / "recipe.yaml").write_text(recipe)
    code, printed = command(capsys, "--config", tmp_path / "recipe.yaml", "--out", tmp_path / "out")
    assert code == 2
    assert message in printed.err
    assert not (tmp_path / "out").exists()


def test_questions_lie_beside_the_file_that_names_them(capsys, base, tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: {source: asked.jsonl, selection: raw}\n")
    code, printed = command(
        capsys,
        *("--config", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--base", base),
    )
    assert code == 2
    assert f"{tmp_path / 'asked.jsonl'}: no such file" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts_per_stp", "4"], "--prompts_per_stp"),
        (["--rollout.top_k", "many"], "rollout.top_k"),
        (["--rollout.top_k", "-1"], "options: rollout.top_k: expected at least 0, got -1"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--out", "{tmp}/out", "--base", "{tmp}/nowhere"], "nowhere/checkpoint: no readable"),
        ([], "--out: missing"),
    ],
)
def test_a_bad_option_is_named(capsys, tmp_path, arguments, message):
    code, printed = command(capsys, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert code == 2
    assert message in printed.err


def test_the_command_trains(capsys, finished, base, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(to_mapping(CONFIG)))
    code, printed = command(
        capsys,
        *("--config", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--base", base),
    )
    assert code == 0
    assert "5 steps" in printed.out
    assert_same_run(tmp_path / "out", finished[0])
