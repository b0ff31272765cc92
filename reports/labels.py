"""What an effect is called wherever it is named: never without what it cannot be told from."""

from __future__ import annotations

from reports.analysis import Row

PLAIN = ("on", "true", "yes")


def effect_label(row: Row) -> str:
    """A factor or an interaction, with its level when that is not a plain on."""
    if "factors" in row:
        return " × ".join(map(_factor, row["factors"], row["levels"]))
    return _factor(row["factor"], row["level"])


def _factor(name: str, level: str) -> str:
    return name if level in PLAIN else f"{name}={level}"


def full_label(row: Row) -> str:
    """The effect with its aliases: in a fraction the estimate is of their sum."""
    aliases = row.get("aliases") or []
    return (
        f"{effect_label(row)} [aliased with {', '.join(aliases)}]" if aliases else effect_label(row)
    )
