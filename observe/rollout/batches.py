"""Which prompts are answered together."""

from collections.abc import Sequence

from observe.model.processor import PromptSize


def batches(
    sizes: Sequence[PromptSize], *, prompts: int, image_tokens: int | None
) -> list[list[int]]:
    """Indices of the prompts, from short to long, in batches of at most ``prompts``.

    A batch also ends before its images have more than ``image_tokens`` tokens (None: any number);
    a prompt that has more by itself is a batch of its own. Prompts of equal length keep their
    order.
    """
    found: list[list[int]] = []
    images = 0
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i].length):
        images += sizes[i].image_tokens
        full = not found or len(found[-1]) == prompts
        if full or (image_tokens is not None and images > image_tokens):
            found.append([])
            images = sizes[i].image_tokens
        found[-1].append(i)
    return found
