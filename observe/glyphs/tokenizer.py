"""The tokenizer of the embedded world: byte-level BPE with Qwen's special tokens and chat template.

Every byte is in the alphabet, so any text can be encoded; the merges come from the world's own
text, so that its words are single tokens.
"""

import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from observe.config import BaseConfig
from observe.glyphs.questions import FAMILIES, questions
from observe.glyphs.responses import response
from observe.prompts import SYSTEM_PROMPTS, format_question

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = tuple(f"<{slash}{tag}>" for tag in ("observe", "think", "answer") for slash in ("", "/"))

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Qwen's split: words with their leading blank, single digits (here with theirs, too, so that a
# count stands right behind what is counted), runs of punctuation.
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def build_tokenizer(config: BaseConfig) -> PreTrainedTokenizerFast:
    """Train the tokenizer on questions and responses of the training split; deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - len(TAGS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(config), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t != "<|endoftext|>"],
        clean_up_tokenization_spaces=False,
    )
    # Tags are added, not special: one token each, yet part of the decoded text.
    fast.add_tokens(list(TAGS))
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _texts(config: BaseConfig) -> list[str]:
    rng = random.Random(f"{config.seed}/tokenizer")
    texts = [*SYSTEM_PROMPTS.values(), "system\nuser\nassistant\n"] * 50
    prompts = tuple(SYSTEM_PROMPTS)
    asked = questions(
        "train",
        config.tokenizer_texts,
        seed=config.seed,
        families=tuple(FAMILIES),
        pictures=False,
    )
    for i, q in enumerate(asked):
        texts.append(format_question(q.text, q.options))
        text = response(q, prompts[i % len(prompts)], config, rng)
        for tag in TAGS:
            text = text.replace(tag, "\n")
        texts.append(text)
    return texts
