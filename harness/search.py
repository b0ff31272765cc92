"""Search settings of the trainer with Optuna: ``python -m harness.search ablations/search.yaml``.

Every trial is one training, judged by its own metrics on the validation split; base and ladder are
shared. Afterwards the best trial is compared with the settings it was to improve, on fresh seeds
and on test items, and the report says what came of it. Run again, it goes on: one process asks
Optuna and tells it, trials that were under way are taken up where they are.
"""

import dataclasses
import hashlib
import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace

from harness import cli, detach, launch, machine
from harness import sweep as sweeps
from harness.ablation import (
    Ablation,
    Report,
    StageResources,
    override,
    read_ablation,
    to_plain,
    train_config,
)
from harness.dispatch import dispatch
from harness.graph import Plan, Stage, make_plan, training, write_plan
from harness.launch import Launch
from harness.store import State, Store, whole_lines, write_atomically, write_yaml
from harness.watch import Watch
from observe.config import from_mapping, load_yaml
from observe.errors import InputError

if TYPE_CHECKING:
    import optuna

LOOK_S = 0.5
"""How often the metrics of running trials are read."""
QUEUED = 4
"""Trials at a time on a cluster, where nothing else says how many: a search learns from those that
ended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """The values that a setting may take: from low to high, or one of choices."""

    low: int | float | None = None
    """The least value."""
    high: int | float | None = None
    """The greatest value."""
    log: bool = False
    """Whether to draw its logarithm evenly."""
    step: int | float | None = None
    """Distance between values."""
    choices: tuple[Any, ...] = ()
    """All values, where they are no range."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a good trial is."""

    metric: str = "eval/accuracy"
    """A metric of the training (``metrics.jsonl``); those under eval/ are of the validation
    split."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """Which values are good."""
    take: Literal["last", "best", "mean"] = "last"
    """The last value that was recorded, the best, or the mean of all after the start."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Confirm:
    """The comparison of the best trial with the settings it was to improve."""

    seeds: tuple[int, ...] = (101, 102, 103)
    """Fresh seeds: the search has seen none of them."""
    evaluate: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the evaluation, as in an ablation file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A search file."""

    name: str
    """Name of the search, and of its folder."""
    recipe: str
    """What every trial starts from: a named recipe, or a YAML file of training settings."""
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the trainer that differ from the recipe in every trial (dotted keys)."""
    space: dict[str, Range]
    """Setting of the trainer (dotted key) -> the values it may take."""
    objectives: tuple[Objective, ...] = (Objective(),)
    """What is sought; with two or more, the trials that no other beats in all of them."""
    sampler: Literal["tpe", "cmaes", "random", "nsga2"] = "tpe"
    """How values are chosen: tpe and cmaes learn from earlier trials, random does not, nsga2 is
    for several objectives."""
    pruner: Literal["none", "median", "hyperband"] = "none"
    """Which trials are ended early, by what they have reached so far: none, those below the median
    of earlier trials at the same step, or all but the best of ever fewer at ever more steps."""
    warmup_steps: int = 0
    """Training steps before the median may end a trial."""
    startup_trials: int = 5
    """Trials before the sampler and the median trust what they have seen."""
    trials: int = 20
    """How many trials, with those that were ended early."""
    seed: int = 0
    """Seed of the sampler, and of every trial's training."""
    confirm: Confirm = Confirm()
    """The comparison afterwards."""
    resources: StageResources = StageResources()
    """What stages occupy."""
    report: Report = Report()
    """How the comparison is reported."""


def load_search(path: Path, overrides: dict[str, Any]) -> tuple[Search, dict[str, Any]]:
    """Read a search file: the search, and the training settings every trial starts from.

    Raises InputError, naming file, key and remedy.
    """
    raw = load_yaml(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a mapping, got {raw!r}; see ablations/search.yaml")
    keys = {field.name for field in dataclasses.fields(Search)}
    raw = override(raw, overrides, keys, str(path))
    search = from_mapping(Search, raw, source=str(path))
    _check(search, str(path))
    # The comparison is checked before the first trial; what will win is not known yet.
    some = {key: (r.choices or (r.low, r.high))[0] for key, r in search.space.items()}
    other = {key: (r.choices or (r.low, r.high))[-1] for key, r in search.space.items()}
    _, start = comparison(search, path, some, other)
    for key, values in search.space.items():
        for value in values.choices or (values.low, values.high):
            train_config(start, {key: value}, f"{path}: space.{key}")
    return search, start


def _check(search: Search, source: str) -> None:
    if not search.space:
        raise InputError(f"{source}: space: no setting to search; name at least one")
    for key, values in search.space.items():
        where = f"{source}: space.{key}"
        if len(values.choices) == 1:
            raise InputError(f"{where}.choices: expected two or more; set a fixed value under set")
        if values.choices:
            if values.low is not None or values.high is not None or values.log or values.step:
                raise InputError(f"{where}: expected choices, or low and high; remove one of them")
        elif values.low is None or values.high is None or values.low >= values.high:
            raise InputError(f"{where}: expected low and high, low < high, or choices")
        elif values.log and (values.low <= 0 or values.step):
            raise InputError(f"{where}: with log, expected low > 0 and no step")
    metrics = [objective.metric for objective in search.objectives]
    if not metrics or len(set(metrics)) < len(metrics):
        raise InputError(f"{source}: objectives: expected one or more, of different metrics")
    if len(metrics) > 1 and search.pruner != "none":
        raise InputError(
            f"{source}: pruner: {search.pruner} judges by one objective, and there are "
            f"{len(metrics)}; set it to none"
        )
    if len(metrics) > 1 and search.sampler == "cmaes":
        raise InputError(f"{source}: sampler: cmaes has one objective; use tpe or nsga2")
    if search.trials < 1:
        raise InputError(f"{source}: trials: expected 1 or more, got {search.trials}")
    if not search.confirm.seeds or search.seed in search.confirm.seeds:
        raise InputError(
            f"{source}: confirm.seeds: expected seeds that the trials do not have ({search.seed} "
            "is theirs)"
        )


def comparison(
    search: Search, path: Path, default: dict[str, Any], winner: dict[str, Any]
) -> tuple[Ablation, dict[str, Any]]:
    """The question whether the winner is better than the settings it was to improve.

    A sweep of two arms on fresh seeds, and the training settings it starts from.
    """
    raw = {
        "name": search.name,
        "recipe": search.recipe,
        "set": search.set,
        "factors": {
            "winner": {
                "control": "off",
                "levels": {"off": default, "on": winner},
            }
        },
        "design": "full_factorial",
        "reference": {"winner": "on"},
        "seeds": list(search.confirm.seeds),
        "evaluate": search.confirm.evaluate,
        "resources": dataclasses.asdict(search.resources),
        "report": to_plain(search.report),
    }
    return read_ablation(raw, path)


def suggest(trial: "optuna.Trial", search: Search, start: dict[str, Any]) -> dict[str, Any]:
    """Settings for a trial; those that it already has stay."""
    chosen: dict[str, Any] = {}
    for key, values in search.space.items():
        if values.choices:
            # Optuna keeps plain values only; a choice may be a list.
            index = trial.suggest_categorical(key, list(map(json.dumps, values.choices)))
            chosen[key] = json.loads(index)
            continue
        assert values.low is not None and values.high is not None
        if _whole(start, key, values):
            low, high, step = int(values.low), int(values.high), int(values.step or 1)
            chosen[key] = trial.suggest_int(key, low, high, step=step, log=values.log)
        else:
            chosen[key] = trial.suggest_float(
                key, values.low, values.high, step=values.step, log=values.log
            )
    return chosen


def _whole(start: dict[str, Any], key: str, values: Range) -> bool:
    """Whether the setting takes whole numbers alone."""
    assert values.low is not None
    if not all(float(v).is_integer() for v in (values.low, values.high, values.step or 1)):  # type: ignore[arg-type]
        return False
    try:
        train_config(start, {key: values.low + 0.5}, key)
    except InputError:
        return True
    return False


class Owner:
    """The one process that asks Optuna for trials and tells it what became of them."""

    def __init__(
        self,
        search: Search,
        path: Path,
        start: dict[str, Any],
        store: Store,
        study: "optuna.Study",
        *,
        slots: int,
    ) -> None:
        """``slots``: trials at a time. Trials that were under way are taken up first."""
        import optuna

        self.plan = Plan(name=search.name, reference_arm="winner", runs=[], stages={}, start=start)
        self.confirming = False
        self._search, self._path, self._start = search, path, start
        self._store, self._study, self._slots = store, study, slots
        self._live: dict[int, optuna.Trial] = {}
        self._next_look = 0.0
        self._blocked = False
        self._trained: dict[int, str] = {}
        self._stages: dict[str, Stage] = {}
        for frozen in study.get_trials(deepcopy=False):
            if frozen.state.name == "RUNNING":
                self._begin(optuna.Trial(study, frozen._trial_id))
            elif frozen.state.name in ("COMPLETE", "PRUNED"):
                self._stages |= self._add(frozen.number, frozen.user_attrs["settings"])
        self.plan.stages.update(self._stages)
        self._stages = {}

    def grow(self, states: dict[str, State]) -> list[Stage]:
        """What the dispatcher is to run as well, after looking at what ended."""
        final = ("done", "failed", "cancelled")
        ended = all(states.get(self._trained[number]) in final for number in self._live)
        # The dispatcher ends when nothing runs and nothing new is asked for.
        if ended or time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_S
            for number in list(self._live):
                self._look(number, states)
            self._ask()
            if not self._live and not self.confirming and not self._blocked:
                self._confirm()
        new, self._stages = list(self._stages.values()), {}
        return new

    def _ask(self) -> None:
        trials = self._study.get_trials(deepcopy=False)
        left = self._search.trials - sum(trial.state.name != "WAITING" for trial in trials)
        for _ in range(min(left, self._slots - len(self._live))):
            if not self._blocked:
                self._begin(self._study.ask())

    def _begin(self, trial: "optuna.Trial") -> None:
        """Choose the settings of a trial, as far as it has none, and have it trained."""
        settings = suggest(trial, self._search, self._start)
        trial.set_user_attr("settings", settings)
        self._stages |= self._add(trial.number, settings)
        self._live[trial.number] = trial
        self._write()

    def _add(self, number: int, settings: dict[str, Any]) -> dict[str, Stage]:
        """Note a trial's run in the plan; the stages it needs."""
        seeded = {**settings, "seed": self._search.seed}
        config = train_config(self._start, seeded, f"{self._path}: trial {number}")
        run, stages = training(f"trial-{number}", config, self._search.resources, self._start)
        self.plan.runs.append(run)
        self._trained[number] = run.stages["train"]
        return stages

    def _write(self) -> None:
        stages = {**self.plan.stages, **self._stages}
        write_plan(dataclasses.replace(self.plan, stages=stages), self._store.plan_file)

    def _look(self, number: int, states: dict[str, State]) -> None:
        """Report what a trial has reached; end it when that is too little; tell when it ended."""
        import optuna

        trial, stage = self._live[number], self._trained[number]
        state = states.get(stage)
        metrics = self._store.folder(stage) / "metrics.jsonl"
        rows = [json.loads(line) for line in whole_lines(metrics)]
        if self._search.pruner != "none":
            self._report(trial, rows)
            if state == "running" and trial.should_prune():
                self._store.prune_marker(stage).touch()
        if state == "done":
            values = [_value(objective, rows, self._path) for objective in self._search.objectives]
            self._told(number, optuna.trial.TrialState.COMPLETE, values)
        elif state == "cancelled" and self._store.status(stage).pruned:
            self._told(number, optuna.trial.TrialState.PRUNED)
        elif state == "failed":
            self._told(number, optuna.trial.TrialState.FAIL)
        elif state == "cancelled":  # Base or ladder failed: nothing was learned of these settings.
            self._blocked = True
            del self._live[number]

    def _report(self, trial: "optuna.Trial", rows: list[dict[str, Any]]) -> None:
        known = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        metric = self._search.objectives[0].metric
        for row in rows:
            if metric in row and row["step"] and row["step"] not in known:
                trial.report(float(row[metric]), int(row["step"]))

    def _told(
        self, number: int, state: "optuna.trial.TrialState", values: list[float] | None = None
    ) -> None:
        self._study.tell(number, values, state=state)
        del self._live[number]
        words = {"COMPLETE": "done", "PRUNED": "ended early", "FAIL": "failed"}[state.name]
        shown = ", ".join(
            f"{objective.metric} {value:.4g}"
            for objective, value in zip(self._search.objectives, values or [], strict=False)
        )
        settings = self._study.get_trials(deepcopy=False)[number].user_attrs["settings"]
        chosen = ", ".join(f"{key} {_short(value)}" for key, value in settings.items())
        print(f"trial {number} {words}: {shown}{' with ' if shown else ''}{chosen}", flush=True)
        write_found(self._search, self._start, self._study, self._store)

    def _confirm(self) -> None:
        """All trials have ended: add the comparison of the best with the default."""
        self.confirming = True
        best = winner(self._search, self._start, self._study)
        if best is None:
            return
        default = {key: value_at(self._start, key) for key in self._search.space}
        ablation, start = comparison(self._search, self._path, default, best)
        write_yaml(self._store.sweep_file, to_plain(ablation))
        plan = make_plan(ablation, start, str(self._path))
        trials = [run for run in self.plan.runs if run.kind == "trial"]
        self.plan.runs[:] = plan.runs + trials
        self._stages |= plan.stages
        self._write()
        chosen = ", ".join(f"{key} {_short(value)}" for key, value in best.items())
        seeds = ", ".join(map(str, self._search.confirm.seeds))
        print(f"\ncomparing {chosen} with the default on seeds {seeds}", flush=True)


def value_at(start: dict[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    value: Any = start
    for part in key.split("."):
        value = value[part]
    return value


def winner(search: Search, start: dict[str, Any], study: "optuna.Study") -> dict[str, Any] | None:
    """Settings of the best trial that differs from the default; None when none was finished.

    With several objectives: of those that no other trial beats, the best in the first. The
    default competes in the comparison, so it cannot win the search.
    """
    import optuna

    default = {key: value_at(start, key) for key in search.space}
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    front = {trial.number for trial in study.best_trials} if len(search.objectives) > 1 else None
    found = [trial for trial in complete if trial.user_attrs["settings"] != default]
    found = [trial for trial in found if front is None or trial.number in front] or found
    sign = -1 if search.objectives[0].direction == "maximize" else 1
    found.sort(key=lambda trial: (sign * trial.values[0], trial.number))
    return found[0].user_attrs["settings"] if found else None


def write_found(search: Search, start: dict[str, Any], study: "optuna.Study", store: Store) -> None:
    """Write ``search.json``: trials, settings and how much each mattered, for the tables."""
    trials = []
    for trial in study.get_trials(deepcopy=False):
        row = {"trial": trial.number, "state": trial.state.name.lower()}
        for i, objective in enumerate(search.objectives):
            done = trial.state.name == "COMPLETE"
            row[f"objective/{objective.metric}"] = trial.values[i] if done else None
        last = max(trial.intermediate_values, default=None)
        row["last_step"] = last
        row["last_value"] = trial.intermediate_values[last] if last is not None else None
        for key in search.space:
            value = trial.user_attrs.get("settings", {}).get(key)
            row[f"setting/{key}"] = value if isinstance(value, (int, float)) else _short(value)
        trials.append(row)
    best = winner(search, start, study)
    found = {
        "objectives": [dataclasses.asdict(objective) for objective in search.objectives],
        "space": {
            key: {
                "log": values.log,
                "choices": [_short(choice) for choice in values.choices],
                "default": _short(value_at(start, key)),
                "winner": None if best is None else _short(best[key]),
            }
            for key, values in search.space.items()
        },
        "importance": _importance(study, len(search.objectives)),
        "sampler": search.sampler,
        "pruner": search.pruner,
        "planned_trials": search.trials,
        "trials": trials,
    }
    write_atomically(store.search_file, json.dumps(found, indent=1), durable=False)


def _importance(study: "optuna.Study", objectives: int) -> dict[str, float]:
    """Setting -> its share in what makes trials differ in the first objective (fANOVA).

    Empty where there are too few finished trials to tell.
    """
    import optuna

    target = (lambda trial: trial.values[0]) if objectives > 1 else None
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len({trial.values[0] for trial in complete}) < 4:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
    return {key: round(share, 4) for key, share in found.items()}


def _value(objective: Objective, rows: list[dict[str, Any]], path: Path) -> float:
    values = [row[objective.metric] for row in rows if objective.metric in row and row["step"]]
    if not values:
        recorded = sorted({key for row in rows for key in row})
        raise InputError(
            f"{path}: objectives: no training recorded {objective.metric!r} after its start; "
            f"recorded: {', '.join(recorded)}; for a metric under eval/, see eval_steps"
        )
    if objective.take == "mean":
        return sum(values) / len(values)
    if objective.take == "best":
        return max(values) if objective.direction == "maximize" else min(values)
    return float(values[-1])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def open_study(search: Search, start: dict[str, Any], store: Store, url: str | None) -> Any:
    """The search's study, new or as an earlier launcher left it.

    Raises InputError when the study that is there was made for another search.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = store.directory / "study.log"
    storage: Any = url
    if url is None:
        # This process holds the folder: a lock that is there is of one that died.
        file.with_name(file.name + ".lock").unlink(missing_ok=True)
        lock = JournalFileOpenLock(str(file))
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(file), lock_obj=lock))
    study = optuna.create_study(
        study_name=search.name,
        storage=storage,
        directions=[objective.direction for objective in search.objectives],
        load_if_exists=True,
    )
    asked = to_plain(search)
    described = {key: asked[key] for key in ("space", "objectives", "sampler", "pruner", "seed")}
    described["start"] = start
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    if study.user_attrs.get("search", digest) != digest:
        raise InputError(
            f"{url or file}: holds trials of a search named {search.name} with another space, "
            "objective, sampler, pruner, seed or start; give this one another name, or remove the "
            "folder"
        )
    study.set_user_attr("search", digest)
    trials = len(study.get_trials(deepcopy=False))
    # A sampler that starts again from the same seed would draw the same values again.
    study.sampler, study.pruner = _sampler(search, trials), _pruner(search)
    if not trials:
        default = {key: value_at(start, key) for key in search.space}
        if all(_within(values, default[key]) for key, values in search.space.items()):
            chosen = {
                key: json.dumps(value) if search.space[key].choices else value
                for key, value in default.items()
            }
            study.enqueue_trial(chosen)
    return study


def _within(values: Range, value: Any) -> bool:
    if values.choices:
        return value in values.choices
    assert values.low is not None and values.high is not None
    return isinstance(value, (int, float)) and values.low <= value <= values.high


def _sampler(search: Search, trials: int) -> Any:
    import optuna

    seed, startup = search.seed + 1000 * trials, search.startup_trials
    if search.sampler == "tpe":
        # Trials that run are taken for bad ones, so that slots do not all try the same.
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True
        )
    if search.sampler == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup)
    if search.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(search: Search) -> Any:
    import optuna

    if search.pruner == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=search.startup_trials, n_warmup_steps=search.warmup_steps
        )
    if search.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner()
    return optuna.pruners.NopPruner()


def run(options: Namespace, command: str) -> int:
    """Run the command; its exit code. Raises InputError."""
    began = time.monotonic()
    cli.check_numbers(options.jobs, options.retries)
    profile = sweeps.profile_of(options)
    path = Path(options.file)
    search, start = load_search(path, cli.overrides_of(None, options.set))
    store = Store(Path(options.out) / search.name)
    cpus = search.resources.train.cpus
    local = options.executor != "slurm"
    slots = options.jobs or (max(1, machine.cores() // cpus) if local else QUEUED)
    settings = ", ".join(search.space)
    print(
        f"{search.name}: {search.trials} trials over {settings}, {slots} at a time; then the best "
        f"against the default on {len(search.confirm.seeds)} fresh seeds",
        flush=True,
    )
    if options.dry_run:
        return 0
    told = Launch(
        executor=options.executor,
        command=command,
        jobs=options.jobs,
        retries=options.retries,
        profile=profile,
    )
    executor = launch.executor_of(told)
    detach.refuse_second(store)
    with store.launcher():
        told = launch.record_code(store, told)
        study = open_study(search, start, store, options.storage)
        owner = Owner(search, path, start, store, study, slots=slots)
        store.event("launched", executor=executor.name, trials=search.trials, code=told.code)
        watch = Watch(owner.plan, store, cores=machine.cores(), jobs=options.jobs)
        try:
            outcome = dispatch(
                owner.plan,
                store,
                executor,
                retries=options.retries,
                code=told.code,
                source=told.source,
                watch=watch,
                grow=owner.grow,
            )
        finally:
            watch.close()
        write_found(search, start, study, store)
        compared = [run for run in owner.plan.runs if run.kind != "trial"]
        if not compared:
            return _unfinished(owner.plan, store, outcome.states, stopped=outcome.stopped)
        plan = dataclasses.replace(owner.plan, runs=compared)
        outcome.states = {
            stage: state
            for stage, state in outcome.states.items()
            if not store.status(stage).pruned
        }
        report_s = launch.report(plan, store, outcome, command)
    return launch.summary(plan, store, outcome, time.monotonic() - began, report_s)


def _unfinished(plan: Plan, store: Store, states: dict[str, State], *, stopped: bool) -> int:
    """Say why there is no comparison; exit code 1."""
    for stage in plan.stages:
        status = store.status(stage)
        if status.state == "failed" and status.error:
            error = f"{status.error['class']}: {status.error['message']}"
            print(f"failed: {stage}: {error}\n  see {store.log(stage)}")
    done = sum(states.get(run.stages["train"]) == "done" for run in plan.runs)
    said = "stopped" if stopped else "no comparison"
    print(f"{said}: {done} trials done; run the same command again to go on")
    return 1


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when all is done, 1 when something failed or is missing, 2 for bad input."""
    parser = ArgumentParser(
        prog="python -m harness.search",
        description="Search settings of the trainer, then compare the best with the default. Run "
        "it again to go on.",
    )
    cli.add_ablation_arguments(parser, search=True)
    sweeps.add_executor_arguments(parser)
    parser.add_argument(
        "--storage",
        type=str,
        default=None,
        metavar="URL",
        help="Where Optuna keeps the trials, e.g. postgresql+psycopg://user@host/base; by default "
        "a journal in the search's folder.",
    )
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    return cli.run_command(lambda: run(options, "python -m harness.search " + shlex.join(given)))


if __name__ == "__main__":
    raise SystemExit(main())
