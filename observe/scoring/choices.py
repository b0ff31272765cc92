"""Which options a text names: by letter, by text, by value."""

import re
from collections.abc import Sequence
from functools import lru_cache
from string import ascii_uppercase

from observe.scoring.units import without_unit
from observe.scoring.values import Number, clean, fold, numbers_equal, read_number, read_yes_no

LETTER = (
    r"(?:\([A-J]\)|(?<![\w'])(?:[Oo]ption|[Cc]hoice)\s+(?:[A-J](?!\w)|\([A-J]\))"
    r"|(?<![\w'])[B-HJ](?![\w'])|(?<![\w'])[AI](?=\s*(?:[.):,;*/]|\Z|\n|or\b|and\b)))"
)
"""An option letter where an answer is expected: the words "A" and "I" count only where they end
something."""

MARKED = (
    r"(?:(?<!\w)\([A-J]\)|(?<![\w'])(?:[Oo]ption|[Cc]hoice)\s+(?:[A-J](?!\w)|\([A-J]\)))"
    r"(?!\s+is(?:n't|\s+(?:not|incorrect|wrong|false))\b)"
)
"""An option letter that cannot be anything else, in the middle of prose too, and is not denied."""

LETTERED = re.compile(r"\(?([A-J])(?:\s?[).:]|\s+-)\s+(?!or\b|and\b|,)(\S.*)", re.DOTALL)
"""An option written with its letter: "B. blue", "(B) blue" or "B - blue"."""

_LETTER = re.compile(LETTER)
_ROOT = re.compile(r"(?:\\sqrt|\u221a)\s*\{\s*(\w+)\s*\}")
_ALONE = re.compile(r"\(([A-J])\)")
_ONLY_LETTERS = re.compile(
    r"\(?[A-Ja-j]\)(?:[,;/\s]*(?:or|and)?\s*\(?[A-Ja-j]\)?)*"
    r"|[A-Ja-j](?:\s*(?:[,;/]|\bor\b|\band\b)+\s*\(?[A-Ja-j]\)?)+"
)
_NEGATION = re.compile(r"\b(?:not|never|neither|none)\b|n't\b", re.IGNORECASE)
_DENIED_FIRST = re.compile(
    r"(?:[\w']+\s+){0,4}?(?:not|never|neither|\w+n't)\s+(?:be\s+)?(?:the\s+|an?\s+)?", re.IGNORECASE
)
_REJECTED = re.compile(
    r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?(?:\([A-J]\)|[A-J])\s+"
    r"(?:is\s+(?:incorrect|wrong|false)|(?:is\s+not|isn't)\s+(?:the\s+)?(?:correct|right|answer))\b"
)
_GOES_ON = r"[.,:/]?\w|\s*\\sqrt|\s*\u221a"
"""What follows a text that is only the beginning of a word or of an expression."""
_ON = re.compile(_GOES_ON)
_CLAUSE_END = re.compile(r"[;\n]|,\s|\.\s|\s(?:because|since|as|so|which)\s", re.IGNORECASE)
_WRITING = re.compile(r"(?<=\\)[dt](?=frac)|[\s\\{}$]")
_LONE_LETTER = re.compile(r"\b[A-Za-z]\b")
_WORD = re.compile(r"\w+")
_PLURAL = re.compile(r"(?<=\w\w[^\Ws])s$")
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the it they this that is are be will would likely most probably also around about",
    )
)


@lru_cache(maxsize=4096)
def key(text: str) -> str:
    r"""What remains of a text when writing habits are gone: "6 √5" and "$6\sqrt{5}$" agree."""
    text = fold(text).replace("\u221a", "sqrt").replace("\u03c0", "pi")
    return _WRITING.sub("", text)


@lru_cache(maxsize=4096)
def numeric_options(options: tuple[str, ...]) -> tuple[Number, ...] | None:
    """The options as numbers, units aside; None unless all of them are numbers."""
    found = tuple(number for number in _values(options) if number is not None)
    return found if found and len(found) == len(options) else None


@lru_cache(maxsize=4096)
def _values(options: tuple[str, ...]) -> list[Number | None]:
    return [read_number(clean(option)) for option in options]


@lru_cache(maxsize=4096)
def yes_no_options(options: tuple[str, ...]) -> bool:
    """Whether the options are just yes and no (or true and false)."""
    return len(options) == 2 and {read_yes_no(clean(option)) for option in options} == {True, False}


@lru_cache(maxsize=4096)
def mention_pattern(options: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern for any option's text as whole words, longest first, whatever its case."""
    texts = sorted(set(_folded(options)) - {""}, key=len, reverse=True)
    alternatives = "|".join(map(re.escape, texts))
    return re.compile(rf"(?<![\w.])(?i:{alternatives})(?!{_GOES_ON})" if texts else "(?!)")


def mentioned(text: str, options: tuple[str, ...], *, loosely: bool = False) -> set[int]:
    """The options whose text stands in cleaned `text` as whole words.

    `loosely`: articles and words such as "will" and "likely" may come or go.
    """
    if loosely:
        words = _content(text)
        wanted = [_content(option) for option in options]
        found = {i for i, option in enumerate(wanted) if _within(option, words)}
        return {i for i in found if not any(_proper(wanted[i], wanted[j]) for j in found)}
    folded, text = _folded(options), _bare_roots(text)
    if _all_ascii(options) and text.isascii():
        return _mentioned_ascii(text.lower(), folded)
    matches = mention_pattern(options).findall(text)
    return {folded.index(match.casefold()) for match in matches}


def denied(text: str, options: Sequence[str] | None) -> bool:
    """Whether cleaned `text` begins by denying an option: "not B", "it isn't red", "B is wrong"."""
    options = tuple(options or ())
    if _REJECTED.match(text):
        return True
    if not _NEGATION.search(text) or any(map(_NEGATION.search, options)):
        return False  # Where an option says "not", it may be what is meant.
    first = _DENIED_FIRST.match(text)
    rest = text[first.end() :] if first else ""
    names = tuple(name for name in _folded(options) if name)
    return bool(rest) and (_LETTER.match(rest) is not None or fold(rest).startswith(names))


def _mentioned_ascii(text: str, options: Sequence[str]) -> set[int]:
    """What `mention_pattern` finds, without making it, which takes longer than all else."""
    places = []
    for index, option in enumerate(options):
        start = text.find(option) if option else -1
        while start >= 0:
            places.append((start, -len(option), index))
            start = text.find(option, start + 1)
    found, end = set(), 0
    for start, length, index in sorted(places):
        begins = start == 0 or not (text[start - 1].isalnum() or text[start - 1] in "_.")
        if start >= end and begins and not _ON.match(text, start - length):
            found.add(index)
            end = start - length
    return found


def read_choices(text: str, options: Sequence[str] | None) -> set[int]:
    """The options (by index) that cleaned `text` names, by letter, by text or by value."""
    if not options:
        return {ascii_uppercase.index(letter) for letter in _letters(text, 10)}
    options = tuple(options)
    if len(text) == 1 and text.isascii() and text.isalpha():
        index = ascii_uppercase.index(text.upper())
        return {index} if index < len(options) else set()
    keys = _keys(options)
    if key(text) in keys:
        return {keys.index(key(text))}
    alone = _ALONE.fullmatch(text)
    if alone:
        index = ascii_uppercase.index(alone[1])
        return {index} if index < len(options) else set()
    lettered = LETTERED.match(text)
    if lettered and ascii_uppercase.index(lettered[1]) < len(options):
        return _lettered(ascii_uppercase.index(lettered[1]), lettered[2], options, keys)
    letters = {ascii_uppercase.index(letter) for letter in _letters(text, len(options))}
    texts = {i for i in mentioned(text, options) if len(keys[i]) > 1 or not letters}
    if letters or texts:
        return letters | texts
    number = read_number(text)
    values = _values(options) if number else []
    equal = {i for i, v in enumerate(values) if v and number and numbers_equal(number, v)}
    if equal:
        return equal
    if yes_no_options(options):
        said = read_yes_no(text)
        return {i for i, option in enumerate(options) if read_yes_no(clean(option)) is said}
    return mentioned(text, options, loosely=True)


def _lettered(letter: int, rest: str, options: tuple[str, ...], keys: Sequence[str]) -> set[int]:
    """What follows "C. " is that option's text in some spelling, unless it is another's."""
    clause = _CLAUSE_END.split(rest, maxsplit=1)[0].rstrip(" .)")
    written = key(clause)
    if written == keys[letter] or (len(keys[letter]) > 1 and written.startswith(keys[letter])):
        return {letter}
    bare = [key(without_unit(option)) for option in options]
    for texts, text in ((keys, written), (bare, key(without_unit(clause)))):
        if text in texts:
            return {letter, texts.index(text)}
    others = mentioned(clause, options)
    return {letter} | others if letter not in others else {letter}


@lru_cache(maxsize=4096)
def _keys(options: tuple[str, ...]) -> list[str]:
    return [key(option) for option in options]


@lru_cache(maxsize=4096)
def _folded(options: tuple[str, ...]) -> list[str]:
    return [_bare_roots(fold(option)) for option in options]


@lru_cache(maxsize=4096)
def _all_ascii(options: tuple[str, ...]) -> bool:
    return all(option.isascii() for option in _folded(options))


def _bare_roots(text: str) -> str:
    """Roots of one number or letter without braces, as prose has them."""
    return _ROOT.sub("\u221a\\1", text) if "{" in text else text


@lru_cache(maxsize=4096)
def _content(text: str) -> tuple[str, ...]:
    words = _WORD.findall(fold(text))
    content = tuple(_PLURAL.sub("", word) for word in words if word not in _FUNCTION_WORDS)
    # A lone letter or number is too little to go by.
    return content if len("".join(content)) > 2 else ()


def _within(wanted: tuple[str, ...], words: tuple[str, ...]) -> bool:
    count = len(wanted)
    return count > 0 and any(words[i : i + count] == wanted for i in range(len(words) - count + 1))


def _proper(part: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    return part != whole and _within(part, whole)


def _letters(text: str, count: int) -> set[str]:
    if len(text) == 1 or _ONLY_LETTERS.fullmatch(text):
        named = {letter.upper() for letter in _LONE_LETTER.findall(text)}
    else:
        named = {m.rstrip(")")[-1] for m in _LETTER.findall(text)}
    return named & set(ascii_uppercase[:count])
