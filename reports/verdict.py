"""The answer in words, written from the numbers alone."""

from __future__ import annotations

from reports.analysis import Row
from reports.labels import full_label, percent_of
from reports.tables import Tables
from reports.validity import points


def verdict(tables: Tables, results: Row) -> list[str]:
    """Paragraphs: the answer, what is open and what it would take, the gain over the base, caveats.

    The first stands alone: which parts matter on each suite, by how much, and how sure that is.
    """
    suites = list(tables.suites)
    paragraphs = [_answer(results, suites)]
    if tables.sweep.get("joined"):
        paragraphs.append(_joined(tables))
    paragraphs.append(_open(results, suites[0]))
    paragraphs.append(_gain(tables, results, suites[0]))
    paragraphs.append(_caveat(tables, results))
    return [text for text in paragraphs if text]


def _joined(tables: Tables) -> str:
    joined = tables.sweep["joined"]
    first, second, factor = joined["first"], joined["second"], joined["factor"]
    count = f"{joined['arms']} arms that both have" if joined["arms"] > 1 else "one shared arm"
    return (
        f"This joins two sweeps, asked the same items. The effect {factor}={second} is what "
        f"{second} differs by from {first}, over the {count}; an interaction with it is a "
        "part that is worth more, or less, in one of them."
    )


def _interval(row: Row, key: str = "estimate") -> str:
    return f"{points(row[key])} points [{points(row['low'])}, {points(row['high'])}]"


def _names(rows: list[Row]) -> list[str]:
    return [full_label(row) for row in rows]


def _needs(rows: list[Row]) -> str:
    """What would resolve these effects, were they as large as they look."""
    ways: list[str] = []
    for row in rows:
        seeds, items = row["seeds_to_resolve"], row["items_to_resolve"]
        where = "" if ways else " in each arm"
        more = [f"{seeds} seeds{where}"] if seeds else []
        more += [f"{items} times the items"] if items and items <= 10 else []
        if more:
            ways.append(f"{full_label(row)} with {' or '.join(more)}")
    if not ways:
        return ""
    looks = "it as large as it looks" if len(rows) == 1 else "they as large as they look"
    return f"Were {looks}, a sweep would show {_join(ways)}."


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _effects(results: Row, suite: str) -> list[Row]:
    return [row for row in results["effects"] if row["suite"] == suite]


def _answer(results: Row, suites: list[str]) -> str:
    """A sentence for each suite, and how sure what is said to help or harm is."""
    if not results["effects"]:
        return "The sweep has no factors, so there is no factor effect to report."
    unknown: dict[str, list[str]] = {}
    for suite in suites:
        rows = _effects(results, suite)
        if rows and not any(row["estimable"] for row in rows):
            unknown.setdefault(rows[0]["why"], []).append(suite)
    said = [_matters(results, suite) for suite in suites]
    sentences = [text for text, _ in said if text]
    for why, names in unknown.items():
        sentences.append(f"No factor's effect on {_join(names)} is estimable: {why}.")
    if any(clear for _, clear in said):
        # Those that are not estimable have no test, and are not corrected for.
        count = max(
            sum(row["estimable"] for row in _effects(results, suite))
            for suite, (_, clear) in zip(suites, said, strict=True)
            if clear
        )
        how = f"Intervals: {percent_of(results['confidence'])}, over runs"
        if results["correction"] != "none" and count > 1:
            how += f"; what helps or harms stands after {results['correction'].capitalize()}'s "
            how += f"correction over the {count} main effects of its suite"
        sentences.append(f"{how}.")
    return " ".join(sentences)


def _matters(results: Row, suite: str) -> tuple[str, bool]:
    """What helps or harms on a suite, and whether anything does."""
    alpha = 1 - results["confidence"]
    estimable = [row for row in _effects(results, suite) if row["estimable"]]
    if not estimable:
        return "", False
    estimable.sort(key=lambda row: -abs(row["estimate"]))
    parts = []
    for up, verb in ((True, "help"), (False, "harm")):
        clear = [
            row for row in estimable if row["p_adjusted"] <= alpha and (row["estimate"] > 0) == up
        ]
        if clear:
            named = [f"{full_label(row)} ({_interval(row)})" for row in clear]
            parts.append(f"{_join(named)} {verb}{'s' if len(clear) == 1 else ''}")
    if parts:
        return f"On {suite}, {'; '.join(parts)}.", True
    near = min(estimable, key=lambda row: row["p_adjusted"])
    if near["p"] <= alpha:
        return (
            f"On {suite}, no factor's effect stands after {results['correction'].capitalize()}'s "
            f"correction; {full_label(near)} comes nearest ({_interval(near)}, "
            f"p {near['p']:.2g}, adjusted {near['p_adjusted']:.2g})."
        ), False
    return (
        f"On {suite}, no factor's effect can be told from 0; the largest is "
        f"{full_label(estimable[0])} ({_interval(estimable[0])})."
    ), False


def _open(results: Row, suite: str) -> str:
    """What a suite leaves open, what would resolve it, and what the sweep could have seen."""
    rows = _effects(results, suite)
    alpha = 1 - results["confidence"]
    estimable = [row for row in rows if row["estimable"]]
    if not estimable:
        return ""
    unclear = [row for row in estimable if row["p_adjusted"] > alpha]
    unclear.sort(key=lambda row: row["p"])
    sentences = []
    if unclear:
        verb = "is" if len(unclear) == 1 else "are"
        parts = [f"{full_label(row)} ({_interval(row)})" for row in unclear]
        sentences.append(f"Unresolved on {suite} {verb} {_join(parts)}.")
        sentences.append(_needs(unclear))
    detectable = next((row for row in results["mde"] if row["suite"] == suite), None)
    if detectable is not None and detectable["value"] is not None:
        many = len(estimable) > 1 and results["correction"] != "none"
        after = f" ({100 * detectable['corrected']:.1f} after correction)" if many else ""
        sentences.append(
            f"This sweep finds a main effect of {100 * detectable['value']:.1f} points or "
            f"more{after} in four of five cases; smaller ones need more seeds."
        )
    missing = [row for row in rows if not row["estimable"]]
    if missing:
        sentences.append(f"Not estimable: {_join(_names(missing))} ({missing[0]['why']}).")
    pairs = [
        row
        for row in results["interactions"]
        if row["suite"] == suite and row["p_adjusted"] is not None and row["p_adjusted"] <= alpha
    ]
    if pairs:
        parts = [f"{full_label(row)} ({_interval(row)})" for row in pairs]
        sentences.append(f"Parts that change each other's effect: {_join(parts)}.")
    return " ".join(filter(None, sentences))


def _gain(tables: Tables, results: Row, suite: str) -> str:
    gains = {(row["measure"], row["suite"]): row for row in results["reference_gain"]}
    score = gains.get(("score", suite))
    if score is None:
        return "The reference arm and the base were not both evaluated under the same prompt."
    prompt = tables.prompt_of(tables.reference)
    level = f"{100 * score['before']:.1f} → {100 * score['after']:.1f}%"
    if score["estimable"]:
        text = (
            f"The reference, {tables.reference}, against the untrained base under its own prompt "
        )
        text += f"({prompt}): {_interval(score)} on {suite} ({level})"
    else:
        return (
            f"The reference against the base under its own prompt ({prompt}) on {suite}: {level}; "
            f"an interval is not estimable ({score['why']})."
        )
    untagged = gains.get(("score_untagged", suite))
    if untagged is not None and untagged["estimable"]:
        text += f"; {_interval(untagged)} when the answer is extracted without regard to tags"
    faithful = gains.get(("faithful", suite))
    if faithful is not None and faithful["estimable"]:
        text += f"; faithfulness of its observations {_interval(faithful)}"
    tokens = gains.get(("response_tokens", suite))
    if tokens is not None and tokens["estimable"]:
        text += f"; response length {tokens['before']:.0f} → {tokens['after']:.0f} tokens"
    text += "."
    for other in list(tables.suites)[1:]:
        beside = gains.get(("score", other))
        if beside is not None and beside["estimable"]:
            level = f"{100 * beside['before']:.1f} → {100 * beside['after']:.1f}%"
            text += f" On {other}: {_interval(beside)} ({level})."
    return text


def _caveat(tables: Tables, results: Row) -> str:
    cells = tables.runs[tables.runs["kind"] == "cell"]
    seeds = cells.groupby("arm").size()
    if seeds.empty:
        return "No trained run of the design is there, so nothing is known of its factors."
    each = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()}–{seeds.max()}"
    plural = "seed" if each == "1" else "seeds"
    given = ["one base model", "one ladder"]
    if cells["seed"].nunique() == 1:  # What it does cancels between arms, also where it should not.
        given.append("one seed that all arms share")
    return (
        f"{len(cells)} trained runs in {len(seeds)} arms ({each} {plural} each) inform these "
        "numbers; a run, not an item, is the unit of replication. All of it is conditional on "
        f"{', '.join(given[:-1])} and {given[-1]}."
    )
