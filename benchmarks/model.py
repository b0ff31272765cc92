"""Our rollout engine as a model of lm-eval."""

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM

from benchmarks.docs import PLACEHOLDER
from observe.errors import InputError
from observe.rollout.engine import Completion, Engine, SamplingParams

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from observe.model.processor import Processor


class EngineLM(LM):
    """Answers all requests of an evaluation in one greedy call of the engine.

    lm-eval returns only texts, so completions are kept in `completions` by (task, document).
    """

    MULTIMODAL = True

    def __init__(
        self,
        engine: Engine,
        processor: "Processor",
        *,
        max_new_tokens: int,
        progress: Callable[[int, int, str], None],
    ) -> None:
        super().__init__()
        self.engine = engine
        self.processor = processor
        self.params = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0)
        self.progress = progress
        self.completions: dict[tuple[str, int], Completion] = {}
        self.seconds = 0.0

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The messages as JSON: they are rendered together with their images, in `generate_until`,
        by the code that also makes the training prompts."""
        return json.dumps([_to_message(**message) for message in chat_history])

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's template, as lm-eval logs it."""
        return str(self.processor.tokenizer.chat_template)

    @property
    def tokenizer_name(self) -> str:
        return str(self.processor.tokenizer.name_or_path)

    def generate_until(self, requests: list["Instance"]) -> list[str]:
        """Greedy responses in the order of the requests.

        Raises InputError when a task asks for stop strings, which the engine does not know.
        """
        samples = []
        for request in requests:
            context, settings, visual = request.args
            if settings.get("until"):
                raise InputError(
                    f"{request.task_name}: generation_kwargs.until must be empty: responses end "
                    "with the model's end token or at max_new_tokens"
                )
            samples.append(self.processor.sample(json.loads(context), visual["visual"]))
        started = time.perf_counter()
        groups = self.engine.generate(
            samples,
            self.params,
            [0] * len(samples),
            lambda done, total: self.progress(done, total, "responses"),
        )
        self.seconds += time.perf_counter() - started
        for request, (completion,) in zip(requests, groups, strict=True):
            self.completions[request.task_name, request.doc_id] = completion
        return [completion.text for (completion,) in groups]

    def loglikelihood(self, requests: list["Instance"]) -> list[tuple[float, bool]]:
        raise NotImplementedError("only tasks with output_type generate_until can be run")

    def loglikelihood_rolling(self, requests: list["Instance"]) -> list[float]:
        raise NotImplementedError("only tasks with output_type generate_until can be run")


def _to_message(role: str, content: str) -> dict[str, Any]:
    """A message with its leading image placeholders as parts of their own."""
    rest = content
    while rest.startswith(PLACEHOLDER):
        rest = rest[len(PLACEHOLDER) :]
    num_images = (len(content) - len(rest)) // len(PLACEHOLDER)
    parts: list[dict[str, str]] = [{"type": "image"} for _ in range(num_images)]
    return {"role": role, "content": [*parts, {"type": "text", "text": rest}]}
