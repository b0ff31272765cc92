"""The arms' resolved configs: how they differ, and what a variant is for."""

from __future__ import annotations

import re
from typing import Any

from reports.tables import Tables


def variant_role(tables: Tables, arm: str) -> str | None:
    """Whether a variant is a "placebo" or a "second seed" (A/A); None for any other.

    By the configs when they are recorded (only seeds differ from the reference's), else by name.
    """
    if "placebo" in arm:
        return "placebo"
    own, reference = tables.configs.get(arm), tables.configs.get(tables.reference)
    if own is not None and reference is not None:
        differing = differing_keys([own, reference])
        seeds_only = all(key.split(".")[-1] == "seed" for key in differing)
        return "second seed" if seeds_only else None
    return (
        "second seed" if re.search(r"seed|again|repeat|(^|[^a-z])a[_/]?a([^a-z]|$)", arm) else None
    )


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    if not isinstance(config, dict):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differing_keys(configs: list[Any]) -> list[str]:
    """Dotted keys whose values are not the same in all configs."""
    flat = [flatten(config) for config in configs]
    keys = sorted(set().union(*flat))
    return [key for key in keys if any(one.get(key) != flat[0].get(key) for one in flat)]
