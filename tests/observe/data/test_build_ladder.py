"""Building a ladder: filters, sampling in turn, the files, and going on after a kill."""

import json
import random
from dataclasses import dataclass

import pytest
from PIL import Image

from observe.config import BaseConfig, LadderConfig
from observe.data.ladder import build_ladder, stage
from observe.data.measure import sample_responses
from observe.data.question import Question, write_jsonl
from observe.data.rungs import load_ladder
from observe.errors import InputError
from observe.glyphs.model import build_policy
from observe.ladder import main
from observe.mapping import to_mapping
from observe.rollout.engine import Completion

ORIGIN = {"source": "glyphs", "split": "train", "pool": 300, "seed": 0, "model": "rules"}


class Text:
    """Prompts as plain text: the first word of the question is the skill it asks for."""

    def sample(self, messages, images):
        assert [part["type"] for part in messages[1]["content"]] == ["image"] * len(images) + [
            "text"
        ]
        return messages[0]["content"][0]["text"], messages[1]["content"][-1]["text"]


@dataclass
class RuleEngine:
    """Answers by rule: "known" right without reasoning, "p<k>" with probability k/8 by its seed."""

    stop_after: int | None = None
    calls: int = 0
    sampled: int = 0

    def generate(self, samples, params, seeds, finished=None):
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        return [
            [self._answer(*sample, params, seed, j) for j in range(params.n)]
            for sample, seed in zip(samples, seeds, strict=True)
        ]

    def _answer(self, system, question, params, seed, j):
        self.sampled += 1
        skill = question.split()[0]
        direct = "only give the final answer" in system
        assert direct == (params.temperature == 0)
        rng = random.Random(f"{seed}/{j}")
        right = skill == "known" or not direct and rng.random() < int(skill[1:]) / 8
        answer = "7" if right else str(rng.randrange(10, 99))
        if direct:
            return Completion(token_ids=[1], text=answer, truncated=False)
        length = rng.randrange(10, 40)
        return Completion(
            token_ids=[1] * length,
            text=f"<think>{'so ' * length}</think><answer>{answer}</answer>",
            truncated=False,
        )


def questions(n=300):
    skills = ["known", *(f"p{k}" for k in range(9))]
    image = Image.new("RGB", (2, 2))
    return [
        Question(
            id=f"q{i:03d}",
            text=f"{skills[i % 10]} number {i}?",
            gold="unreadable" if i == 5 else "7",
            answer_type="integer",
            images=(image,) * (i % 3),
            family=skills[i % 10],
        )
        for i in range(n)
    ]


def build(out, engine=None, config=None, **changes):
    out.mkdir(exist_ok=True)
    return build_ladder(
        questions(),
        engine=engine or RuleEngine(),
        processor=Text(),
        config=config or LadderConfig(),
        out=out,
        origin={**ORIGIN, **changes},
    )


def test_every_question_is_on_the_ladder_or_dropped_for_a_reason(tmp_path):
    ladder = build(tmp_path)
    counts = ladder.summary["counts"]
    assert counts["pool"] == 300 == len(ladder.rungs) + len(ladder.dropped)
    assert counts["unverifiable"] == 1
    assert counts["simple"] == 30
    assert counts["unjudged"] == 0
    assert counts["kept"] == 300 - sum(counts[r] for r in list(counts)[1:-1])
    assert {d.family for d in ladder.dropped if d.reason == "simple"} == {"known"}
    assert {d.family for d in ladder.dropped if d.reason == "too_easy"} <= {"p8", "p7", "p6"}
    never = next(level for level in ladder.summary["levels"] if level["difficulty"] == 1)
    assert never["kept"] == round(0.5 * never["measured"]) > 0
    assert ladder.summary["selected"] == [rung.question for rung in ladder.rungs]


def test_rungs_hold_what_was_sampled(tmp_path):
    ladder = build(tmp_path)
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    by_id = {record["question"]: record for record in records[1:]}
    for rung in ladder.rungs:
        samples = by_id[rung.question]["samples"]
        assert rung.lengths == tuple(s["tokens"] for s in samples)
        assert rung.correct == tuple("<answer>7<" in s["text"] for s in samples)
        assert rung.prompts == ("think",) * 4 + ("observe",) * 4
        assert rung.difficulty == 1 - sum(rung.correct) / 8
        assert rung.complexity == sum(rung.lengths) / 8
    assert by_id["q005"] == {
        "question": "q005",
        "dropped": "unverifiable",
        "direct": None,
        "samples": [],
    }
    assert by_id["q000"]["samples"] == []
    assert by_id["q000"]["direct"]["correct"]


def test_more_capable_families_lie_lower(tmp_path):
    rungs = build(tmp_path).rungs

    def mean(family):
        own = [r.difficulty for r in rungs if r.family == family]
        return sum(own) / len(own)

    assert mean("p7") < mean("p4") < mean("p1")


def test_a_ladder_is_read_back_as_it_was_written(tmp_path):
    ladder = build(tmp_path)
    assert load_ladder(tmp_path) == ladder
    (tmp_path / "ladder.jsonl").write_text('{"question": "q1"}\n')
    with pytest.raises(InputError, match="damaged ladder"):
        load_ladder(tmp_path)
    with pytest.raises(InputError, match="no such file; build the ladder first"):
        load_ladder(tmp_path / "none")


def test_a_killed_call_goes_on_and_ends_the_same(tmp_path):
    build(tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "killed", RuleEngine(stop_after=5))
    samples = tmp_path / "killed" / "samples.jsonl"
    assert len(samples.read_text().splitlines()) == 1 + 128
    with samples.open("a") as file:
        file.write('{"question": "q128", "dropped": null}\n{"question": "q1')
    second = RuleEngine()
    build(tmp_path / "killed", second)
    assert second.calls == 6
    for name in ("samples.jsonl", "ladder.jsonl", "dropped.jsonl", "summary.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def sample(out, engine, **options):
    out.mkdir(exist_ok=True)
    return sample_responses(
        questions(),
        engine=engine,
        processor=Text(),
        config=LadderConfig(),
        model="rules",
        out=out,
        progress=lambda *told: None,
        **options,
    )


def test_shards_are_merged_to_what_one_call_samples_and_nothing_is_sampled_twice(tmp_path):
    whole = RuleEngine()
    sample(tmp_path / "whole", whole, chunk=20)
    calls = 0
    for shard in ((2, 3), (1, 3), (3, 3)):
        engine = RuleEngine()
        records = sample(tmp_path / "parts", engine, chunk=20, shard=shard)
        calls += engine.calls
        assert [r["question"] for r in records] == [
            q.id for i, q in enumerate(questions()) if i // 20 % 3 == shard[0] - 1
        ]
    merged = RuleEngine()
    sample(tmp_path / "parts", merged, chunk=20)
    assert (merged.calls, calls) == (0, whole.calls)
    written = [(tmp_path / name / "samples.jsonl").read_bytes() for name in ("whole", "parts")]
    assert written[0] == written[1]


def test_what_a_killed_shard_left_is_taken_up_by_whoever_comes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path, RuleEngine(stop_after=7), chunk=20, shard=(1, 2))
    torn = tmp_path / "samples-1-of-2.jsonl"
    assert len(torn.read_text().splitlines()) == 1 + 40
    with torn.open("a") as file:
        file.write('{"question": "q080", "dropp')
    other = RuleEngine()
    sample(tmp_path, other, chunk=20, shard=(1, 4))  # Chunks 1 and 5 of 15, ... the first is there.
    assert other.calls == 3 * 3
    rest = RuleEngine()
    sample(tmp_path, rest, chunk=20)
    assert rest.calls == 3 * (15 - 2 - 3)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 301


def test_samples_of_other_chunks_are_not_mixed(tmp_path):
    sample(tmp_path, RuleEngine(), chunk=20, shard=(1, 2))
    engine = RuleEngine()
    sample(tmp_path, engine, chunk=30)
    assert engine.calls == 30
    with pytest.raises(InputError, match="holds samples of other"):
        sample(tmp_path, RuleEngine(), chunk=20)


def test_a_finished_ladder_samples_nothing_again(tmp_path):
    first = build(tmp_path)
    again = RuleEngine()
    assert build(tmp_path, again) == first
    assert again.calls == 0


def test_samples_of_other_settings_or_models_are_not_taken(tmp_path):
    build(tmp_path)
    with pytest.raises(InputError, match=r"samples\.jsonl: holds samples of other"):
        build(tmp_path, config=LadderConfig(temperature=0.5))
    with pytest.raises(InputError, match="another model"):
        build(tmp_path, model="other")


def test_the_simple_filter_can_be_off_and_samples_be_odd(tmp_path):
    engine = RuleEngine()
    ladder = build(tmp_path, engine, LadderConfig(simple_filter=False, samples=5))
    assert ladder.summary["counts"]["simple"] == 0
    assert engine.sampled == 299 * 5
    assert ladder.rungs[0].prompts == ("think",) * 3 + ("observe",) * 2
    assert len(ladder.summary["levels"]) == 6


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"own_share": 0.1}, "own_share"),
        ({"hardest_share": 1.5}, "hardest_share"),
        ({"easy_complexity_quantile": -1.0}, "easy_complexity_quantile"),
        ({"samples": 0}, "samples"),
        ({"prompts": ()}, "prompts"),
    ],
)
def test_settings_out_of_range_are_named(changes, key):
    with pytest.raises(InputError, match=rf"^{key}: expected"):
        LadderConfig(**changes)


def test_a_pool_that_is_dropped_whole_says_why(tmp_path):
    with pytest.raises(InputError, match="empty.*3 simple"):
        build_ladder(
            [q for q in questions() if q.family == "known"][:3],
            engine=RuleEngine(),
            processor=Text(),
            config=LadderConfig(),
            out=tmp_path,
            origin=ORIGIN,
        )


def test_questions_of_the_rungs_are_read_from_the_source_again(tmp_path):
    file = tmp_path / "questions.jsonl"
    pool = [q for q in questions() if q.id != "q005"]
    write_jsonl(pool, file)
    ladder = build_ladder(
        pool,
        engine=RuleEngine(),
        processor=Text(),
        config=LadderConfig(),
        out=tmp_path,
        origin={**ORIGIN, "source": str(file), "pool": len(pool)},
    )
    assert [q.id for q in ladder.questions()] == ladder.summary["selected"]


def test_the_stage_measures_with_a_real_model(tmp_path):
    model = BaseConfig(hidden_size=64, layers=1, tokenizer_texts=200)
    build_policy(model).save(tmp_path / "base" / "checkpoint")
    settings = LadderConfig(pool=7, samples=2, max_new_tokens=6, hardest_share=1.0)
    config = {"ladder": to_mapping(settings), "model": None, "source": "glyphs"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        seen = []
        result = stage(
            config,
            tmp_path / name,
            {"model": tmp_path / "base"},
            lambda done, total, message, seen=seen: seen.append((done, total)),
        )
        assert seen[-1] == (7, 7)
        assert result["counts"]["pool"] == 7
    ladder = load_ladder(tmp_path / "one")
    assert ladder == load_ladder(tmp_path / "two")
    assert {q.id for q in ladder.questions()} == {r.question for r in ladder.rungs}
    assert all(1 <= n <= 6 for rung in ladder.rungs for n in rung.lengths)


def test_the_stage_leaves_out_what_cannot_be_read(tmp_path):
    build_policy(BaseConfig(hidden_size=64, layers=1, tokenizer_texts=200)).save(
        tmp_path / "base" / "checkpoint"
    )
    asked = [
        Question(
            id=f"q{i}",
            text="How many?",
            gold="3",
            answer_type="integer",
            images=(Image.new("RGB", (28, 28), "red"),),
        )
        for i in range(9)
    ]
    write_jsonl(asked, tmp_path / "asked.jsonl")
    (tmp_path / "images" / "q4-0.png").write_bytes(b"broken")
    settings = LadderConfig(pool=8, samples=2, max_new_tokens=4, hardest_share=1.0)
    config = {
        "ladder": to_mapping(settings),
        "model": None,
        "source": str(tmp_path / "asked.jsonl"),
    }
    out = tmp_path / "ladder"
    out.mkdir()
    result = stage(config, out, {"model": tmp_path / "base"}, lambda *told: None)
    assert (result["counts"]["pool"], result["skipped_questions"]) == (8, 1)
    [skipped] = (out / "skipped.jsonl").read_text().splitlines()
    assert json.loads(skipped)["question"] == "q4"
    assert {q.id for q in load_ladder(out).questions()} == {f"q{i}" for i in range(9)} - {"q4"}


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("prompt: think\n", "no config.json"),
        ("data: {ladder: {pol: 3}}\n", "data.ladder.pol: unknown key; did you mean 'pool'"),
    ],
)
def test_the_command_ends_with_2_for_bad_input(tmp_path, monkeypatch, capsys, recipe, words):
    (tmp_path / "recipe.yaml").write_text(recipe)
    arguments = ["--config", "recipe.yaml", "--model", "model", "--out", "out"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["observe.ladder", *arguments])
    assert main() == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_engine_samples_the_same_greedy_answers(base, tmp_path):
    """Through the factory: an endpoint that serves the same model."""
    from openai_server import MODEL, serving

    from observe.model.policy import load_policy

    def samples(name, sampler):
        (tmp_path / name).mkdir()
        settings = {"pool": 12, "samples": 2, "max_new_tokens": 30, "temperature": 0.0}
        settings |= {"hardest_share": 1.0, "simple_filter": False, "sampler": sampler}
        config = {"ladder": settings, "model": str(base / "checkpoint"), "source": "glyphs"}
        stage(config, tmp_path / name, {}, lambda *_: None)
        return (tmp_path / name / "samples.jsonl").read_text().splitlines()[1:]

    native = samples("native", {})
    with serving(load_policy(base / "checkpoint")) as server:
        endpoint = {"url": server.url, "model": MODEL}
        assert samples("endpoint", {"engine": "endpoint", "endpoint": endpoint}) == native
        assert len(server.bodies) == 24
    assert len(native) == 12 and len(set(native)) == 12
