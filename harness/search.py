"""Search settings of the trainer with Optuna: ``python -m harness.search ablations/search.yaml``.

Every trial is one training, judged by its own metrics on the validation split; base and ladder are
shared. Afterwards the best trial is compared with the settings it was to improve, on fresh seeds
and on test items, and the report says what came of it. Run again, it goes on: one process asks
Optuna and tells it, trials that were under way are taken up where they are.
"""

import dataclasses
import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from harness import cli, detach, launch, machine
from harness import sweep as sweeps
from harness.ablation_checks import train_config
from harness.ablation_file import to_plain
from harness.dispatch import dispatch
from harness.graph import Plan, Stage, make_plan, training, write_plan
from harness.search_file import Search, comparison, load_search, suggest, value_at
from harness.store import State, Store, whole_lines, write_yaml
from harness.study import open_study, short, value_of, winner, write_found
from harness.watch import Watch

if TYPE_CHECKING:
    import optuna

LOOK_S = 0.5
"""How often the metrics of running trials are read."""
QUEUED = 4
"""Trials at a time on a cluster, where nothing else says how many: a search learns from those that
ended."""


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
            values = [
                value_of(objective, rows, self._path) for objective in self._search.objectives
            ]
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
        chosen = ", ".join(f"{key} {short(value)}" for key, value in settings.items())
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
        chosen = ", ".join(f"{key} {short(value)}" for key, value in best.items())
        seeds = ", ".join(map(str, self._search.confirm.seeds))
        print(f"\ncomparing {chosen} with the default on seeds {seeds}", flush=True)


def run(options: Namespace, command: str) -> int:
    """Run the command; its exit code. Raises InputError."""
    began = time.monotonic()
    told = sweeps.launch_of(options, command)
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
