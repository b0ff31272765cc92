"""What an effect is called wherever it is named: never without what it cannot be told from."""

from __future__ import annotations

from reports.analysis import Row
from reports.text import visible

PLAIN = ("on", "true", "yes")
LONGEST = 48
"""Characters of a name in a figure."""


def percent_of(confidence: float) -> str:
    """A confidence as a reader knows it: 95%, 99.9%, never rounded to 100%."""
    return f"{100 * confidence:.10g}%"


def holds(correction: str, confidence: float) -> str:
    """What a star after a number says: that its effect is there, all tests considered or not."""
    if correction == "none":
        return f"p at most {1 - confidence:.2g}, without a correction"
    return f"stands after {correction.capitalize()}'s correction"


def short(text: str, longest: int = LONGEST) -> str:
    """A name that leaves room for the figure it stands in: the middle of a long one is left out."""
    text = visible(text)  # A mark that turns the direction would turn the drawn name too.
    return text if len(text) <= longest else f"{text[: longest - 9]}…{text[-8:]}"


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
