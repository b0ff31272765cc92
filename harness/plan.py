"""A plan in words: ``python -m harness.plan FILE``."""

from collections import Counter
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from harness import cli, design, machine
from harness.ablation import Ablation
from harness.ablation_file import load_ablation
from harness.estimate import Estimate, duration, estimate, known_statuses
from harness.graph import KINDS, Plan, Run, make_plan
from harness.store import Store
from observe.config import late_evaluations


def main(arguments: list[str] | None = None) -> int:
    """Print what a sweep would do; run and write nothing."""
    parser = ArgumentParser(
        prog="python -m harness.plan", description="Print what a sweep would do; run nothing."
    )
    cli.add_ablation_arguments(parser)
    options = parser.parse_args(arguments)
    return cli.run_command(lambda: _print(options))


def _print(options: Namespace) -> int:
    cli.check_numbers(options.jobs)
    overrides = cli.overrides_of(options.seeds, options.set)
    absent: list[str] = []
    ablation, start = load_ablation(Path(options.file), overrides, absent)
    plan = make_plan(ablation, start, options.file)
    print(describe(plan, ablation, Store(Path(options.out) / plan.name), jobs=options.jobs))
    for message in absent:
        print(f"MISSING: {message}")
    return 0


def describe(
    plan: Plan,
    ablation: Ablation,
    store: Store,
    *,
    jobs: int | None,
    where: str = "on this machine",
) -> str:
    """The arms as differences from the reference, the stages, and what they will take."""
    statuses = known_statuses(plan, store)
    done = {stage for stage, status in statuses.items() if status.state == "done"}
    cost = estimate(plan, statuses, cores=machine.cores(), jobs=jobs)
    cells = [run for run in plan.runs if run.kind == "cell"]
    variants = [run for run in plan.runs if run.kind == "variant"]
    bases = [run for run in plan.runs if run.kind == "base"]
    seeds = len(ablation.seeds)
    reference = next(run for run in cells if run.arm == plan.reference_arm)
    lines = [
        f"{plan.name}: {ablation.design} over {', '.join(ablation.factors)}",
        f"  {_counts(cells, variants, bases, seeds)}",
        f"  recipe {ablation.recipe}, reference {plan.reference_arm}",
        "",
        "arms, as differences from the reference:",
    ]
    width = max(len(run.arm) for run in plan.runs)
    trained_of: dict[str, list[Run]] = {}
    for run in [*cells, *variants]:
        trained_of.setdefault(run.arm, []).append(run)
    for run, *others in trained_of.values():
        trained = [run, *others]
        finished = sum(set(other.stages.values()) <= done for other in trained)
        state = f"  [{finished} of {len(trained)} done]" if finished else ""
        lines.append(f"  {run.arm:<{width}}  {_difference(run, reference)}{state}")
    lines += [
        *_confounding(ablation, plan),
        *_late_evaluations(plan),
        "",
        *_stages(plan, done, cost, where),
    ]
    return "\n".join(lines)


def _counts(cells: list[Run], variants: list[Run], bases: list[Run], seeds: int) -> str:
    """How the numbers of trainings and evaluations come about."""
    arms, trained = len({run.arm for run in cells}), len(cells) + len(variants)
    words = f"{_number(arms, 'arm')} x {_number(seeds, 'seed')}"
    if variants:
        words += f" + {_number(len(variants), 'variant run')}"
    return (
        f"{words} = {_number(trained, 'training')}; {trained + len(bases)} evaluations, with the"
        f" untrained base under {_number(len(bases), 'prompt')}"
    )


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _confounding(ablation: Ablation, plan: Plan) -> list[str]:
    """What the design cannot tell apart, and arms that differ in more than their name says."""
    lines = []
    fraction = design.fraction_of(ablation)
    if fraction is not None:
        runs, all_runs = 2 ** len(fraction.basic), 2 ** len(fraction.factors)
        lines += ["", f"{runs} of {all_runs} combinations; effects that cannot be told apart:"]
        lines += [
            f"  {effect} = {' = '.join(others)}"
            for effect, others in design.aliases(ablation).items()
        ] or ["  none of up to two factors"]
    warnings = [
        f"what {effect} does cannot be told from what {' and '.join(others)} does"
        for effect, others in design.indistinct(design.cells(ablation)).items()
    ]
    reference = next(run for run in plan.runs if run.arm == plan.reference_arm)
    for name in ablation.variants:
        run = next(run for run in plan.runs if run.arm == name)
        if any(run.stages == other.stages for other in plan.runs if other.arm == reference.arm):
            warnings.append(
                f"{name} is the reference itself, with its settings and seed; give it another seed "
                "or settings"
            )
        changed = _changes(run, reference)
        if len(changed) > 1:
            warnings.append(
                f"{name} differs from the reference in {len(changed)} settings at once:"
                f" {', '.join(changed)}"
            )
    if ablation.design in ("arms", "zip"):
        for run in plan.runs:
            factors = [f for f, level in run.levels.items() if level != reference.levels[f]]
            if run.kind == "cell" and len(factors) > 1 and run.seed == reference.seed:
                warnings.append(
                    f"{run.arm} differs from the reference in {len(factors)} factors at once:"
                    f" {', '.join(factors)}"
                )
    return lines + [f"WARNING: {warning}" for warning in warnings]


def _late_evaluations(plan: Plan) -> list[str]:
    """Evaluations during training that no step reaches."""
    trained = [run.config for run in plan.runs if run.config]
    late = {
        late_evaluations(c["eval_steps"], c["data"]["size"] // c["prompts_per_step"])
        for c in trained
    }
    return [f"WARNING: {message}" for message in sorted(filter(None, late))]


def _changes(run: Run, reference: Run) -> list[str]:
    """The settings in which an arm differs from the reference, its seed left out."""
    own, other = _flat(run.config or {}), _flat(reference.config or {})
    return [key for key in own if key != "seed" and own[key] != other.get(key)]


def _difference(run: Run, reference: Run) -> str:
    if run.arm == reference.arm:
        return "the reference"
    parts = [
        f"{factor} {level}"
        for factor, level in run.levels.items()
        if level != reference.levels[factor]
    ]
    if run.kind == "variant":
        own, other = _flat(run.config or {}), _flat(reference.config or {})
        if not parts:
            parts = [f"{key} {other[key]} -> {own[key]}" for key in own if own[key] != other[key]]
    return ", ".join(parts) or "the same settings"


def _flat(mapping: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in mapping.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _stages(plan: Plan, done: set[str], cost: Estimate, where: str) -> list[str]:
    counts = Counter(stage.kind for stage in plan.stages.values())
    finished = Counter(stage.kind for stage in plan.stages.values() if stage.id in done)
    lines = ["stages (equal ones are run once):"]
    for kind in KINDS:
        if not counts[kind]:
            continue
        source = "measured here" if cost.measured[kind] else "from resources"
        lines.append(
            f"  {kind:<9} {counts[kind]:>4}, {finished[kind]} done;"
            f" {duration(cost.stage_seconds[kind])} each ({source})"
        )
    if len(done) == len(plan.stages):
        lines.append("nothing left to run")
    else:
        gpu = f", {cost.gpu_hours:.1f} GPU hours" if cost.gpu_hours else ""
        lines.append(f"expected: about {duration(cost.seconds)} {where}{gpu}")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
