"""The ablation file: a question, as typed values."""

import dataclasses
from typing import Any, Literal

Levels = dict[str, str]
"""Factor -> level."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factor:
    """One thing that is switched."""

    control: str
    """The level that stands for "without"; effects are a level minus this one."""
    levels: dict[str, dict[str, Any]]
    """Level -> settings of the trainer it makes (dotted keys)."""
    when: Levels = dataclasses.field(default_factory=dict)
    """Levels of other factors that must hold for this one to vary; elsewhere it stays at its
    control level, and cells that are then equal are run once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A named extra arm: the reference with something changed that is no factor.

    It is run and compared, and takes no part in the factors' effects.
    """

    levels: Levels = dataclasses.field(default_factory=dict)
    """Factor levels that differ from the reference's."""
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the trainer made last (dotted keys), e.g. reward.shuffle: true for a placebo."""
    seeds: tuple[int, ...] | None = None
    """Its seeds instead of the sweep's: another one for an A/A pair with the reference, several for
    a placebo, which drifts at random and whose spread only its own runs tell."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """What one stage occupies."""

    gpus: int = 0
    """GPUs on each node; without any, the stage sees none."""
    cpus: int = 1
    """Cores on each node, and threads of torch, shared out among its processes. Part of a stage's
    identity: the thread count changes floating-point results."""
    mem_gb: float = 3.0
    """Memory on each node in gigabytes."""
    nodes: int = 1
    """Machines that work on the stage together (train alone, and more than one on Slurm alone)."""
    processes: int = 1
    """Processes on each node (train alone), mostly one per GPU; parallel.strategy says how they
    share the work. Their number on all nodes is part of a stage's identity."""
    hours: float = 1.0
    """Expected hours, for estimates until a stage of the kind has been measured."""

    @property
    def ranks(self) -> int:
        """Processes on all nodes."""
        return self.nodes * self.processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageResources:
    """What the stages of each kind occupy."""

    base: Resources = Resources()
    """Building the embedded base model."""
    ladder: Resources = Resources()
    """Building the curriculum."""
    train: Resources = Resources()
    """One training run."""
    evaluate: Resources = Resources()
    """The evaluation of one model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
    """A comparison of two arms that was planned before the results were seen."""

    arm: str
    """The arm of interest."""
    against: str
    """What it is compared with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """How the results are reported."""

    confidence: float = 0.95
    """Level of the intervals."""
    correction: Literal["holm", "none"] = "holm"
    """Correction for multiple comparisons within a family."""
    planned_contrasts: tuple[Contrast, ...] = ()
    """Comparisons that the sweep was made for."""


Design = Literal[
    "full_factorial",
    "fractional_factorial",
    "leave_one_out",
    "add_one_in",
    "product",
    "zip",
    "arms",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """An ablation file."""

    name: str
    """Name of the sweep, and of its folder."""
    recipe: str
    """What every arm starts from: a named recipe, or a YAML file of training settings."""
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the trainer that differ from the recipe in every arm (dotted keys)."""
    factors: dict[str, Factor]
    """Factor -> its levels."""
    design: Design
    """Which cells are run: full_factorial (all); fractional_factorial (the smallest regular
    two-level fraction of the resolution asked for that holds the reference); leave_one_out (the
    reference, and the reference without each of its factors); add_one_in (the control, the control
    with one level of one factor, and the reference); product (all combinations of the factors under
    vary, the others as in the reference); zip (their first levels, their second levels, ..., and
    the reference); arms (those listed under arms)."""
    resolution: Literal["III", "IV", "V"] | None = None
    """Of a fractional_factorial: III keeps main effects apart from each other, IV also from
    interactions of two factors, V also those from each other."""
    vary: tuple[str, ...] = ()
    """The factors of designs product and zip."""
    reference: Levels
    """The level of every factor in the reference arm."""
    arms: tuple[Levels, ...] = ()
    """The cells of design arms; a factor that is not named has its control level."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each cell is run once with each."""
    exclude: tuple[Levels, ...] = ()
    """Cells that are not run: every cell with all of these levels."""
    variants: dict[str, Variant] = dataclasses.field(default_factory=dict)
    """Name -> an extra arm."""
    evaluate: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the evaluation, without the prompt: each arm has its own."""
    resources: StageResources = StageResources()
    """What stages occupy."""
    report: Report = Report()
    """How results are reported."""
