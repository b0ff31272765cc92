"""The JSON Schema of the ablation file agrees with what reads the file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.ablation import Ablation
from harness.ablation_file import load_ablation
from harness.schema import file_schema
from harness.search_file import Search
from observe.errors import InputError
from observe.mapping import load_yaml, with_overrides

ROOT = Path(__file__).parents[2]
SCHEMA = file_schema(Ablation)
SEARCH = file_schema(Search)


def is_valid(document: Any, schema: dict[str, Any] = SCHEMA) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(document)


@pytest.mark.parametrize("file", sorted((ROOT / "ablations").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_shipped_files_are_valid(file: Path) -> None:
    schema = SEARCH if file.stem == "search" else SCHEMA
    jsonschema.Draft202012Validator.check_schema(schema)
    assert is_valid(load_yaml(file), schema)


@pytest.mark.parametrize(
    "change",
    [
        {"trails": 3},
        {"space": {"optim.rate": {"low": 0.1, "high": 1.0}}},
        {"space": {"optim.lr": {"lowest": 0.1, "high": 1.0}}},
        {"objectives": [{"metric": "reward", "direction": "up"}]},
        {"confirm": {"evaluate": {"prompt": "think"}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_wrong_search_file_is_refused(change: dict[str, Any]) -> None:
    assert not is_valid({**load_yaml(ROOT / "ablations" / "search.yaml"), **change}, SEARCH)


@pytest.mark.parametrize(
    "change",
    [
        {"desing": "arms"},
        {"design": "everything"},
        {"seeds": 0},
        {"seeds": ["one"]},
        {"set": {"optim.learning_rate": 1e-5}},
        {"set": {"optim.lr": "fast"}},
        {"set": {"seed": 3}},
        {"set": {"data.order": "random"}},
        {"evaluate": {"prompt": "think"}},
        {"resources.train": {"core": 2}},
        {"report.correction": "bonferroni"},
        {"variants.placebo": {"set": {"reward.shufle": True}}},
        {"factors.bonus.control": ["off"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_reader_refuses_the_schema_refuses(change: dict[str, Any], tmp_path: Path) -> None:
    smoke = ROOT / "ablations" / "smoke.yaml"
    with pytest.raises(InputError):
        load_ablation(smoke, change)
    assert not is_valid(with_overrides(load_yaml(smoke), change))


def test_every_setting_is_explained() -> None:
    settings = SCHEMA["$defs"]["settings"]["properties"]
    assert settings["weighting.sigma"]["anyOf"] == [{"type": "number"}, {"type": "null"}]
    assert settings["data.order"]["enum"] == ["shuffled", "ladder", "easy_to_hard"]
    assert all(setting["description"] for setting in settings.values())


def test_the_command_prints_it_and_loads_no_torch() -> None:
    code = (
        "import sys; from harness.schema import main; main([]); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == SCHEMA
