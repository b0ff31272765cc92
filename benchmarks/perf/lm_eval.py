"""How fast questions about images are answered, here and by lm-eval's own ``hf-multimodal``.

``python -m benchmarks.perf.lm_eval --model DIR [--tasks a,b --data_dir DATA]``. Both get the same
requests of lm-eval (chat, images, greedy decoding, most new tokens), in the same process, with as
many threads and as many items together; without tasks these are questions of the embedded world.
How to read it:

- ``s/item``: from the requests to all responses, images decoded and prompts rendered, the model
  already loaded and warm; the median of ``--repeats``, in turn, and their range;
- ``equal``: share of items whose response is the same text. In float32 on a CPU nearly all should
  be; in lower precision, and on GPUs, fewer;
- ``tokens``: of a response of ours, on average; with other responses it is other work;
- ``ratio``: hf-multimodal's seconds over ours. Above 1, ours is faster.

``hf-multimodal`` loads Qwen's processor, whose video part needs torchvision and a configuration
that our model folders do not have. Its images and text are therefore processed by the same class
without that part; model, batches and generation are its own.
"""

import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from benchmarks.config import names
from benchmarks.perf.results import publish
from harness import machine
from harness.cli import run_command
from observe.config import Prompt, SamplerConfig

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

OURS, PEER = "ours", "hf-multimodal"
COLUMNS = ("tasks", "items", "engine", "s/item", "(range)", "tokens", "equal", "ratio")
WARM_UP = 2
"""Items that are answered before the clock runs."""

Doc = dict[str, Any]
Requests = Callable[["LM", Mapping[str, Any]], list["Instance"]]


def read_docs(tasks: Sequence[str], data_dir: str | None, items: int) -> dict[str, list[Doc]]:
    """The first `items` of each benchmark; without any, questions of the embedded world."""
    from benchmarks import rows
    from benchmarks.docs import to_doc

    if not tasks:
        from observe.glyphs import questions

        return {"glyphs": [to_doc(question) for question in questions("reasoning", items)]}
    return {task: rows.load(task, data_dir, items, "skip").docs for task in tasks}


class Ours:
    """Our engine as lm-eval's model, as `benchmarks.evaluate` makes it."""

    def __init__(
        self, model: Path, *, batch_size: int, dtype: str, device: str, max_new_tokens: int
    ) -> None:
        from observe.allocator import keep_freed_memory
        from observe.rollout.engine import SamplingParams
        from observe.rollout.factory import open_sampler

        keep_freed_memory()
        config = SamplerConfig(batch_size=batch_size, dtype=dtype)  # type: ignore[arg-type]
        self.sampler = open_sampler(model, config)
        self.params = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0)
        self.tokens = 0.0
        """Of a response, on average."""

    def answer(self, requests: Requests) -> tuple[list[str], float]:
        """Responses, and the seconds that they took."""
        from benchmarks.answers import FILE, AnswerStore
        from benchmarks.model import EngineLM

        with tempfile.TemporaryDirectory() as folder:
            store = AnswerStore(Path(folder) / FILE, {})
            lm = EngineLM(self.sampler, store, params=self.params, progress=lambda *_: None)
            asked = requests(lm, {"until": []})
            began = time.perf_counter()
            responses = lm.generate_until(asked)
            seconds = time.perf_counter() - began
            store.close()
        counts = [group[0].num_tokens for group in lm.completions.values()]
        self.tokens = statistics.fmean(counts)
        return responses, seconds


class Peer:
    """lm-eval's ``hf-multimodal``."""

    def __init__(
        self, model: Path, *, batch_size: int, dtype: str, device: str, max_new_tokens: int
    ) -> None:
        from lm_eval.models.hf_vlms import HFMultimodalLM
        from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor

        from observe.model.processor import Processor

        class StillProcessor(Qwen2_5_VLProcessor):
            """Qwen's own, without its video part: the signature names what it consists of."""

            def __init__(
                self, image_processor: Any, tokenizer: Any, chat_template: str | None = None
            ) -> None:
                super().__init__(image_processor, tokenizer, chat_template=chat_template)

        class StillLM(HFMultimodalLM):
            def _create_tokenizer(self, *_: Any, **__: Any) -> None:
                loaded = Processor.load(model)
                self.processor = StillProcessor(
                    loaded.image_processor, loaded.tokenizer, chat_template=loaded.chat_template
                )
                self.tokenizer = loaded.tokenizer

        self.lm = StillLM(pretrained=str(model), device=device, dtype=dtype, batch_size=batch_size)
        self.settings = {"until": [], "do_sample": False, "max_gen_toks": max_new_tokens}

    def answer(self, requests: Requests) -> tuple[list[str], float]:
        """Responses, and the seconds that they took."""
        asked = requests(self.lm, self.settings)
        began = time.perf_counter()
        responses = self.lm.generate_until(asked, disable_tqdm=True)
        return responses, time.perf_counter() - began


def compare(
    model: Path, docs: Mapping[str, Sequence[Doc]], *, prompt: Prompt, repeats: int, **how: Any
) -> list[dict[str, Any]]:
    """A row for either; `how` is what both are told."""
    from benchmarks import controls
    from observe.prompts import SYSTEM_PROMPTS

    system = SYSTEM_PROMPTS[prompt]

    def asking(chosen: Mapping[str, Sequence[Doc]]) -> Requests:
        return lambda lm, settings: controls.requests(lm, chosen, system, settings)

    sides: dict[str, Ours | Peer] = {OURS: Ours(model, **how), PEER: Peer(model, **how)}
    few = {task: group[:WARM_UP] for task, group in docs.items()}
    for side in sides.values():
        side.answer(asking(few))
    responses: dict[str, list[str]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):  # In turn, so that what else the machine does falls on both.
        for name, side in sides.items():
            responses[name], taken = side.answer(asking(docs))
            seconds[name].append(taken)
    items = sum(map(len, docs.values()))
    same = sum(
        a.strip() == b.strip() for a, b in zip(responses[OURS], responses[PEER], strict=True)
    )
    ours = sides[OURS]
    assert isinstance(ours, Ours)
    return [
        {
            "tasks": list(docs),
            "items": items,
            "engine": name,
            "seconds_per_item": statistics.median(taken) / items,
            "seconds_per_item_range": [min(taken) / items, max(taken) / items],
            "response_tokens": ours.tokens,
            "equal": same / items,
            "ratio": statistics.median(seconds[PEER]) / statistics.median(taken),
        }
        for name, taken in seconds.items()
    ]


def show(rows: Sequence[dict[str, Any]], described: dict[str, object]) -> None:
    """Print the table."""
    title = f"{described['cpu']}, {described['cores']} cores, {described['gpus']} GPUs"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("tasks", "engine") else "right")
    for row in rows:
        low, high = row["seconds_per_item_range"]
        table.add_row(
            ", ".join(row["tasks"]),
            str(row["items"]),
            row["engine"],
            f"{row['seconds_per_item']:.3f}",
            f"{low:.3f}-{high:.3f}",
            f"{row['response_tokens']:.0f}",
            f"{row['equal']:.0%}",
            f"{row['ratio']:.1f}",
        )
    Console(width=120).print(table)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = ArgumentParser(
        prog="python -m benchmarks.perf.lm_eval",
        description="How fast questions about images are answered, here and by lm-eval's own "
        "hf-multimodal.",
    )
    parser.add_argument("--model", type=Path, required=True, help="Folder of a Qwen2.5-VL model.")
    parser.add_argument("--tasks", default="", help="Public benchmarks, separated by commas.")
    parser.add_argument("--data_dir", type=str | None, help="Their files, as for evaluate.")
    parser.add_argument("--items", type=int, default=32, help="Items of each benchmark.")
    parser.add_argument("--prompt", type=Prompt, default="think", help="plain, think or observe.")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="Of a response, at most.")
    parser.add_argument("--batch_size", type=int, default=16, help="Items together, of either.")
    parser.add_argument("--repeats", type=int, default=3, help="Times that all are answered.")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="Threads of torch.")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda.")
    parser.add_argument("--dtype", type=str, default="float32", help="float32 or bfloat16.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead.")
    options = parser.parse_args(arguments)

    def command() -> int:
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
        os.environ["TQDM_DISABLE"] = "1"
        import torch

        torch.set_num_threads(options.threads)
        if options.device == "cpu":
            # Our engine takes a GPU that it sees.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        rows = compare(
            options.model,
            read_docs(names(options.tasks), options.data_dir, options["items"]),
            prompt=options.prompt,
            repeats=options.repeats,
            batch_size=options.batch_size,
            dtype=options.dtype,
            device=options.device,
            max_new_tokens=options.max_new_tokens,
        )
        return publish(rows, show, as_json=options.json)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
