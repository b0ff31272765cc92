"""Where a run is written down: JSONL files, warnings, TensorBoard and Weights & Biases."""

import dataclasses
import importlib.util
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from observe.config import TrainConfig
from observe.errors import InputError
from observe.health import Health, Notice
from observe.mapping import to_mapping
from observe.metrics import JsonLines, completions_table

_log = logging.getLogger(__name__)


class Logbook:
    """Writes the rows of a run, and says what is wrong with it; a resumed run goes on in it."""

    def __init__(self, config: TrainConfig, out: Path | None, *, resume_at: int) -> None:
        """Open the files in ``out`` and drop what lies beyond step ``resume_at``.

        Without a folder nothing is written or said: of several processes the first alone does.
        Raises InputError when a log is damaged, or asked for and not installed.
        """
        self._metrics = JsonLines(out and out / "metrics.jsonl", resume_at=resume_at)
        self._completions = JsonLines(out and out / "completions.jsonl", resume_at=resume_at)
        self._warnings = JsonLines(out and out / "warnings.jsonl", resume_at=resume_at)
        self._silent = out is None
        self._health = Health(accuracy_weight=config.reward.accuracy)
        for row in self.rows():
            self._health.observe(row)
        self._tensorboard = out and _tensorboard(config, out, resume_at)
        self._wandb = out and _wandb(config, out)

    def rows(self) -> list[dict[str, Any]]:
        """The metrics so far, one row per step."""
        return self._metrics.rows()

    @property
    def notices(self) -> list[Notice]:
        """What was found to be wrong with the run, or over, so far."""
        return self._health.notices

    def log(self, row: dict[str, Any]) -> None:
        """Write the metrics of a step; a sickness that begins or ends with it is said aloud."""
        if self._silent:
            return
        row = self._metrics.append(row)
        for notice in self._health.observe(row):
            self._warnings.append(dataclasses.asdict(notice))
            _log.warning("warning: step %d: %s", notice.step, notice.message)
        numbers = {k: v for k, v in row.items() if k != "step" and isinstance(v, (int, float))}
        if self._tensorboard:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, row["step"])
            self._tensorboard.flush()
        if self._wandb:
            self._wandb.log(numbers, step=row["step"], commit=True)

    def log_completions(self, row: dict[str, Any]) -> None:
        """Write a group of completions (`observe.metrics.completion_row`)."""
        self._completions.append(row)
        if self._tensorboard:
            self._tensorboard.add_text("completions", completions_table(row), row["step"])

    def sync(self) -> None:
        """Bring the files to the disk: a checkpoint must find the rows up to its step there."""
        for lines in (self._metrics, self._completions, self._warnings):
            lines.sync()

    def close(self) -> None:
        """End what listens."""
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def progress_message(row: Mapping[str, Any]) -> str:
    """The row of a step in one line: what is learned, and where the time goes."""
    split = "  ".join(
        f"{name} {row[key]:.2f} s"
        for name, key in (
            ("rollout", "timing_s/gen"),
            ("reward", "timing_s/reward"),
            ("forward/backward", "timing_s/forward_backward"),
            ("optimizer", "timing_s/optimizer"),
        )
        if key in row
    )
    return (
        f"reward {row['reward']:.3f}  length {row['completions/mean_length']:.1f}  "
        f"form {1 - row['observe/format_failure_share']:.0%}  {split}"
    )


def _tensorboard(config: TrainConfig, out: Path, resume_at: int) -> Any:
    """A writer of event files, or None when none is wanted."""
    installed = importlib.util.find_spec("tensorboard") is not None
    if config.log_tensorboard and not installed:
        raise InputError(
            "log_tensorboard: the package tensorboard is not installed; "
            "pip install tensorboard, or set it to null or false"
        )
    if not installed or config.log_tensorboard is False:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"), purge_step=resume_at + 1)


def _wandb(config: TrainConfig, out: Path) -> Any:
    """A run of Weights & Biases, which a resumed training continues, or None."""
    if config.log_wandb is None:
        return None
    if importlib.util.find_spec("wandb") is None:
        raise InputError(
            "log_wandb: the package wandb is not installed; pip install wandb, or set it to null"
        )
    import wandb

    # The folder's id: a run that goes on in this folder is the same run there.
    known = out / "wandb-id"
    if not known.exists():
        known.write_text(secrets.token_hex(4), encoding="utf-8")
    return wandb.init(
        project=config.log_wandb,
        id=known.read_text(encoding="utf-8"),
        resume="allow",
        name=out.name,
        dir=str(out),
        config=to_mapping(config),
    )
