"""Text that others wrote, made harmless: for a page, for Markdown, for LaTeX.

Arms, answers and whole responses come from files and models. What they hold is shown, never obeyed.
"""

from __future__ import annotations

import re
from typing import Any

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
"""Control characters, marks that turn the direction of text, and halves of broken characters."""

_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "−": r"$-$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "–": "--",
    "⟨": "[",
    "⟩": "]",
    "“": "``",
    "”": "''",
} | {mark: f"\\{mark}" for mark in "{}$&#_%"}


def visible(text: str) -> str:
    """The text with what a reader could not see written out, as ⟨U+202E⟩; line breaks stay."""
    return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def finalize(value: Any) -> Any:
    """What a template prints: plain text made visible, all else (numbers, safe markup) as it is."""
    return visible(value) if type(value) is str else value


def markdown(value: Any) -> str:
    """Text of one line that neither Markdown nor the HTML inside Markdown acts upon."""
    text = visible(str(value)).replace("&", "&amp;").replace("\\", "\\\\")
    for mark in "|`*_<>[]~$#!":
        text = text.replace(mark, f"\\{mark}")
    text = re.sub(r"(?i)\b(https?|ftp|mailto|www)([.:])", r"\1&#8203;\2", text)
    return " ".join(text.replace("@", "@&#8203;").split())


def tex(value: Any) -> str:
    """Text of one line for LaTeX, with any engine: no command, no comment, no change of mode.

    Characters that a plain LaTeX does not set (beyond Latin) are written as their code point.
    """
    found = []
    for mark in " ".join(visible(str(value)).split()):
        if mark in _TEX:
            found.append(_TEX[mark])
        elif mark.isascii() or "\u00a1" <= mark <= "\u017f":
            found.append(mark)
        else:
            found.append(f"[U+{ord(mark):04X}]")
    return "".join(found)
