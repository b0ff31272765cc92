"""What would go wrong before a GPU hour is spent: ``python -m harness.doctor FILE``.

Looks at the plan, its inputs, the model's tokenizer and processor, memory, the cluster, disk and
hours. What is missing comes with the command that gets it.
"""

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from harness import cli, doctor_slurm, machine
from harness.ablation import Ablation
from harness.ablation_file import load_ablation
from harness.checks import Check, show, size_in_words
from harness.estimate import duration, estimate, known_statuses
from harness.graph import Plan, Run, make_plan
from harness.inputs import Found, Input, inputs_of, look
from harness.profile import Profile, load_profile
from harness.store import Store
from observe.config import TrainConfig
from observe.errors import InputError
from observe.mapping import from_mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patient:
    """What is looked at."""

    file: str
    ablation: Ablation
    plan: Plan
    store: Store
    profile: Profile | None
    """None: this machine alone."""
    gpu_gb: float | None
    """Memory of a GPU in GiB; None: that of this machine's, where it has one."""
    jobs: int | None
    found: dict[tuple[str, str], tuple[Input, Found]]
    """The inputs, by kind and name."""


def examine(patient: Patient) -> Iterator[Check]:
    """All checks but ``--try``, section by section."""
    sections: tuple[Callable[[Patient], Iterator[Check]], ...] = (
        _config,
        _inputs,
        _models,
        _cluster,
        _disk,
        _time,
    )
    for section in sections:
        yield from section(patient)


def _config(patient: Patient) -> Iterator[Check]:
    plan = patient.plan
    trained = sum(run.config is not None for run in plan.runs)
    yield Check(
        section="config",
        what=patient.file,
        state="ok",
        detail=f"{len(plan.runs)} runs, {trained} of them trained; {len(plan.stages)} stages; "
        f"reference {plan.reference_arm}",
    )


def _inputs(patient: Patient) -> Iterator[Check]:
    for one, found in patient.found.values():
        words = [*found.problems, *found.notes]
        if found.size:
            words.append(size_in_words(found.size))
        if found.folder is not None and not found.problems:
            words.append(str(found.folder))
        if one.kind == "dataset":
            words.append(f"for {', '.join(one.users)}")
        name = f"{one.name}@{one.revision[:12]}" if one.revision else one.name
        yield Check(
            section="inputs",
            what=f"{one.kind} {name}",
            state="missing" if found.problems else "note" if _unpinned(found) else "ok",
            detail="; ".join(words),
            remedy=found.remedy if found.problems else "",
        )
    for config, arms in distinct_configs(patient.plan).items():
        yield from _enough_questions(patient, json.loads(config), arms)


def _unpinned(found: Found) -> bool:
    return any("pinned" in note for note in found.notes)


def _enough_questions(
    patient: Patient, mapping: dict[str, Any], arms: list[str]
) -> Iterator[Check]:
    data = mapping["data"]
    named = data["ladder"]["path"] and ("ladder", data["ladder"]["path"])
    _, found = patient.found.get(named or ("questions", data["source"]), (None, None))
    if found is None or found.problems:
        return
    count = next((int(n.split()[0].replace(",", "")) for n in found.notes if "questions" in n), 0)
    needed = data["size"]
    if data["selection"] == "ladder" and not named:
        needed = max(needed, data["ladder"]["pool"])
    if count < needed:
        yield Check(
            section="inputs",
            what="questions",
            state="missing",
            detail=f"{count:,} there, {needed:,} asked for (data.size {data['size']:,}, "
            f"data.ladder.pool {data['ladder']['pool']:,}), by {_some(arms)}",
            remedy="add questions, or lower data.size and data.ladder.pool",
        )


def _models(patient: Patient) -> Iterator[Check]:
    """What needs the model's own files: left to a module that loads transformers."""
    from harness import doctor_model

    seen: set[tuple[str, str, str]] = set()
    for text in distinct_configs(patient.plan):
        config = from_mapping(TrainConfig, json.loads(text), source=patient.file)
        folder = folder_of(patient, config.model.path)
        for check in doctor_model.examine(
            config, folder, patient.ablation, gpu_bytes=_gpu_bytes(patient)
        ):
            # Arms mostly have most of this in common.
            key = (check.section, check.what, check.detail)
            if key not in seen:
                seen.add(key)
                yield check


def folder_of(patient: Patient, path: str) -> Path | None:
    """Where a model lies whole; None when it does not, or is the embedded one."""
    _, found = patient.found.get(("model", path), (None, None))
    return found.folder if found and not found.problems else None


def _gpu_bytes(patient: Patient) -> int | None:
    if patient.gpu_gb is not None:
        return int(patient.gpu_gb * 2**30)
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    # Without a driver it complains on stdout; of a GPU that shares the host's memory it says [N/A].
    sizes = [int(size) for size in told.stdout.split() if size.isdigit()]
    return min(sizes) * 2**20 if told.returncode == 0 and sizes else None


COSTLESS = ("seed", "prompt", "reward", "weighting", "optim", "loss")
"""Parts of a training's settings that change neither what it reads nor what it needs."""


def distinct_configs(plan: Plan) -> dict[str, list[str]]:
    """What the doctor looks at of the training configs, as JSON -> the arms that have it."""
    found: dict[str, list[str]] = {}
    for run in plan.runs:
        if run.config is None:
            continue
        kept = {key: value for key, value in run.config.items() if key not in COSTLESS}
        kept["loss"] = {"kl_coefficient": run.config["loss"]["kl_coefficient"]}
        kept["data"] = {**run.config["data"], "order": "shuffled"}
        kept["rollout"] = {**run.config["rollout"], "refill_rounds": 0}
        arms = found.setdefault(json.dumps(kept, sort_keys=True), [])
        if run.arm not in arms:
            arms.append(run.arm)
    return found


def _cluster(patient: Patient) -> Iterator[Check]:
    yield from doctor_slurm.examine(patient.plan, patient.profile)


def _disk(patient: Patient) -> Iterator[Check]:
    """Checkpoints of all trainings, as they stay, and the one that is being written."""
    from harness import doctor_model

    needed, unknown = 0, 0
    for run in patient.plan.runs:
        if run.config is None:
            continue
        size = _checkpoint_bytes(patient, run, doctor_model.checkpoint_bytes)
        if size is None:
            unknown += 1
            continue
        needed += size * run.config["checkpoint_keep"]
    if not needed:
        return
    largest = needed // max(1, sum(run.config is not None for run in patient.plan.runs))
    folder = patient.store.directory.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    enough = needed + largest <= free
    yield Check(
        section="disk",
        what=str(folder),
        state="ok" if enough else "missing",
        detail=f"checkpoints of all trainings take {size_in_words(needed + largest)}, "
        f"{size_in_words(free)} are free"
        + (f"; {unknown} models are of unknown size" if unknown else ""),
        remedy=""
        if enough
        else "another --out, checkpoint_keep: 1, or python -m harness.gc DIR --delete meanwhile, "
        "which removes what finished trainings need no more",
    )


def _checkpoint_bytes(
    patient: Patient, run: Run, measure: Callable[[TrainConfig, Path | None], int | None]
) -> int | None:
    config = from_mapping(TrainConfig, run.config, source=patient.file)
    return measure(config, folder_of(patient, config.model.path))


def _time(patient: Patient) -> Iterator[Check]:
    plan = patient.plan
    statuses = known_statuses(plan, patient.store)
    cost = estimate(plan, statuses, cores=machine.cores(), jobs=patient.jobs)
    for kind, stages in plan.stages_of().items():
        asked = stages[0].resources
        seconds = cost.stage_seconds[kind]
        gpus = asked.gpus * asked.nodes
        source = (
            "measured in " + str(patient.store.directory)
            if cost.measured[kind]
            else (f"stated by resources.{kind}.hours")
        )
        detail = f"{len(stages)} x {duration(seconds)} ({source})"
        if gpus:
            detail += f" = {len(stages) * seconds * gpus / 3600:,.0f} GPU hours"
        if kind == "train" and not cost.measured[kind]:
            detail += f"; that is {_pace(patient, seconds, gpus)}"
        yield Check(section="time", what=kind, state="ok", detail=detail)
    yield Check(
        section="time",
        what="what is left",
        state="ok",
        detail=f"{cost.gpu_hours:,.0f} GPU hours"
        + (
            f"; {duration(cost.seconds)} with {patient.jobs} jobs at a time" if patient.jobs else ""
        ),
    )


def _pace(patient: Patient, seconds: float, gpus: int) -> str:
    """What the stated hours of a training ask of the machine."""
    run = next(run for run in patient.plan.runs if run.arm == patient.plan.reference_arm)
    config = from_mapping(TrainConfig, run.config, source=patient.file)
    steps = config.data.size // config.prompts_per_step
    rows = config.prompts_per_step * config.rollout.group_size
    # What no config says: completions are seldom as long as they may be.
    mean = min(400, config.rollout.max_new_tokens)
    rate = rows * mean * steps / seconds / max(1, gpus)
    return (
        f"{seconds / steps:.0f} s for each of {steps} steps, or {rate:,.0f} sampled tokens/s on "
        f"each {'GPU' if gpus else 'process'} where completions have {mean} tokens on average"
    )


def _some(names: list[str]) -> str:
    """A few names, and how many more."""
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _patient(options: Namespace) -> Patient:
    cli.check_numbers(options.jobs)
    if options.gpu_gb is not None and options.gpu_gb <= 0:
        raise InputError(f"--gpu_gb {options.gpu_gb}: expected more than 0")
    overrides = cli.overrides_of(options.seeds, options.set)
    # What is absent is told by the checks of the inputs.
    ablation, start = load_ablation(Path(options.file), overrides, [])
    plan = make_plan(ablation, start, options.file)
    profile = load_profile(Path(options.profile)) if options.profile else None
    return Patient(
        file=options.file,
        ablation=ablation,
        plan=plan,
        store=Store(Path(options.out) / plan.name),
        profile=profile,
        gpu_gb=options.gpu_gb,
        jobs=options.jobs or (profile.max_submitted if profile else None),
        found={
            (one.kind, one.name): (one, look(one, file=options.file))
            for one in inputs_of(plan, ablation)
        },
    )


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: nothing is missing; 1: something is; 2: bad input."""
    parser = ArgumentParser(
        prog="python -m harness.doctor",
        description="Say what would go wrong with a sweep, before it runs.",
    )
    cli.add_ablation_arguments(parser)
    parser.add_argument(
        "--profile", type=str, default=None, metavar="CLUSTER.yaml", help="The cluster's profile."
    )
    parser.add_argument(
        "--gpu_gb",
        type=float,
        default=None,
        help="Memory of a GPU there in GiB; by default that of this machine's.",
    )
    parser.add_argument(
        "--try",
        action="store_true",
        help="Load the model of the first training, and make one rollout and one forward pass.",
    )
    parser.add_argument("--json", action="store_true", help="Print the checks as JSON.")
    options = parser.parse_args(arguments)

    def command() -> int:
        patient = _patient(options)
        checks = list(examine(patient))
        if options["try"]:
            from harness import doctor_model

            run = next(run for run in patient.plan.runs if run.config is not None)
            config = from_mapping(TrainConfig, run.config, source=options.file)
            checks += doctor_model.attempt(config, folder_of(patient, config.model.path))
        if options.json:
            print(json.dumps([dataclasses.asdict(check) for check in checks], indent=1))
        else:
            show(checks, patient.plan.name)
        return int(any(check.state == "missing" for check in checks))

    return cli.run_command(command)


if __name__ == "__main__":
    raise SystemExit(main())
