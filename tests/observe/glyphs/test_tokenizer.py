"""The tokenizer encodes any text, and its own world in single tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observe.config import BaseConfig
from observe.glyphs.model import build_policy
from observe.glyphs.scenes import COLOURS, SHAPES
from observe.glyphs.tokenizer import SPECIAL_TOKENS, TAGS, build_tokenizer
from observe.model.processor import Processor
from observe.prompts import build_messages

CONFIG = BaseConfig(tokenizer_texts=400)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(CONFIG)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


any_text = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


@settings(max_examples=300)
@given(any_text | st.binary(max_size=60).map(lambda b: b.decode("utf-8", errors="replace")))
def test_any_text_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.decode(encode(tokenizer, text)) == text


@settings(max_examples=100)
@given(st.lists(st.sampled_from([*TAGS, " ", "\n", "red", "1+0", "  ", "é", "</"])).map("".join))
def test_tags_between_any_text_come_back(tokenizer, text):
    assert tokenizer.decode(encode(tokenizer, text)) == text


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_is_one_token_and_part_of_the_text(tokenizer, tag):
    (token,) = encode(tokenizer, tag)
    assert tokenizer.decode([token], skip_special_tokens=True) == tag
    assert token in encode(tokenizer, f"a{tag}b")


@pytest.mark.parametrize("word", [*COLOURS, *SHAPES, "empty", "objects", "row"])
def test_the_words_of_the_world_are_single_tokens(tokenizer, word):
    assert len(encode(tokenizer, f" {word}")) == 1


def test_numbers_are_split_into_digits(tokenizer):
    assert len(encode(tokenizer, "2026")) == 4


def test_special_tokens_have_qwens_names_and_are_left_out_of_the_text(tokenizer):
    assert {
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    } <= set(SPECIAL_TOKENS)
    for token in SPECIAL_TOKENS:
        (number,) = encode(tokenizer, token)
        assert tokenizer.decode([number], skip_special_tokens=True) == ""
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_the_vocabulary_stays_below_its_bound(tokenizer):
    assert len(tokenizer) <= CONFIG.vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_the_same_config_gives_the_same_tokenizer(tokenizer):
    assert build_tokenizer(CONFIG).get_vocab() == tokenizer.get_vocab()


def test_a_chat_has_qwens_shape(tokenizer):
    messages = build_messages("direct", "How many?", (), 1)
    system, user = messages[0]["content"][0]["text"], "How many?"
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        f"<|im_start|>system\n{system}<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{user}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_saved_and_loaded_it_encodes_alike(tokenizer, tmp_path):
    text = "<think>red 1+0+2=3</think> é\n\n  <|im_end|>"
    build_policy(BaseConfig(hidden_size=16, layers=1, tokenizer_texts=400)).save(tmp_path)
    loaded = Processor.load(tmp_path)
    assert loaded.encode(text) == encode(tokenizer, text)
    assert loaded.tokenizer.chat_template == tokenizer.chat_template


def test_a_number_is_one_token_a_digit_its_blank_included():
    """A count stands right behind what is counted, with no token of its own for the blank."""
    tokenizer = build_tokenizer(CONFIG)
    assert tokenizer.tokenize(" red 3") == ["Ġred", "Ġ3"]
    assert tokenizer.tokenize(" 12") == ["Ġ1", "2"]
