"""The doctor's checks that need the model's own files: shapes, tokenizer, processor, memory.

Loads torch and transformers, and of the weights nothing unless it is asked to try.
"""

import functools
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks.config import EvaluateConfig
from harness.ablation import Ablation, Resources
from harness.checks import Check, size_in_words
from observe.config import (
    EMBEDDED,
    BaseConfig,
    LoraConfig,
    ModelConfig,
    RolloutConfig,
    TrainConfig,
)
from observe.data.question import Question
from observe.errors import InputError
from observe.mapping import from_mapping
from observe.memory import (
    CUDA_CONTEXT,
    MemoryEstimate,
    cache_elements,
    estimate,
    parameter_counts,
)
from observe.model.family import family_of
from observe.model.policy import Policy, load_policy
from observe.model.processor import Processor
from observe.model.shapes import shape
from observe.prompts import build_messages

LOOKED_AT = 32
"""Questions whose prompts are measured."""
PROMPT_TOKENS = 1024
"""A long prompt where neither data.max_prompt_tokens nor a question says how long one is."""
PROCESS = 700 * 2**20
"""Bytes of main memory that a stage's process holds without the model, about."""


def examine(
    config: TrainConfig,
    folder: Path | None,
    ablation: Ablation,
    *,
    gpu_bytes: int | None,
) -> Iterator[Check]:
    """The checks of a training config; ``folder`` is where its model lies whole, if it does."""
    path = config.model.path
    try:
        model = model_config(path, folder, config.model.base)
    except InputError as error:
        yield Check(section="model", what=path, state="missing", detail=str(error),
                    remedy="give another model.path")  # fmt: skip
        return
    if model is None:
        yield Check(
            section="model",
            what=path,
            state="note",
            detail="its shape is not known before it is here: memory and disk are not estimated",
        )
        return
    weights, trained = counts(config, folder)
    kind = "the published shape" if folder is None and path != EMBEDDED else "its config.json"
    yield Check(
        section="model",
        what=path,
        state="ok",
        detail=f"{weights / 1e9:.3g} billion parameters, {trained / 1e9:.3g} trained ({kind})",
    )
    processor = processor_of(path, folder, config.model.base)
    longest = None
    if processor:
        yield from _agreement(model, processor, path)
        longest = yield from _lengths(config, processor)
    yield from _budget(model, config, processor, longest)
    prompt = config.data.max_prompt_tokens or longest or PROMPT_TOKENS
    yield from _memory(model, weights, config, ablation, prompt, gpu_bytes)


@functools.cache
def _embedded(base: BaseConfig) -> Policy:
    from observe.glyphs.model import build_policy

    return build_policy(base)


def counts(config: TrainConfig, folder: Path | None) -> tuple[int, int]:
    """Parameters in all, and those that are trained, of a model whose config is known."""
    model = config.model
    return _counts(model.path, folder, model.base, model.lora, model.freeze_vision)


@functools.cache
def _counts(
    path: str, folder: Path | None, base: BaseConfig, lora: LoraConfig, freeze: bool
) -> tuple[int, int]:
    model = model_config(path, folder, base)
    assert model is not None
    settings = ModelConfig(path=path, lora=lora, freeze_vision=freeze)
    return parameter_counts(model, TrainConfig(model=settings))


@functools.cache
def model_config(path: str, folder: Path | None, base: BaseConfig) -> Any:
    """The config of a model; of Qwen2.5-VL-3B and 7B also where they are not here, else None.

    Raises InputError for a model of another kind.
    """
    if path == EMBEDDED:
        return _embedded(base).model.config
    if folder is not None:
        found = AutoConfig.from_pretrained(str(folder))
        family_of(found)
        return found
    size = re.search(r"Qwen2\.5-VL-(3|7)B", path)
    return shape("3b" if size[1] == "3" else "7b") if size else None


@functools.cache
def processor_of(path: str, folder: Path | None, base: BaseConfig) -> Processor | None:
    """The processor of a model that is here."""
    if path == EMBEDDED:
        return _embedded(base).processor
    return None if folder is None else Processor.load(folder)


def checkpoint_bytes(config: TrainConfig, folder: Path | None) -> int | None:
    """Size of one checkpoint: the weights and the optimizer's state; None: not known."""
    model = model_config(config.model.path, folder, config.model.base)
    if model is None:
        return None
    weights, trained = counts(config, folder)
    lora = config.model.lora.rank is not None
    width = 2 if lora and config.model.dtype == "bfloat16" else 4
    return width * weights + 8 * trained + (4 * trained if lora else 0)


def _agreement(model: Any, processor: Processor, path: str) -> Iterator[Check]:
    """Tokenizer and image processor must be those that the model was made with."""
    tokenizer, images = processor.tokenizer, processor.image_processor
    vision = model.vision_config
    rows = model.get_text_config().vocab_size
    known = tokenizer.get_vocab()
    wrong = []
    if len(tokenizer) > rows:
        wrong.append(f"the tokenizer has {len(tokenizer)} tokens, the model {rows}")
    for token, id in (
        ("<|image_pad|>", model.image_token_id),
        ("<|vision_start|>", model.vision_start_token_id),
    ):
        if known.get(token) != id:
            wrong.append(f"{token} is {known.get(token)} to the tokenizer, {id} to the model")
    if not processor.eos_ids:
        wrong.append("the tokenizer knows neither <|im_end|> nor <|endoftext|>")
    if not tokenizer.chat_template:
        wrong.append("the tokenizer has no chat template")
    for name, of_images, of_model in (
        ("patch size", images.patch_size, vision.patch_size),
        ("merge size", images.merge_size, vision.spatial_merge_size),
        ("temporal patch size", images.temporal_patch_size, vision.temporal_patch_size),
    ):
        if of_images != of_model:
            wrong.append(f"{name} {of_images} to the image processor, {of_model} to the model")
    yield Check(
        section="model",
        what="tokenizer and processor",
        state="missing" if wrong else "ok",
        detail="; ".join(wrong) or f"agree with the model ({len(tokenizer)} tokens)",
        remedy=f"get all files of {path} from one place" if wrong else "",
    )


def _lengths(config: TrainConfig, processor: Processor) -> Any:
    """Prompts of the first questions, measured; returns the longest, or None."""
    questions = first_questions(config, LOOKED_AT)
    lengths = []
    for question in questions:
        try:
            images = question.open_images()
        except InputError:
            continue  # Told, and counted, by the training itself.
        messages = build_messages("observe", question.text, question.options, len(images))
        lengths.append(processor.prompt_length(messages, images))
    if not lengths:
        return None
    bound = config.data.max_prompt_tokens
    beyond = sum(length > bound for length in lengths) if bound else 0
    share = beyond / len(lengths)
    too_many = share > config.data.max_skipped_share
    yield Check(
        section="model",
        what="prompts",
        state="missing" if too_many else "note" if beyond else "ok",
        detail=f"median {statistics.median(lengths):.0f}, longest {max(lengths)} tokens in the "
        f"first {len(lengths)} questions"
        + (f"; {beyond} are longer than data.max_prompt_tokens {bound}" if bound else ""),
        remedy="raise data.max_prompt_tokens, or make the images smaller" if too_many else "",
    )
    return min(max(lengths), bound or max(lengths))


def first_questions(config: TrainConfig, count: int) -> list[Question]:
    """Some of the questions that are trained on; none where they are not here."""
    from observe.data.sources import load_questions

    source = config.data.source
    if source == EMBEDDED:
        return load_questions(source, size=count)
    if not Path(source).is_file():
        return []
    return load_questions(source)[:count]


def _budget(
    model: Any, config: TrainConfig, processor: Processor | None, longest: int | None
) -> Iterator[Check]:
    """Prompt and completion together must fit the model's context, and vLLM's."""
    rollout = config.rollout
    context = model.get_text_config().max_position_embeddings
    prompt = config.data.max_prompt_tokens or longest
    words = f"{rollout.max_new_tokens} tokens of completion"
    needed = rollout.max_new_tokens + (prompt or 0)
    if prompt:
        words = f"{prompt} of prompt + {words} = {needed}"
    fits = needed <= context
    yield Check(
        section="model",
        what="context",
        state="ok" if fits else "missing",
        detail=f"{words}; the model takes {context}",
        remedy="" if fits else "lower rollout.max_new_tokens or data.max_prompt_tokens",
    )
    limit = rollout.vllm.max_model_len
    if rollout.engine != "native" and limit is not None and needed > limit:
        yield Check(
            section="model",
            what="context of vLLM",
            state="missing",
            detail=f"{words}; rollout.vllm.max_model_len is {limit}",
            remedy=f"--set rollout.vllm.max_model_len={needed}",
        )
    if processor:
        images = processor.image_processor
        edge = images.size.get("longest_edge") or getattr(images, "max_pixels", None)
        most = int(edge) // (images.patch_size * images.merge_size) ** 2 if edge else 0
        bound = config.data.max_prompt_tokens
        beyond = bound is not None and most > bound
        yield Check(
            section="model",
            what="image tokens",
            state="note" if beyond else "ok",
            detail=f"up to {most} for one image"
            + (
                f": more than a prompt may have ({bound}); questions with such images are skipped"
                if beyond
                else ""
            ),
        )


def _memory(
    model: Any,
    weights: int,
    config: TrainConfig,
    ablation: Ablation,
    prompt: int,
    gpu_bytes: int | None,
) -> Iterator[Check]:
    """What each kind of stage needs of a device, and of main memory."""
    patches = prompt * model.vision_config.spatial_merge_size**2
    resources = ablation.resources
    evaluate = from_mapping(EvaluateConfig, ablation.evaluate, source="evaluate")
    kv = cache_elements(model)
    train = estimate(
        model,
        config,
        prompt_tokens=prompt,
        patches=patches,
        world_size=resources.train.ranks,
        process=CUDA_CONTEXT if resources.train.gpus else PROCESS,
        device=gpu_bytes or 0,
    )
    stages = [("train", resources.train, train)]
    width = 4 if evaluate.dtype == "float32" else 2
    stages.append(
        (
            "evaluate",
            resources.evaluate,
            _sampling(
                width * weights,
                width * kv * evaluate.batch_size * (prompt + evaluate.max_new_tokens),
                on_gpu=resources.evaluate.gpus > 0,
            ),
        )
    )
    if config.data.selection == "ladder" and config.data.ladder.path is None:
        ladder = config.data.ladder
        width = 4 if config.model.dtype == "float32" else 2
        tokens = 256 * (prompt // ladder.samples + ladder.max_new_tokens)
        stages.append(
            (
                "ladder",
                resources.ladder,
                _sampling(width * weights, width * kv * tokens, on_gpu=resources.ladder.gpus > 0),
            )
        )
    for kind, asked, needed in stages:
        yield _fits(kind, asked, needed, gpu_bytes)
    if resources.train.gpus:
        # Every process reads the weights in float32 before it hands them to its device.
        host = resources.train.processes * (4 * weights + 2 * PROCESS)
        enough = host <= resources.train.mem_gb * 2**30
        yield Check(
            section="memory",
            what="train, main memory of a node",
            state="ok" if enough else "missing",
            detail=f"{size_in_words(host)} while {resources.train.processes} processes load, of "
            f"{resources.train.mem_gb:g} GB",
            remedy="" if enough else f"--set resources.train.mem_gb={host / 2**30 * 1.1:.0f}",
        )


def _sampling(weights: int, cache: int, *, on_gpu: bool) -> MemoryEstimate:
    """A stage that only samples."""
    return MemoryEstimate(
        steady={"process": CUDA_CONTEXT if on_gpu else PROCESS, "weights": weights},
        training={},
        sampling={"keys and values": cache},
    )


def _fits(kind: str, asked: Resources, needed: MemoryEstimate, gpu_bytes: int | None) -> Check:
    if asked.gpus:
        where, available = f"{kind}, each GPU", gpu_bytes
    else:
        where, available = f"{kind}, main memory", int(asked.mem_gb * 2**30 / asked.processes)
    if available is None:
        return Check(
            section="memory",
            what=where,
            state="note",
            detail=f"needs {size_in_words(needed.total)}; say with --gpu_gb how much there is",
        )
    told = needed.verdict(available).removeprefix("memory: ")
    detail, _, remedy = told.partition("; ")
    state = "missing" if "does not fit" in told else "note" if ": tight" in told else "ok"
    if kind == "evaluate":
        remedy = "a smaller evaluate.batch_size"
    return Check(
        section="memory",
        what=where,
        state=state,  # type: ignore[arg-type]
        detail=detail + (f"; {remedy}" if state == "note" else ""),
        remedy=remedy if state == "missing" else "",
    )


def attempt(config: TrainConfig, folder: Path | None) -> list[Check]:
    """Load the model, sample a group for a question, and make a forward pass over it."""
    from observe.model.logprobs import completion_logprobs
    from observe.performance import max_memory_gb
    from observe.rollout.engine import SamplingParams
    from observe.rollout.factory import make_engine

    def failed(why: str, remedy: str) -> list[Check]:
        return [Check(section="try", what="rollout", state="missing", detail=why, remedy=remedy)]

    path, questions = config.model.path, first_questions(config, 1)
    if path != EMBEDDED and folder is None:
        return failed("the model is not here", "python -m harness.prefetch FILE")
    if not questions:
        return failed("the questions are not here", "see data.source")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began = time.monotonic()
    policy = (
        _embedded(config.model.base)
        if path == EMBEDDED
        else load_policy(str(folder), dtype=getattr(torch, config.model.dtype))
    )
    policy.model.to(device)
    loaded = time.monotonic()
    images = questions[0].open_images()
    messages = build_messages(config.prompt, questions[0].text, questions[0].options, len(images))
    sample = policy.processor.sample(messages, images)
    rollout: RolloutConfig = config.rollout
    params = SamplingParams(
        max_new_tokens=min(64, rollout.max_new_tokens),
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        n=rollout.group_size,
    )
    (group,) = make_engine(policy, rollout).generate([sample], params, [0])
    sampled = time.monotonic()
    with torch.no_grad():
        completion_logprobs(policy, [sample], [[c.token_ids for c in group]])
    passed = time.monotonic()
    tokens = sum(len(completion.token_ids) for completion in group)
    return [
        Check(
            section="try",
            what=f"{path} on {device.type}",
            state="ok",
            detail=f"loaded in {loaded - began:.1f} s; {tokens} tokens of {len(group)} completions "
            f"to a prompt of {sample.length} in {sampled - loaded:.1f} s "
            f"({tokens / (sampled - loaded):.0f} tokens/s); a forward pass in "
            f"{passed - sampled:.1f} s; {max_memory_gb(device):.1f} GB",
        )
    ]
