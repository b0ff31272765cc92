"""The answer in words, written from the numbers alone."""

from __future__ import annotations

from reports.analysis import Row
from reports.labels import full_label
from reports.tables import Tables
from reports.validity import points


def verdict(tables: Tables, results: Row) -> list[str]:
    """Paragraphs: what matters and what is unresolved, the gain over the base, the caveats."""
    suites = list(tables.suites)
    main = suites[0]
    paragraphs = [_effects(results, main)]
    others = [_beside(results, suite) for suite in suites[1:]]
    paragraphs[0] = " ".join([paragraphs[0], *[text for text in others if text]])
    paragraphs.append(_gain(tables, results, main))
    paragraphs.append(_caveat(tables, results))
    return [text for text in paragraphs if text]


def _interval(row: Row, key: str = "estimate") -> str:
    return f"{points(row[key])} points [{points(row['low'])}, {points(row['high'])}]"


def _names(rows: list[Row]) -> list[str]:
    return [full_label(row) for row in rows]


def _needs(row: Row) -> str:
    """What would resolve an effect, if it is as large as it looks."""
    seeds, items = row["seeds_to_resolve"], row["items_to_resolve"]
    ways = [f"{seeds} seeds in each arm"] if seeds else []
    ways += [f"{items} times the items"] if items and items <= 10 else []
    return f"; were that the truth, {' or '.join(ways)} would show it" if ways else ""


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _effects(results: Row, suite: str) -> str:
    rows = [row for row in results["effects"] if row["suite"] == suite]
    if not rows:
        return "The sweep has no factors, so there is no factor effect to report."
    alpha = 1 - results["confidence"]
    estimable = [row for row in rows if row["estimable"]]
    if not estimable:
        reason = rows[0]["why"]
        return f"No factor's effect on {suite} is estimable: {reason}."
    clear = [row for row in estimable if row["p_adjusted"] <= alpha]
    clear.sort(key=lambda row: -abs(row["estimate"]))
    unclear = [row for row in estimable if row["p_adjusted"] > alpha]
    sentences = []
    if clear:
        verb = "matters" if len(clear) == 1 else "matter"
        parts = [f"{full_label(row)} by {_interval(row)}" for row in clear]
        sizes = _interval(clear[0]) if len(clear) == 1 else _join(parts)
        how = f"{results['confidence']:.0%} intervals over runs"
        if results["correction"] != "none":
            how += f"; stands after {results['correction'].capitalize()} correction over the "
            how += f"{len(rows)} main effects"
        sentences.append(f"On {suite}, {_join(_names(clear))} {verb}: {sizes} ({how}).")
    else:
        sentences.append(f"On {suite}, no factor's effect can be told from 0.")
    detectable = next((row for row in results["mde"] if row["suite"] == suite), None)
    if unclear:
        parts = [f"{full_label(row)} ({_interval(row)}{_needs(row)})" for row in unclear]
        verb = "is" if len(unclear) == 1 else "are"
        sentences.append(f"Unresolved {verb} {_join(parts)}.")
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
    return " ".join(sentences)


def _beside(results: Row, suite: str) -> str:
    rows = [row for row in results["effects"] if row["suite"] == suite and row["estimable"]]
    if not rows:
        return ""
    alpha = 1 - results["confidence"]
    clear = [row for row in rows if row["p_adjusted"] <= alpha]
    if not clear:
        largest = max(rows, key=lambda row: abs(row["estimate"]))
        return (
            f"On {suite}, no effect can be told from 0; the largest is {full_label(largest)} "
            f"({_interval(largest)})."
        )
    parts = [f"{full_label(row)} ({_interval(row)})" for row in clear]
    return f"On {suite}, {_join(parts)} {'matters' if len(clear) == 1 else 'matter'}."


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
    each = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()}–{seeds.max()}"
    plural = "seed" if each == "1" else "seeds"
    return (
        f"{len(cells)} trained runs in {len(seeds)} arms ({each} {plural} each) inform these "
        "numbers; a run, not an item, is the unit of replication. All of it is conditional on one "
        "base model and one ladder."
    )
