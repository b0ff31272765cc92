"""Ablation files and plans for the tests."""

from pathlib import Path
from typing import Any

from harness.ablation import Resources
from harness.ablation_file import load_ablation
from harness.graph import Plan, Stage, make_plan
from harness.store import write_yaml
from observe.mapping import with_overrides

ABLATION: dict[str, Any] = {
    "name": "small",
    "recipe": "recipe.yaml",
    "factors": {
        "curriculum": {
            "control": "off",
            "levels": {"off": {"data.order": "shuffled"}, "on": {"data.order": "ladder"}},
        },
        "format": {
            "control": "off",
            "levels": {
                "off": {"prompt": "think", "reward.format": "think"},
                "on": {"prompt": "observe", "reward.format": "observe"},
            },
        },
        "bonus": {
            "control": "off",
            "levels": {"off": {"reward.bonus.weight": 0.0}, "on": {"reward.bonus.weight": 0.2}},
        },
    },
    "design": "full_factorial",
    "reference": {"curriculum": "on", "format": "on", "bonus": "on"},
    "variants": {"placebo": {"set": {"reward.shuffle": True}}, "again": {"seeds": [1000]}},
    "evaluate": {"suites": ["reasoning", "general"]},
    "resources": {"base": {"cpus": 2}, "train": {"hours": 0.5}},
}
"""Two to the three cells and two variants."""


def write_ablation(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """Write ABLATION with dotted changes, and its recipe, into a folder."""
    recipe, file = folder / "recipe.yaml", folder / "ablation.yaml"
    recipe.write_text("data: {size: 48}\nrollout: {group_size: 4}\n", encoding="utf-8")
    write_yaml(file, with_overrides(ABLATION, changes or {}))
    return file


def plan_of(file: Path, overrides: dict[str, Any] | None = None) -> Plan:
    """The plan of an ablation file."""
    ablation, start = load_ablation(file, overrides)
    return make_plan(ablation, start, str(file))


def stages(
    *described: tuple[str, dict[str, Any], list[str]], cpus: int = 1, processes: int = 1
) -> Plan:
    """A plan of fake stages: (id, config, ids of the stages it consumes)."""
    return Plan(
        name="fake",
        reference_arm="control",
        runs=[],
        stages={
            id: Stage(
                id=id,
                kind="fake",
                config=config,
                consumes={f"input{i}": consumed for i, consumed in enumerate(consumes)},
                resources=Resources(cpus=cpus, processes=processes, mem_gb=0.1),
            )
            for id, config, consumes in described
        },
    )
