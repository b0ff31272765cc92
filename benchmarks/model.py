"""Our rollout engines as a model of lm-eval."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM
from PIL import Image
from transformers.utils.hub import cached_file

from benchmarks.answers import (
    Answer,
    AnswerStore,
    Key,
    digest,
    image_digest,
    to_answer,
    to_completion,
)
from benchmarks.docs import PLACEHOLDER
from observe.config import SamplerConfig
from observe.errors import InputError
from observe.fingerprint import fingerprint_model
from observe.model.processor import PromptSize
from observe.rollout.endpoint import EndpointProcessor
from observe.rollout.engine import Completion, SamplingParams

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from observe.rollout.factory import Sampler


@dataclass(frozen=True, kw_only=True)
class _Question:
    """A request that is to be asked."""

    request: tuple[str, int]
    """Its benchmark and document."""
    messages: list[dict[str, Any]]
    images: Sequence[Image.Image]
    """Decoded when they are looked at (`benchmarks.docs.EncodedImages`)."""
    size: PromptSize
    keys: tuple[Key, ...]
    """Of each of its answers."""


class EngineLM(LM):
    """Has the requests of an evaluation answered that have no answer yet.

    lm-eval returns only texts, so completions are kept in `completions` by (task, document).
    """

    MULTIMODAL = True

    def __init__(
        self,
        sampler: "Sampler",
        store: AnswerStore,
        *,
        params: SamplingParams,
        seed: int = 0,
        progress: Callable[[int, int, str], None],
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.store = store
        self.params = params
        self.seed = seed
        self.progress = progress
        self.completions: dict[tuple[str, int], list[Completion]] = {}
        """The ``params.n`` completions of each."""
        self.seconds = 0.0
        """What all answers took, those of earlier processes included."""
        self.asked = 0
        """Requests that had no answer yet."""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The messages as JSON: they are rendered together with their images, in `generate_until`,
        by the code that also makes the training prompts."""
        return json.dumps([_to_message(**message) for message in chat_history])

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template that prompts are rendered with, as lm-eval logs it."""
        return str(self.sampler.processor.chat_template)

    @property
    def tokenizer_name(self) -> str:
        return self.sampler.processor.name

    def generate_until(self, requests: list["Instance"]) -> list[str]:
        """Responses in the order of the requests, the first of each.

        Raises InputError when a task asks for stop strings, which the engines do not know.
        """
        questions = [self._question(request) for request in requests]
        self._ask(questions)
        for question in questions:
            answers = [self.store.get(key) for key in question.keys]
            self.completions[question.request] = [to_completion(a) for a in answers if a]
            self.seconds += sum(answer.seconds for answer in answers if answer)
        return [self.completions[question.request][0].text for question in questions]

    def _question(self, request: "Instance") -> _Question:
        context, settings, visual = request.args
        if settings.get("until"):
            raise InputError(
                f"{request.task_name}: generation_kwargs.until must be empty: responses end "
                "with the model's end token or at max_new_tokens"
            )
        task, messages = str(request.task_name), json.loads(context)
        opened = list(visual["visual"])
        image = image_digest(opened)
        return _Question(
            request=(task, int(request.doc_id or 0)),
            messages=messages,
            images=visual["visual"],
            size=self.sampler.processor.prompt_size(messages, opened),
            keys=tuple(
                Key(
                    task=task,
                    task_hash=digest([task, settings]),
                    item=str(request.doc["id"]),
                    attempt=attempt,
                    prompt=digest(context),
                    image=image,
                )
                for attempt in range(self.params.n)
            ),
        )

    def _ask(self, questions: list[_Question]) -> None:
        """Ask what has no answer, in the engine's slices, and keep the answers as they come.

        The slices are those of all questions, so that after a kill the same ones are answered
        together, which decides about roundings. Only a slice's images are in memory at a time.
        """
        processor, engine = self.sampler.processor, self.sampler.engine
        waiting = [any(self.store.get(key) is None for key in q.keys) for q in questions]
        total = len(questions)
        kept = done = total - sum(waiting)
        self.asked += sum(waiting)
        started, tokens = time.perf_counter(), 0
        self.progress(done, total, "responses")
        for part in self.sampler.slices([q.size for q in questions], self.params.n):
            asked = [questions[i] for i in part if waiting[i]]
            before = time.perf_counter()

            def finished(
                groups: dict[int, list[Completion]],
                asked: list[_Question] = asked,
            ) -> None:
                nonlocal done, tokens, before
                now = time.perf_counter()
                share = (now - before) / sum(map(len, groups.values()))
                before = now
                answers: dict[Key, Answer] = {}
                for i, group in groups.items():
                    for key, completion in zip(asked[i].keys, group, strict=True):
                        answers[key] = to_answer(completion, share)
                self.store.add(answers)
                done += len(groups)
                tokens += sum(answer.tokens for answer in answers.values())
                pace = max(now - started, 1e-9)
                self.progress(
                    done,
                    total,
                    f"responses, {(done - kept) / pace:.1f} items/s, {tokens / pace:.0f} tokens/s"
                    + (f", {kept} kept from before" if kept else ""),
                )

            engine.generate(
                [processor.sample(q.messages, q.images) for q in asked],
                self.params,
                [self._seed_of(q) for q in asked],
                finished,
            )

    def _seed_of(self, question: _Question) -> int:
        """A seed of its own for every item, whatever else is asked."""
        item = f"{self.seed}/{question.keys[0].task}/{question.keys[0].item}"
        return int.from_bytes(hashlib.sha256(item.encode()).digest()[:4], "big")

    def loglikelihood(self, requests: list["Instance"]) -> list[tuple[float, bool]]:
        """Raises InputError: no task here scores likelihoods."""
        raise _not_generated(requests)

    def loglikelihood_rolling(self, requests: list["Instance"]) -> list[float]:
        """Raises InputError: no task here scores likelihoods."""
        raise _not_generated(requests)


def _not_generated(requests: list["Instance"]) -> InputError:
    return InputError(
        f"{requests[0].task_name}: output_type must be generate_until: answers are generated and "
        "judged, likelihoods of given ones are not asked for"
    )


def asking(
    model: str, config: SamplerConfig, sampler: "Sampler", params: SamplingParams, seed: int = 0
) -> dict[str, Any]:
    """Everything that an answer depends on beside its question, as JSON values.

    The model is its content, so that a moved folder is the same and a changed one is not; the model
    of an endpoint is what the server calls it.
    """
    generation: dict[str, Any] = {
        "max_new_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "seed": seed if params.temperature > 0 else None,
    }
    processor = sampler.processor
    if isinstance(processor, EndpointProcessor):
        endpoint = config.endpoint
        return {
            "model": {"url": endpoint.url, "name": endpoint.model},
            "engine": "endpoint",
            "generation": {**generation, "extra": json.loads(endpoint.extra)},
        }
    folder = Path(model)
    if not folder.is_dir():
        folder = Path(str(cached_file(model, "config.json"))).parent
    image = processor.image_processor
    return {
        "model": {
            "content": fingerprint_model(folder),
            "adapter": (fingerprint_model(Path(config.adapter)) if config.adapter else None),
        },
        "chat_template": digest(processor.chat_template),
        "image": {
            "size": dict(image.size),
            "patch_size": image.patch_size,
            "merge_size": image.merge_size,
        },
        "engine": config.engine,
        "dtype": config.dtype,
        "generation": {
            **generation,
            "repetition_penalty": 1.0,
            "stop_strings": [],
            "end_tokens": processor.tokenizer.convert_ids_to_tokens(processor.eos_ids),
            "batch_size": config.batch_size,
            "batch_image_tokens": config.batch_image_tokens,
        },
    }


def _to_message(role: str, content: str) -> dict[str, Any]:
    """A message with its leading image placeholders as parts of their own."""
    rest = content
    while rest.startswith(PLACEHOLDER):
        rest = rest[len(PLACEHOLDER) :]
    num_images = (len(content) - len(rest)) // len(PLACEHOLDER)
    parts: list[dict[str, str]] = [{"type": "image"} for _ in range(num_images)]
    return {"role": role, "content": [*parts, {"type": "text", "text": rest}]}
