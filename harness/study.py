"""Optuna's side of a search: its study, and what the study has found."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.ablation_file import to_plain
from harness.search_file import Objective, Range, Search, value_at
from harness.store import Store, write_atomically
from observe.errors import InputError

if TYPE_CHECKING:
    import optuna


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
            row[f"setting/{key}"] = value if isinstance(value, (int, float)) else short(value)
        trials.append(row)
    best = winner(search, start, study)
    found = {
        "objectives": [dataclasses.asdict(objective) for objective in search.objectives],
        "space": {
            key: {
                "log": values.log,
                "choices": [short(choice) for choice in values.choices],
                "default": short(value_at(start, key)),
                "winner": None if best is None else short(best[key]),
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


def value_of(objective: Objective, rows: list[dict[str, Any]], path: Path) -> float:
    """What a training reached, from its metrics.

    Raises InputError where it recorded no such metric; ``path`` is the search file, for that.
    """
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


def short(value: Any) -> str:
    """A setting's value for people."""
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
