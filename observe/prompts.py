"""System prompts and the chat messages of a question.

The wording is ours: the text of the paper's own system prompt (Observe-R1, arXiv 2505.12432) is
not known to us. What it asks for is: observation, then reasoning, then the answer, each in its
tags. The prompts are kept short because each is read again for every question.
"""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

SYSTEM_PROMPTS = {
    "plain": "Look at the image and answer the question. Explain briefly, then give the answer.",
    "direct": "Look at the image and only give the final answer.",
    "think": ("First reason in <think></think>, then give the final answer in <answer></answer>."),
    "observe": (
        "Write what you see in <observe></observe>, then reason in <think></think>, "
        "then give the final answer in <answer></answer>."
    ),
}


def format_question(question_text: str, options: Sequence[str] | None = None) -> str:
    """The question followed by its options as lines "A. red", "B. blue", when it has any."""
    if not options:
        return question_text
    lines = [
        f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)
    ]
    return "\n".join([question_text, *lines])


def build_messages(
    prompt: str,
    question_text: str,
    options: Sequence[str] | None = None,
    num_images: int = 1,
) -> list[dict[str, Any]]:
    """Chat messages in the Hugging Face form: the system prompt, then images, then the question.

    `prompt` names one of `SYSTEM_PROMPTS` (KeyError otherwise). Images appear as placeholders
    `{"type": "image"}`; the pixels travel separately.
    """
    content: list[dict[str, str]] = [{"type": "image"} for _ in range(num_images)]
    content.append({"type": "text", "text": format_question(question_text, options)})
    return [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPTS[prompt]}]},
        {"role": "user", "content": content},
    ]
