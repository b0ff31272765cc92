"""What others wrote stays text, in every format; what is large is cut, and said to be."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from reports.build import as_csv, build_report
from reports.example import Made, write_example
from reports.labels import short
from reports.render import CONTENTS
from reports.samples import BEGINNING, BUDGET, END, ends, samples, segments
from reports.tables import read_tables
from reports.text import markdown, tex, visible

TWO = {"format": 0.06, "bonus": 0.0}
SMALL = Made(clusters=8, effects=TWO)


def respond(directory: Path, text: str) -> None:
    """One item of each benchmark gets this response from every run."""
    file = directory / "results" / "responses.parquet"
    table = pd.read_parquet(file)
    table["response"] = table["response"].mask(table["item"].str.endswith("-0001"), text)
    table.to_parquet(file)


def test_what_cannot_be_seen_is_written_out() -> None:
    assert visible("a\u202eb\x00c\nd\ud800") == "a⟨U+202E⟩b⟨U+0000⟩c\nd⟨U+D800⟩"
    assert visible("plain, ünï, 中文, ∑") == "plain, ünï, 中文, ∑"
    assert short("a\u202eb") == "a⟨U+202E⟩b"
    assert short("x" * 99, 26) == "x" * 17 + "…" + "x" * 8


@pytest.mark.parametrize(
    "evil",
    [
        r"\input{/etc/passwd}",
        r"$\catcode`\%=0$",
        "100% & more _sub_ ^sup^ ~ # {",
        "|<script>|",
        "“quotes” – 中文\u202e",
    ],
)
def test_latex_gets_no_command(evil: str) -> None:
    text = tex(evil)
    allowed = r"\\(?:text\w+\{\}|[{}$&#_%])|\$-\$|\$\\(?:times|Delta)\$"
    rest = re.sub(allowed, "", text)
    assert not re.search(r"[\\{}$&#_%^~]", rest), text
    assert all(mark.isascii() or "\u00a1" <= mark <= "\u017f" for mark in text)


def test_markdown_gets_no_markup() -> None:
    text = markdown("![x](http://evil) <b>@all</b> `code` | # ~~no~~ www.evil.org\n- item")
    rest = re.sub(r"\\[|`*_<>\[\]~$#!\\]", "", text)
    assert not re.search(r"[|`*<>\[\]~!]", rest), text
    assert "http:" not in text and "www." not in text and "@a" not in text and "\n" not in text


def test_names_that_are_code_reach_no_format_as_code(tmp_path: Path) -> None:
    """Arms, factors and benchmarks come from files too."""
    evil = r"</script><script>alert(1)</script>$\input{x}$|`"
    write_example(tmp_path, Made(clusters=8, effects={evil: 0.05, "bonus": 0.0}))
    target = build_report(tmp_path)
    page = (target / "index.html").read_text()
    assert page.count("<script>") == 1 and "<script>alert" not in page
    assert r"\input{x}" not in (target / "tables.tex").read_text()
    assert "<script>" not in (target / "report.md").read_text().replace("\\<", "")


def test_the_page_runs_only_its_own_script(built: Path) -> None:
    page = (built / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1] and "script-src 'sha256-" in policy[1]
    assert "unsafe-inline" not in policy[1].split("script-src")[1]
    assert " onclick=" not in page and " onerror=" not in page


def test_every_section_is_there_and_in_the_contents(built: Path) -> None:
    page = (built / "index.html").read_text()
    for name in CONTENTS:
        assert page.count(f'id="{name}"') == 1, name
        assert f'<a href="#{name}">' in page, name
    assert "Not recorded" not in page.replace("Not recorded: trials of a search", "")


def test_a_long_response_keeps_its_answer(tmp_path: Path) -> None:
    write_example(tmp_path, SMALL)
    respond(tmp_path, "<think>" + "x" * 1_000_000 + "</think><answer>the end</answer>")
    tables = read_tables(tmp_path)
    assert tables.responses is not None
    text = tables.responses.of(["control-0"]).loc[("control-0", "count", "count-0001"), "response"]
    pieces = ends(segments(text), len(text))
    text = "".join(piece.text for piece in pieces if piece.kind != "cut")
    assert len(text) == BEGINNING + END
    assert pieces[-2].text == "the end" and pieces[-2].kind == "answer"
    assert any("characters left out" in piece.text for piece in pieces)


def test_a_large_report_is_cut_and_says_so(tmp_path: Path) -> None:
    """Images of 3 MB, responses of 1 MB, bytes that are no text: the page stays below 50 MB."""
    write_example(tmp_path, SMALL)
    noise = np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), dtype=np.uint8)
    for file in (tmp_path / "results" / "images").iterdir():
        Image.fromarray(noise).save(file, compress_level=1)
    respond(tmp_path, "<answer>" + "y" * 1_000_000)
    break_text(tmp_path / "results" / "responses.parquet", "response")
    tables = read_tables(tmp_path)
    found = samples(tables)
    assert found is not None
    shown = sum(len(row["image"]) for row in found.rows)
    assert shown < BUDGET and all(row["shown"] <= row["total"] for row in found.counts)
    assert sum(row["shown"] for row in found.counts) == len(found.rows) > 4
    texts = [
        "".join(piece.text for piece in answer["segments"])
        for row in found.rows
        for answer in row["answers"]
    ]
    assert all(len(text) < BEGINNING + END + 100 for text in texts)
    assert all(text.startswith("\ufffd\ufffd") for text in texts)


def break_text(file: Path, column: str) -> None:
    """Two bytes that are no UTF-8 in front of every text."""
    table = pq.read_table(file)
    broken = [b"\xff\xfe" + text.encode() for text in table[column].to_pylist()]
    values = pa.array(broken, pa.binary())
    text = pa.StringArray.from_buffers(len(values), *values.buffers()[1:])
    index = table.schema.get_field_index(column)
    pq.write_table(table.set_column(index, column, text), file)


def test_csv_holds_every_estimate_and_no_formula(built: Path) -> None:
    table = pd.read_csv(built / "results.csv", dtype=str)
    for name in ("mde", "variance", "lengths", "reference_gain", "clarity", "controls", "cost"):
        assert (table["table"] == name).any(), name
    line = as_csv({"x": [{"arm": "=1+1", "estimate": -0.5}]}).splitlines()[1]
    assert line.startswith("x,'=1+1,,,,,,,,-0.5")
    line = as_csv({"x": [{"effect": "a", "aliases": ["-b:c", "d"]}]}).splitlines()[1]
    assert line.endswith(",a,'-b:c d")


def test_a_confidence_is_never_rounded_to_certainty(tmp_path: Path) -> None:
    write_example(tmp_path, Made(clusters=6, effects={"format": 0.3, "bonus": 0.0}, seeds=(0, 1)))
    target = build_report(tmp_path, ["html", "tex", "json"], confidence=0.999)
    results = json.loads((target / "results.json").read_text())
    texts = [results["verdict"], (target / "tables.tex").read_text()]
    for text in [*texts, (target / "index.html").read_text()]:
        assert "99.9" in text and not re.search(r"\b100\\?% intervals|Intervals: 100", text)


def test_names_in_checks_keep_their_capitals(tmp_path: Path) -> None:
    write_example(tmp_path, Made(clusters=6, effects={"format": 0.06, "bonus": 0.0}))
    file = tmp_path / "results" / "sweep.json"
    sweep = json.loads(file.read_text())
    checks = [{"check": "all ran on an H200", "ok": True, "detail": ""}]
    file.write_text(json.dumps(sweep | {"checks": checks}))
    assert "All ran on an H200" in (build_report(tmp_path, ["html"]) / "index.html").read_text()


def test_figures_lie_beside_as_svg_and_png(built: Path) -> None:
    shown = re.findall(r"\]\((figures/[\w.]+)\)", (built / "report.md").read_text())
    assert len(shown) >= 8
    for name in shown:
        assert (built / name).exists() and (built / name).with_suffix(".svg").exists()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_whatever_the_names(tmp_path: Path) -> None:
    names = [r"\input{/etc/passwd}", "100% & _sub_ ^sup^ ~ # {$x$", "[1] * “中文” ∑ ünï ß |<a>`"]
    write_example(tmp_path, Made(clusters=6, effects=dict.fromkeys(names, 0.03), seeds=(0, 1)))
    target = build_report(tmp_path, ["tex"])
    (target / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{array,booktabs,longtable,textcomp}"
        "\\begin{document}\\input{tables}\\end{document}"
    )
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    said = subprocess.run(command, cwd=target, capture_output=True, check=False)
    assert said.returncode == 0, said.stdout.decode("latin-1")[-2000:]
    assert (target / "paper.pdf").stat().st_size > 10_000
    assert b"Missing character" not in (target / "paper.log").read_bytes()


def test_latex_has_every_table(built: Path) -> None:
    text = (built / "tables.tex").read_text()
    for name in ("arms", "effects", "interactions", "parts", "contrasts-planned"):
        assert f"\\label{{tab:{name}}}" in text
    for block in re.findall(r"\\begin\{longtable\}(.*?)\\end\{longtable\}", text, re.DOTALL):
        rows = [line for line in block.splitlines() if line.endswith("\\\\") and "&" in line]
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
