"""One run of TRL's GRPOTrainer for grpo_step.py, in the peers' environment.

``python benchmarks/perf/grpo_peer.py FOLDER``: reads FOLDER/settings.json, loads the model there,
and writes FOLDER/steps.json. Imports nothing of this project.
"""

import importlib.util
import json
import os
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

NOT_INSTALLED = 3


def main(folder: Path) -> int:
    """Train for some steps and write what they took."""
    if importlib.util.find_spec("trl") is None:
        return NOT_INSTALLED
    settings = json.loads((folder / "settings.json").read_text())
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    declare_torchvision_operators(torch)
    from datasets import Dataset, Image
    from transformers import Qwen2_5_VLForConditionalGeneration, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(settings["threads"])
    cuda, dtype = settings["device"] == "cuda", getattr(torch, settings["dtype"])
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa"
    )
    marks: dict[str, list[float]] = {"end": [], "generate": []}
    prompt_tokens = set()
    generate = type(model).generate

    def timed(self: Any, *args: Any, **inputs: Any) -> Any:
        began = time.perf_counter()
        prompt_tokens.add(int(inputs["input_ids"].shape[1]))
        out = generate(self, *args, **inputs)
        if cuda:
            torch.cuda.synchronize()
        marks["generate"].append(time.perf_counter() - began)
        return out

    type(model).generate = timed  # type: ignore[method-assign]

    class Marks(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            marks["end"].append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            marks["end"].append(time.perf_counter())

    completions = settings["prompts"] * settings["group_size"]
    batch = settings["peer_micro_batch"]
    rng = random.Random(0)
    trainer = GRPOTrainer(
        model=model,
        processing_class=load_processor(folder),
        reward_funcs=lambda completions, **kwargs: [rng.random() for _ in completions],
        train_dataset=Dataset.from_dict(
            {
                "prompt": [[{"role": "user", "content": text}] for text in settings["texts"]],
                "image": settings["images"],
            }
        ).cast_column("image", Image()),
        callbacks=[Marks()],
        args=GRPOConfig(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=completions // batch,
            num_generations=settings["group_size"],
            max_completion_length=settings["new_tokens"],
            max_steps=settings["steps"] + settings["warmup"],
            generation_kwargs={
                "min_new_tokens": settings["new_tokens"],
                "suppress_tokens": settings["suppressed"],
            },
            beta=0.0,
            learning_rate=1e-6,
            gradient_checkpointing=settings["gradient_checkpointing"],
            bf16=cuda and dtype == torch.bfloat16,
            use_vllm=False,
            use_cpu=not cuda,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            log_completions=False,
        ),
    )
    trainer.train()
    ends = marks["end"]
    seconds = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    assert len(marks["generate"]) == len(seconds), "expected one generation per step"
    written = {
        "seconds": seconds[settings["warmup"] :],
        "generate": marks["generate"][settings["warmup"] :],
        "prompt_tokens": sorted(prompt_tokens),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_gpu_mb": torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
    }
    (folder / "steps.json").write_text(json.dumps(written))
    return 0


def declare_torchvision_operators(torch: Any) -> None:
    """Make torchvision importable beside a CPU build of torch, for which PyPI has no wheel.

    Transformers imports it for videos; none of its operators is called here.
    """
    if torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms", "roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool"):
        library.define(f"{name}(Tensor x) -> Tensor")
    library.define("deform_conv2d(Tensor x) -> Tensor")
    for name in ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d"):
        library.define(f"_{name}_backward(Tensor x) -> Tensor")
    torch._torchvision_library = library  # Operators live as long as their library.


def load_processor(folder: Path) -> Any:
    """Qwen2.5-VL's processor from our folder, which holds no settings for videos."""
    from transformers import AutoTokenizer, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    images = Qwen2VLImageProcessorPil.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Qwen2_5_VLProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=tokenizer.chat_template,
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
