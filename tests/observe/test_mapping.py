"""YAML and plain values to config dataclasses: strict, YAML 1.2, errors that name file and key."""

import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observe.config import BonusConfig, RewardConfig, TrainConfig
from observe.errors import InputError
from observe.mapping import from_mapping, load_yaml, to_mapping, with_overrides


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    depth: float | None = None
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    count: int
    rate: float = 0.5
    name: str = "x"
    on: bool = False
    mode: Literal["fast", "slow"] = "fast"
    limit: int | None = 3
    steps: tuple[int, ...] = ()
    inner: Inner = Inner()


def outer(**values):
    return from_mapping(Outer, {"count": 1, **values}, source="a.yaml")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rate": 2}, {"rate": 2.0}),
        ({"rate": 2.5}, {"rate": 2.5}),
        ({"on": True}, {"on": True}),
        ({"mode": "slow"}, {"mode": "slow"}),
        ({"limit": None}, {"limit": None}),
        ({"limit": 5}, {"limit": 5}),
        ({"steps": [1, 2]}, {"steps": (1, 2)}),
        ({"steps": (1, 2)}, {"steps": (1, 2)}),
        ({"steps": []}, {"steps": ()}),
        ({"inner": {"depth": 3}}, {"inner": Inner(depth=3.0)}),
        ({"inner": {"names": ["on", "off"]}}, {"inner": Inner(names=("on", "off"))}),
        ({"inner": {}}, {}),
    ],
)
def test_a_value_of_the_right_type_is_taken(values, expected):
    made = outer(**values)
    assert made == Outer(**{"count": 1, **expected})
    assert type(made.rate) is float


@pytest.mark.parametrize(
    ("values", "key", "expected"),
    [
        ({"count": "1"}, "count", "int"),
        ({"count": 1.0}, "count", "int"),
        ({"count": True}, "count", "int"),
        ({"count": None}, "count", "int"),
        ({"rate": "0.5"}, "rate", "float"),
        ({"rate": True}, "rate", "float"),
        ({"rate": [0.5]}, "rate", "float"),
        ({"name": 3}, "name", "str"),
        ({"name": True}, "name", "str"),
        ({"on": "on"}, "on", "bool"),
        ({"on": 1}, "on", "bool"),
        ({"mode": "medium"}, "mode", "one of fast, slow"),
        ({"mode": True}, "mode", "one of fast, slow"),
        ({"mode": ["fast"]}, "mode", "one of fast, slow"),
        ({"limit": "none"}, "limit", "int"),
        ({"limit": False}, "limit", "int"),
        ({"steps": 3}, "steps", "tuple"),
        ({"steps": "12"}, "steps", "tuple"),
        ({"steps": [1, "2"]}, "steps[1]", "int"),
        ({"inner": 3}, "inner", "a mapping"),
        ({"inner": None}, "inner", "a mapping"),
        ({"inner": {"depth": "deep"}}, "inner.depth", "float"),
        ({"inner": {"names": ["a", False]}}, "inner.names[1]", "str"),
    ],
)
def test_a_value_of_the_wrong_type_names_file_key_and_what_was_expected(values, key, expected):
    with pytest.raises(InputError) as caught:
        outer(**values)
    assert str(caught.value).startswith(f"a.yaml: {key}: expected ")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 2}, "a.yaml: cuont: unknown key; did you mean 'count'?"),
        ({"inner": {"dept": 2}}, "a.yaml: inner.dept: unknown key; did you mean 'depth'?"),
        ({"inner": {"zzz": 2}}, "a.yaml: inner.zzz: unknown key; known keys: depth, names"),
        ({1: 2}, "a.yaml: 1: unknown key"),
    ],
)
def test_an_unknown_key_comes_with_a_remedy(values, message):
    with pytest.raises(InputError) as caught:
        from_mapping(Outer, {"count": 1, **values}, source="a.yaml")
    assert str(caught.value).startswith(message)


def test_a_missing_required_key_is_named():
    with pytest.raises(InputError, match=r"^a\.yaml: count: missing$"):
        from_mapping(Outer, {}, source="a.yaml")


def test_a_file_that_holds_no_mapping_is_refused():
    with pytest.raises(InputError, match=r"^a\.yaml: the file: expected a mapping, got \[1\]$"):
        from_mapping(TrainConfig, [1], source="a.yaml")


def read(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    return load_yaml(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("1e-5", 1e-5),
        ("3.0e-5", 3e-5),
        ("1E3", 1000.0),
        ("12", 12),
        ("012", 12),
        ("1:30", "1:30"),
        ("'12'", "12"),
        ("glyphs", "glyphs"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(tmp_path, text, value):
    read_value = read(tmp_path, f"key: {text}\n")["key"]
    assert read_value == value
    assert type(read_value) is type(value)


def test_words_are_words_as_keys_too(tmp_path):
    assert read(tmp_path, "{on: 1, off: 2}") == {"on": 1, "off": 2}


@pytest.mark.parametrize(
    "text",
    ["a: 1\na: 2\n", "a: [1, 2\n", "a: !!python/object:os.system {}\n", "a: 1\n\tb: 2\n"],
    ids=["duplicate key", "open bracket", "python object", "tab"],
)
def test_broken_yaml_names_the_file_and_the_line(tmp_path, text):
    with pytest.raises(InputError, match=r"a\.yaml: not valid YAML") as caught:
        read(tmp_path, text)
    assert "line " in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a: 2020-99-99\n", "a: !!bool 5\n", "a: !!int x\n", "a: " + "[" * 3000 + "]" * 3000]
)
def test_values_that_yaml_cannot_make_name_the_file(tmp_path, text):
    with pytest.raises(InputError, match=r"a\.yaml: not valid YAML"):
        read(tmp_path, text)


def test_what_cannot_be_read_as_text_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.yaml: no such file"):
        load_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="not a YAML text file"):
        load_yaml(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"b\.yaml: not a YAML text file"):
        load_yaml(tmp_path / "b.yaml")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="below.yaml"):
        load_yaml(tmp_path / "file" / "below.yaml")


finite = st.floats(allow_nan=False, allow_infinity=False)
bonuses = st.builds(
    BonusConfig,
    weight=finite,
    min_length=st.none() | st.integers(),
    min_length_quantile=st.none() | st.floats(0, 1),
)
configs = st.builds(
    TrainConfig,
    prompt=st.sampled_from(["plain", "think", "observe"]),
    reward=st.builds(RewardConfig, accuracy=finite, shuffle=st.booleans(), bonus=bonuses),
    eval_steps=st.lists(st.integers(0, 99)).map(tuple),
    seed=st.integers(-(2**63), 2**63 - 1),
)


@given(configs)
def test_plain_values_and_back_is_the_same_config(config):
    mapping = to_mapping(config)
    assert from_mapping(TrainConfig, mapping, source="round trip") == config
    assert to_mapping(from_mapping(TrainConfig, mapping, source="round trip")) == mapping


@given(configs)
def test_plain_values_hold_only_what_yaml_and_json_hold(config):
    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (bool, int, float, str)

    assert plain(to_mapping(config))


def test_what_is_absent_keeps_its_default():
    made = from_mapping(TrainConfig, {"reward": {"bonus": {"weight": 0.2}}}, source="a.yaml")
    assert made == TrainConfig(reward=RewardConfig(bonus=BonusConfig(weight=0.2)))


def test_overrides_set_dotted_keys_and_leave_the_original_alone():
    recipe = {"reward": {"format": "think", "bonus": {"weight": 0.0}}, "seed": 1}
    changed = with_overrides(
        recipe, {"reward.bonus.weight": 0.2, "weighting.sigma": 1.8, "prompt": "observe"}
    )
    assert changed == {
        "reward": {"format": "think", "bonus": {"weight": 0.2}},
        "seed": 1,
        "weighting": {"sigma": 1.8},
        "prompt": "observe",
    }
    assert recipe == {"reward": {"format": "think", "bonus": {"weight": 0.0}}, "seed": 1}


def test_an_override_of_an_unknown_path_is_an_unknown_key():
    changed = with_overrides(to_mapping(TrainConfig()), {"reward.bonsu.weight": 0.2})
    with pytest.raises(
        InputError, match=r"arm x: reward\.bonsu: unknown key; did you mean 'bonus'"
    ):
        from_mapping(TrainConfig, changed, source="arm x")
