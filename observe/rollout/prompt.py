"""What an engine outside of the trainer is given: plain token ids and images, also as JSON."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from observe.errors import EngineError
from observe.model.processor import Processor, Sample


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt before the engine's own processing."""

    token_ids: list[int]
    """Token ids with a single placeholder per image."""
    expanded_ids: list[int]
    """The ids that the trainer reads, which the engine must come to by itself."""
    images: list[Image.Image]
    """RGB, at the size that the trainer's patches were cut from."""

    def check(self, token_ids: Sequence[int]) -> None:
        """Raise EngineError, naming the first difference, unless these are the expanded ids."""
        found, expected = list(token_ids), self.expanded_ids
        if found == expected:
            return
        at = next(
            (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
            min(len(found), len(expected)),
        )
        raise EngineError(
            f"the engine reads another prompt than the trainer: {len(found)} tokens for "
            f"{len(expected)}, the first difference at {at} ({found[at : at + 4]} for "
            f"{expected[at : at + 4]}); are its model folder and preprocessor_config.json those "
            "of the policy?"
        )


def prompt_from_sample(processor: Processor, sample: Sample) -> Prompt:
    """A processed prompt as another engine must get it."""
    return Prompt(
        token_ids=processor.unexpanded(sample),
        expanded_ids=sample.token_ids_L.tolist(),
        images=processor.fitted_images(sample),
    )


def prompt_to_json(prompt: Prompt) -> dict[str, Any]:
    """JSON-ready; images become PNG, which loses nothing."""
    encoded = []
    for image in prompt.images:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=1)
        encoded.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
    return {
        "token_ids": prompt.token_ids,
        "expanded_ids": prompt.expanded_ids,
        "images": encoded,
    }


def prompt_from_json(data: dict[str, Any]) -> Prompt:
    """What prompt_to_json made; KeyError, ValueError or OSError for anything else."""
    images = []
    for encoded in data["images"]:
        image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))
        images.append(image.convert("RGB"))
    return Prompt(
        token_ids=[int(token) for token in data["token_ids"]],
        expanded_ids=[int(token) for token in data["expanded_ids"]],
        images=images,
    )
