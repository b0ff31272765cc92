"""System prompts and chat messages."""

import pytest

from observe.prompts import SYSTEM_PROMPTS, build_messages, format_question


def test_prompts_are_short_and_ask_for_their_tags_in_order():
    assert set(SYSTEM_PROMPTS) == {"plain", "direct", "think", "observe"}
    for name, text in SYSTEM_PROMPTS.items():
        assert len(text.split()) <= 25, name
    forms = {"think": ("think", "answer"), "observe": ("observe", "think", "answer")}
    for name, tags in forms.items():
        places = [SYSTEM_PROMPTS[name].index(f"<{tag}></{tag}>") for tag in tags]
        assert places == sorted(places)
    assert "<observe>" not in SYSTEM_PROMPTS["think"]
    assert "<" not in SYSTEM_PROMPTS["plain"] + SYSTEM_PROMPTS["direct"]


def test_options_become_lettered_lines():
    assert format_question("Which colour?", ("red", "blue")) == "Which colour?\nA. red\nB. blue"
    assert format_question("How many?") == format_question("How many?", ()) == "How many?"


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_messages_hold_one_placeholder_per_image_before_the_question(num_images):
    system, user = build_messages("observe", "Which?", ("red", "blue"), num_images)
    assert system["role"] == "system"
    assert system["content"][0]["text"] == SYSTEM_PROMPTS["observe"]
    assert user["role"] == "user"
    assert user["content"][:-1] == [{"type": "image"}] * num_images
    assert user["content"][-1] == {"type": "text", "text": "Which?\nA. red\nB. blue"}


def test_an_unknown_prompt_is_an_error():
    with pytest.raises(KeyError, match="poem"):
        build_messages("poem", "Which?")
