"""The live report: on this machine only, made anew when the tables change."""

import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reports import serve
from reports.build import _parser, build_report
from reports.example import Made, write_example
from reports.serve import HOST, Live, make_server

TWO = {"format": 0.06, "bonus": 0.0}


@contextmanager
def served(live: Live) -> Iterator[str]:
    server = make_server(live, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def get(url: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        assert "Refresh" in answer.headers
        return str(answer.read().decode())


def test_a_running_sweep_is_shown_as_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "REFRESH_S", 0)
    live = Live(lambda: build_report(tmp_path, ["html"]), [tmp_path / "results"])
    with served(live) as url:
        assert "No report yet" in get(url)
        write_example(tmp_path, Made(clusters=6, effects=TWO, optional=False))
        first = get(url)
        assert "which part matters?" in first
        assert get(url) == first
        write_example(tmp_path, Made(clusters=6, effects=TWO, optional=False, seed=1))
        assert get(url) != first


def test_nobody_else_is_answered(tmp_path: Path) -> None:
    write_example(tmp_path, Made(clusters=6, effects=TWO, optional=False))
    live = Live(lambda: build_report(tmp_path, ["html"]), [tmp_path / "results"])
    with served(live) as url:
        for address, headers in ((url, {"Host": "evil.org:80"}), (f"{url}../results", {})):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(address, **headers)


def test_a_command_brings_the_tables_up_to_date(tmp_path: Path) -> None:
    live = Live(
        lambda: build_report(tmp_path, ["html"]),
        [tmp_path / "results"],
        f"{sys.executable} -c 'import sys; sys.exit(\"<b>not yet</b>\")'",
    )
    page = live.newest().decode()
    assert "No report yet" in page and "&lt;b&gt;not yet&lt;/b&gt;" in page
    nothing = Live(lambda: tmp_path, [tmp_path], "no-such-command")
    assert "--before: no-such-command: cannot be run" in nothing.newest().decode()


def test_the_command_is_asked_to_serve_by_one_word() -> None:
    given = _parser().parse_args(["runs/full", "--serve", "--before", "true", "--port", "0"])
    assert given.serve and given.before == "true" and given.port == 0
    assert not _parser().parse_args(["runs/full"]).serve
