"""Every setting of the trainer and where its default lives.

Light on purpose (neither torch nor transformers): the planner resolves thousands of these. The
docstring under a field is its ``--help``.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Literal

from observe.errors import InputError

Prompt = Literal["plain", "think", "observe"]
Order = Literal["shuffled", "ladder", "easy_to_hard"]

EMBEDDED = "glyphs"
"""The name that stands for the embedded world (as a data source) and its base model (as a path)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """The supervised base model of the embedded world (``python -m observe.base``)."""

    seed: int = 0
    """Seed of weights, training scenes and answer habits."""
    family: Literal["qwen2_5_vl", "qwen3_vl"] = "qwen2_5_vl"
    """Architecture: a small Qwen2.5-VL or Qwen3-VL."""
    look_steps: int = 120
    """First steps, mostly on observations alone: perception comes first."""
    work_steps: int = 980
    """Steps after them on careful responses; the habits come in the steps that are left."""
    steps: int = 1200
    """Supervised steps in all; more steps leave less to learn by reinforcement."""
    batch_size: int = 64
    """Question-response pairs per step."""
    lr: float = 3e-3
    """Peak learning rate of AdamW for embeddings, biases and norms (warm-up, cosine decay)."""
    matrix_lr: float = 0.02
    """Peak learning rate of Muon for the matrices of the hidden layers, on the same schedule."""
    warmup_steps: int = 40
    """Steps of linear warm-up."""
    hidden_size: int = 128
    """Width of the language model."""
    layers: int = 4
    """Layers of the language model."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    scenes: int = 6000
    """Pictures to learn from; each is seen with several questions."""
    initializer_range: float = 0.1
    """Standard deviation of the initial weights; at 0.02 perception does not begin in time."""
    tokenizer_texts: int = 2000
    """Texts of the world that the tokenizer is trained on."""
    vocab_size: int = 512
    """Upper bound of the tokenizer's vocabulary, special tokens included."""
    verbose_share: float = 0.15
    """Share of training responses that say more than they need to."""
    malformed_share: float = 0.15
    """Share of training responses that break the form they were asked for."""
    short_share: float = 0.1
    """Share of training responses to easy questions that answer without working it out."""
    short_share_hard: float = 0.7
    """The same for questions of several arithmetic steps."""

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "scenes", "tokenizer_texts"):
            if getattr(self, key) < 1:
                raise InputError(f"{key}: expected at least 1, got {getattr(self, key)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VllmConfig:
    """vLLM as the sampler (``rollout.engine: vllm`` or ``server``)."""

    gpu_memory_utilization: float = 0.35
    """Share of the device's memory for vLLM's weights and key-value cache; the trainer needs the
    rest, unless vLLM sleeps."""
    kv_cache_gb: float | None = None
    """Size of the key-value cache in GiB; null takes what gpu_memory_utilization leaves (on a CPU:
    1)."""
    max_model_len: int | None = None
    """Longest prompt and completion together, in tokens; null takes the model's own limit, for
    which the cache must be large enough."""
    max_num_seqs: int = 256
    """Completions decoded at a time."""
    images_per_prompt: int = 4
    """Most images that a prompt may have."""
    sleep_level: Literal[0, 1, 2] = 0
    """What vLLM gives back between rollouts: nothing (0), its cache with the weights moved to the
    host (1), or both, since new weights come anyway (2). On a CPU, 1 and 2 give back the cache."""
    tensor_parallel: int = 1
    """Devices that the model is split over."""
    enforce_eager: bool = False
    """Neither compile nor capture graphs: starts sooner, decodes slower. Always so on a CPU."""
    logprobs: bool = True
    """Return the log-probabilities of sampled tokens, which the mismatch between sampler and
    trainer is measured and corrected with."""
    url: str | None = None
    """Address of a server started with ``python -m observe.rollout.server`` (engine ``server``);
    null starts one on this machine, and starts it again when it dies."""
    devices: str | None = None
    """CUDA_VISIBLE_DEVICES of a server that is started here; null leaves it as it is."""
    sync_folder: str | None = None
    """Folder that trainer and server both see, for the weights (engine ``server``); null takes the
    system's one for temporary files."""
    start_timeout_s: float = 600.0
    """How long a server may take to start, or to come back when it does not answer."""
    request_timeout_s: float = 3600.0
    """How long a server may take for one request."""

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory_utilization <= 1:
            raise InputError(
                "gpu_memory_utilization: expected above 0, up to 1, got "
                f"{self.gpu_memory_utilization}"
            )
        for key in (
            "kv_cache_gb",
            "max_model_len",
            "max_num_seqs",
            "images_per_prompt",
            "tensor_parallel",
            "start_timeout_s",
            "request_timeout_s",
        ):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise InputError(f"{key}: expected a number above 0, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """A server with OpenAI's chat completions (``engine: endpoint``)."""

    url: str = ""
    """Address up to the version, as in ``https://api.openai.com/v1``."""
    model: str = ""
    """Name of the model on the server."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; without one, none is sent."""
    concurrency: int = 8
    """Requests under way at a time."""
    retries: int = 6
    """Times that a request is made again when the server is busy, fails or cannot be reached."""
    backoff_s: float = 1.0
    """Pause before the first of these, which doubles each time (at most 60 s); a server that names
    a longer pause gets it."""
    timeout_s: float = 600.0
    """How long the server may take for one answer."""
    limit_key: str = "max_tokens"
    """What the server calls the longest answer; OpenAI's newer models: max_completion_tokens."""
    extra: str = "{}"
    """Further keys of each request, a JSON object: ``{"repetition_penalty": 1.0}`` for vLLM's own
    server, which otherwise takes what the model's folder recommends."""

    def __post_init__(self) -> None:
        for key, least in (
            ("concurrency", 1),
            ("retries", 0),
            ("backoff_s", 0),
            ("timeout_s", 0.001),
        ):
            if getattr(self, key) < least:
                raise InputError(f"{key}: expected at least {least}, got {getattr(self, key)}")
        try:
            extra = json.loads(self.extra)
        except ValueError:
            extra = None
        if not isinstance(extra, dict):
            raise InputError(f"extra: expected a JSON object, got {self.extra!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceVllmConfig(VllmConfig):
    """vLLM where nothing is trained beside it."""

    gpu_memory_utilization: float = 0.9
    """Share of the device's memory for vLLM's weights and key-value cache."""
    logprobs: bool = False
    """Return the log-probabilities of sampled tokens, which nobody reads here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """What answers questions for a model that is not being trained."""

    engine: Literal["native", "vllm", "server", "endpoint"] = "native"
    """``native`` samples in this process; ``vllm`` runs vLLM in it; ``server`` asks a rollout
    server (``python -m observe.rollout.server``); ``endpoint`` any server that speaks OpenAI's
    protocol."""
    batch_size: int = 256
    """Responses decoded at a time (engine native); changes memory and speed (and floating-point
    rounding). Where a GPU's memory runs out it is halved."""
    batch_image_tokens: int = 65_536
    """Most image tokens that are read at a time; a prompt with more is read alone."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights."""
    adapter: str | None = None
    """Folder of a LoRA adapter (peft) to put on the model."""
    vllm: InferenceVllmConfig = InferenceVllmConfig()
    """vLLM (only with engine ``vllm`` or ``server``)."""
    endpoint: EndpointConfig = EndpointConfig()
    """The server (only with engine ``endpoint``)."""

    def __post_init__(self) -> None:
        for key in ("batch_size", "batch_image_tokens"):
            if getattr(self, key) < 1:
                raise InputError(f"{key}: expected at least 1, got {getattr(self, key)}")
        if self.engine == "endpoint" and not (self.endpoint.url and self.endpoint.model):
            raise InputError(
                "engine: endpoint needs endpoint.url and endpoint.model, the server's address "
                "(as in http://127.0.0.1:8000/v1) and the name of its model"
            )
        if self.engine == "endpoint" and self.adapter:
            raise InputError("adapter: an endpoint's model is the server's; start it with one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """NeuraLadder: questions ordered and mixed by difficulty (``python -m observe.ladder``)."""

    path: str | None = None
    """Folder of a ladder that was built before, from the questions of data.source; null builds one
    with the settings below."""
    pool: int = 2800
    """Training questions to start from, before any is dropped."""
    samples: int = 8
    """Sampled responses with reasoning per question; difficulty has samples + 1 levels."""
    prompts: tuple[Prompt, ...] = ("think", "observe")
    """Prompts the samples are drawn under, in turn, so that no arm's prompt is favoured."""
    temperature: float = 1.0
    """Sampling temperature."""
    max_new_tokens: int = 128
    """Longest sampled response in tokens."""
    simple_filter: bool = True
    """Drop what the base model answers right directly, without reasoning (one greedy answer)."""
    easy_complexity_quantile: float = 0.5
    """Questions of difficulty 0 below this quantile of their complexity are dropped."""
    hardest_share: float = 0.5
    """Share kept of the questions that no sample solved (wrong labels live there); the rest is
    dropped, longest responses first."""
    own_share: float = 0.5
    """Share of a stage's questions that come from its own difficulty level; the rest from its
    neighbours."""
    neighbours: int = 2
    """Levels on each side that a stage is mixed with."""
    seed: int = 0
    """Seed of pool, sampling and mixing."""
    sampler: SamplerConfig = SamplerConfig()
    """What answers."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("easy_complexity_quantile", 0, 1),
            ("hardest_share", 0, 1),
            ("own_share", 0.25, 1),
            ("neighbours", 0, math.inf),
            ("samples", 1, math.inf),
            ("pool", 1, math.inf),
            ("max_new_tokens", 1, math.inf),
            ("temperature", 0, math.inf),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                upper = "or more" if high == math.inf else f"to {high}"
                raise InputError(f"{name}: expected {low} {upper}, got {value}")
        if not self.prompts:
            raise InputError("prompts: expected at least one prompt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in place of training all weights (peft)."""

    rank: int | None = None
    """Rank of the adapters; null trains all weights. A KL term then compares with the adapter
    switched off, so that no second model lies in memory."""
    alpha: int = 32
    """The adapters' product is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs that are dropped in training."""
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Linear layers of the language model that get an adapter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The policy at the start of training."""

    path: str = EMBEDDED
    """Hugging Face folder, or Hub id as ``org/name`` or ``org/name@revision`` (a commit names the
    same weights for ever); ``glyphs`` builds the embedded base model first."""
    base: BaseConfig = BaseConfig()
    """The embedded base model (only with path ``glyphs``)."""
    gradient_checkpointing: bool = False
    """Keep only the layers' inputs and make the rest again in the backward pass: less memory, more
    time, the same gradient."""
    lora: LoraConfig = LoraConfig()
    """Adapters in place of full training."""
    freeze_vision: bool = False
    """Train the language model alone. The features of a picture are then computed once."""
    vision_cache_mb: int = 512
    """Memory for the features of pictures seen before, where the vision tower is not trained."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the model computes. With bfloat16 the optimizer steps on float32 copies of the
    weights, and checkpoints hold those."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which questions are trained on, and in what order."""

    source: str = EMBEDDED
    """``glyphs``, or a JSONL file of questions (images beside it)."""
    size: int = 1440
    """Questions in the one pass of training; divisible by prompts_per_step."""
    selection: Literal["raw", "ladder"] = "ladder"
    """``ladder``: the questions that NeuraLadder keeps; ``raw``: the source as it is."""
    order: Order = "shuffled"
    """``ladder`` (easy to hard with neighbour mixing), ``easy_to_hard`` (no mixing) or
    ``shuffled``: the same questions once each, so that order alone is compared."""
    ladder: LadderConfig = LadderConfig()
    """How the ladder is built."""
    max_prompt_tokens: int | None = None
    """Questions whose prompt is longer, image tokens included, are skipped, never cut; null sets no
    bound. Measured under the longest of the system prompts, so that every arm skips the same."""
    max_skipped_share: float = 0.05
    """Largest share of questions that may be skipped (images that cannot be read, prompts too
    long) before training is refused; others take their place."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How completions are sampled."""

    group_size: int = 8
    """Completions per prompt (G)."""
    max_new_tokens: int = 128
    """Longest completion in tokens; a longer one is truncated and scored as it is."""
    temperature: float = 1.0
    """Sampling temperature; the trainer's log-probabilities use it too."""
    top_p: float = 1.0
    """Nucleus sampling: the smallest set of tokens with this probability mass; 1 keeps all."""
    top_k: int = 0
    """Sample among the k most probable tokens; 0 keeps all."""
    refill_rounds: int = 0
    """Draw groups that would teach nothing (all advantages 0) again, up to this many times (dynamic
    sampling, arXiv 2503.14476). DAPO fills up with further questions; here the same question is
    asked anew, so that every run still asks each question once, in as many steps. A group that is
    still without signal after the last round stays as it is."""
    engine: Literal["native", "vllm", "server"] = "native"
    """``native`` samples from the policy in this process; ``vllm`` runs vLLM beside it, weights
    handed over after each step; ``server`` has vLLM in a process of its own, on other devices. With
    several processes, native samples in each for its share, and one server for all."""
    vllm: VllmConfig = VllmConfig()
    """vLLM (only with engine ``vllm`` or ``server``)."""

    def __post_init__(self) -> None:
        if self.refill_rounds < 0:
            raise InputError(f"refill_rounds: expected at least 0, got {self.refill_rounds}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BonusConfig:
    """The bonus for the most concise correct completion of a group (Observe-R1)."""

    weight: float = 0.0
    """Reward added to the shortest correct completion; 0 switches the bonus off."""
    min_length: int | None = None
    """It must be longer than this many tokens, lest answers collapse to the bare result."""
    min_length_quantile: float | None = None
    """Take min_length, when it is null, from this quantile of the base model's own correct lengths
    under the same prompt, as the ladder measured them."""
    max_length: int | None = None
    """It must not be longer than this many tokens; null sets no upper bound."""

    def __post_init__(self) -> None:
        share = self.min_length_quantile
        if share is not None and not 0 <= share <= 1:
            raise InputError(f"min_length_quantile: expected 0 to 1, got {share}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverlongConfig:
    """The soft punishment of overlong completions (DAPO, arXiv 2503.14476, equation 13)."""

    weight: float = 0.0
    """Reward taken from a completion of max_length tokens or more; 0 switches it off, DAPO has 1.
    Within the buffer before max_length it rises linearly from 0."""
    max_length: int | None = None
    """Tokens at which the punishment is whole; null takes rollout.max_new_tokens."""
    buffer_share: float = 0.2
    """The buffer as a share of max_length (DAPO: 4096 of 20480 tokens)."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise InputError(f"weight: expected at least 0, got {self.weight}")
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max_length: expected at least 1, got {self.max_length}")
        if not 0 < self.buffer_share <= 1:
            raise InputError(f"buffer_share: expected above 0, up to 1, got {self.buffer_share}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What a completion is rewarded for."""

    accuracy: float = 1.0
    """Reward of a correct answer."""
    format: Literal["none", "think", "observe"] = "think"
    """The form a completion must have: think + answer, or observe + think + answer."""
    format_weight: float = 0.5
    """Reward of a valid form."""
    bonus: BonusConfig = BonusConfig()
    """The conciseness bonus."""
    overlong: OverlongConfig = OverlongConfig()
    """The punishment of overlong completions."""
    shuffle: bool = False
    """Placebo: permute the rewards within each group, so that nothing can be learned from them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightingConfig:
    """Dynamic weighting of groups by their difficulty (Observe-R1)."""

    sigma: float | None = None
    """The largest weight that a group's advantages are multiplied by; null leaves them as they are.
    Observe-R1 uses 1.8."""
    form: Literal["observe_r1", "vcrl", "linear", "triangular"] = "observe_r1"
    """The weight of a group by its share d of correct completions: ``observe_r1`` 4 sigma d (1 -
    d); ``vcrl`` sigma where the variance of correctness, relative to the largest possible one, is
    at least ``threshold``, else 0; ``linear`` sigma (1 - d), the hardest most; ``triangular``
    sigma (1 - |2 d - 1|), straight lines with the zeros and the peak of ``observe_r1``."""
    threshold: float = 0.3
    """The least relative variance that form ``vcrl`` keeps."""

    def __post_init__(self) -> None:
        if self.form != "observe_r1" and self.sigma is None:
            raise InputError(
                f"form: {self.form} has no effect while weighting.sigma is null; give "
                "sigma, e.g. 1.8"
            )
        if self.sigma is not None and self.sigma <= 0:
            raise InputError(f"sigma: expected a number above 0, or null, got {self.sigma}")
        if not 0 < self.threshold <= 1:
            raise InputError(f"threshold: expected above 0, up to 1, got {self.threshold}")


Aggregation = Literal["token", "sequence", "sequence_sum", "constant"]
KlEstimator = Literal["k1", "k2", "k3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The policy loss. Its keys make the published algorithms (ablations/algorithms.yaml has each
    of them as a level): GRPO is the default."""

    clip_low: float = 0.2
    """Lower clipping range of the probability ratio; 1 or more: no lower bound."""
    clip_high: float = 0.2
    """Upper clipping range of the probability ratio (DAPO: 0.28, clip-higher)."""
    aggregation: Aggregation = "sequence"
    """How tokens add up to a step's loss: ``token`` averages over all tokens (DAPO), ``sequence``
    over completions of their token means (GRPO), ``sequence_sum`` over completions of their token
    sums (RLOO), ``constant`` the same divided by rollout.max_new_tokens (Dr. GRPO)."""
    baseline: Literal["mean", "leave_one_out"] = "mean"
    """What is subtracted from a reward: the group's mean, or that of its other completions
    (RLOO)."""
    scale: Literal["std", "none"] = "std"
    """Divide the centred rewards of a group by their standard deviation, or not."""
    ratio: Literal["token", "sequence"] = "token"
    """Probability ratio to the sampling policy: of each token, or the geometric mean over a
    completion's tokens (GSPO; its clipping range is a thousand times smaller)."""
    surrogate: Literal["clipped", "cispo"] = "clipped"
    """``clipped``: PPO's pessimistic surrogate, where a clipped token has no gradient. ``cispo``:
    the clipped ratio is a constant weight of log-probability, so that every token has one."""
    mask_truncated: bool = False
    """Leave completions that the length limit cut short out of the loss and of its counts. Their
    rewards still take part in the group's mean."""
    kl_coefficient: float = 0.0
    """Weight of the KL divergence from the starting policy; 0 makes no reference pass."""
    kl_estimator: KlEstimator = "k3"
    """Estimate of the divergence at a sampled token: ``k1`` log-ratio, ``k2`` half its square,
    ``k3`` ratio - 1 - log-ratio (GRPO). In the loss, the expected gradient of k1 is 0 and that of
    k2 the divergence's own; in the reward k1 gives that (arXiv 2506.09477)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Add the divergence to the loss of each token (GRPO), or take its sum over a completion from
    the completion's reward (RLOO). In the reward with scale ``std``, groups of equal rewards learn
    from the divergence alone, blown up to the usual size: better with scale ``none``."""
    entropy_coefficient: float = 0.0
    """Weight of the bonus for the entropy of the token distributions."""
    importance_sampling: Literal["none", "token", "sequence"] = "none"
    """Correct for a sampler whose probabilities differ from the trainer's (other kernels, lower
    precision): weight the gradient by their ratio, cut off at importance_cap, for each token or
    for the whole completion."""
    importance_cap: float = 2.0
    """Largest weight of that correction."""

    def __post_init__(self) -> None:
        for key in ("clip_low", "clip_high", "kl_coefficient", "entropy_coefficient"):
            value = getattr(self, key)
            if not 0 <= value < math.inf:
                raise InputError(f"{key}: expected at least 0, got {value}")
        if self.surrogate == "cispo" and self.ratio == "sequence":
            raise InputError(
                "surrogate: cispo weights every token by its own ratio; use loss.ratio: token"
            )
        if self.kl_in == "reward" and self.kl_coefficient == 0:
            raise InputError(
                "kl_in: reward has no effect while loss.kl_coefficient is 0; give a coefficient"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW."""

    lr: float = 1e-6
    """Learning rate after warm-up, constant."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.99
    """Decay of the second moment."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    updates_per_rollout: int = 1
    """Times that every completion is trained on before new ones are sampled (GRPO's mu). From the
    second on, the policy is no longer the one that was sampled from, and ratios are clipped."""
    minibatches_per_rollout: int = 1
    """Optimizer steps that a pass over the rollout is split into, in the order of its questions."""
    max_bad_steps: int = 5
    """A step whose loss or gradient is NaN or infinite is left out; training stops when there are
    more than this many in a row."""

    def __post_init__(self) -> None:
        for key, least in (
            ("lr", 0),
            ("warmup_steps", 0),
            ("weight_decay", 0),
            ("updates_per_rollout", 1),
            ("minibatches_per_rollout", 1),
        ):
            if getattr(self, key) < least:
                raise InputError(f"{key}: expected at least {least}, got {getattr(self, key)}")
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise InputError(f"{key}: expected at least 0, below 1, got {getattr(self, key)}")
        if self.max_grad_norm <= 0:
            raise InputError(f"max_grad_norm: expected a number above 0, got {self.max_grad_norm}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the processes that torchrun starts share one run."""

    strategy: Literal["none", "ddp", "fsdp2"] = "none"
    """Each process takes its share of a step's questions, and their gradients are summed. ``ddp``:
    each has all weights; ``fsdp2``: weights, gradients and optimizer state are spread over them,
    and a device holds all weights only while it samples. A single process runs alike under every
    strategy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run (``python -m observe.train``)."""

    prompt: Prompt = "think"
    """System prompt: plain, think, or observe."""
    model: ModelConfig = ModelConfig()
    """The policy at the start."""
    data: DataConfig = DataConfig()
    """Questions and their order."""
    rollout: RolloutConfig = RolloutConfig()
    """Sampling."""
    reward: RewardConfig = RewardConfig()
    """Rewards."""
    weighting: WeightingConfig = WeightingConfig()
    """Dynamic weighting."""
    loss: LossConfig = LossConfig()
    """Policy loss."""
    optim: OptimConfig = OptimConfig()
    """Optimizer."""
    parallel: ParallelConfig = ParallelConfig()
    """Several processes."""
    prompts_per_step: int = 24
    """Questions per step, whose completions make one rollout."""
    micro_batch_tokens: int = 8192
    """Tokens per forward pass of the update, prompts (once per group) and completions; changes
    memory and speed, not the gradient."""
    prefetch_threads: int = 1
    """Threads that open the next step's images and process its prompts while this step trains; 0
    does so when they are needed. Changes no result."""
    eval_steps: tuple[int, ...] = ()
    """Steps after which the policy is evaluated on validation questions (0: before training). Those
    that training ends before are left out, and named."""
    eval_size: int = 96
    """Validation questions of an evaluation during training."""
    checkpoint_every: int = 20
    """Steps between checkpoints; a killed run goes on from the last one."""
    checkpoint_keep: int = 2
    """Checkpoints that are kept, the newest included; where one is damaged the one before it is
    taken."""
    log_completions_every: int = 10
    """Steps between logged groups of completions."""
    log_tensorboard: bool | None = None
    """Write event files for TensorBoard into ``tensorboard/``; null: when it is installed."""
    log_wandb: str | None = None
    """Weights & Biases project to log to; null logs to none."""
    seed: int = 0
    """Seed of data order and sampling."""

    def __post_init__(self) -> None:
        rollout, lora = self.rollout, self.model.lora
        counts = {
            "data.size": (self.data.size, 1),
            "prompts_per_step": (self.prompts_per_step, 1),
            "micro_batch_tokens": (self.micro_batch_tokens, 1),
            "prefetch_threads": (self.prefetch_threads, 0),
            "checkpoint_every": (self.checkpoint_every, 1),
            "checkpoint_keep": (self.checkpoint_keep, 1),
            "log_completions_every": (self.log_completions_every, 1),
            "eval_size": (self.eval_size, 1),
            "rollout.max_new_tokens": (rollout.max_new_tokens, 1),
            "rollout.group_size": (rollout.group_size, 2),
            "rollout.top_k": (rollout.top_k, 0),
            "optim.max_bad_steps": (self.optim.max_bad_steps, 0),
            "data.max_prompt_tokens": (
                1 if (limit := self.data.max_prompt_tokens) is None else limit,
                1,
            ),
            "model.vision_cache_mb": (self.model.vision_cache_mb, 0),
            "model.lora.rank": (1 if lora.rank is None else lora.rank, 1),
        }
        for key, (count, least) in counts.items():
            if count < least:
                raise InputError(f"{key}: expected at least {least}, got {count}")
        if not -(2**63) <= self.seed < 2**63:
            raise InputError(f"seed: expected an integer of 64 bits, got {self.seed}")
        if any(step < 0 for step in self.eval_steps):
            raise InputError(f"eval_steps: expected 0 or more, got {min(self.eval_steps)}")
        if not 0 < rollout.temperature < math.inf:
            raise InputError(
                f"rollout.temperature: expected a number above 0, got {rollout.temperature}; "
                "the completions of a group must differ"
            )
        if not 0 < rollout.top_p <= 1:
            raise InputError(f"rollout.top_p: expected above 0, up to 1, got {rollout.top_p}")
        if not 0 <= self.data.max_skipped_share < 1:
            raise InputError(
                "data.max_skipped_share: expected 0 up to, not including, 1, got "
                f"{self.data.max_skipped_share}"
            )
        if rollout.engine != "native" and not 0.01 <= rollout.temperature <= 2:
            raise InputError(
                f"rollout.temperature: {rollout.temperature}, but vLLM (rollout.engine: "
                f"{rollout.engine}) samples between 0.01 and 2"
            )
        if not 0 < self.loss.importance_cap < math.inf:
            raise InputError(
                f"loss.importance_cap: expected a number above 0, got {self.loss.importance_cap}"
            )
        if self.loss.importance_sampling != "none" and rollout.engine != "native":
            truncated = rollout.top_p < 1 or rollout.top_k > 0
            if truncated or not rollout.vllm.logprobs:
                raise InputError(
                    f"loss.importance_sampling: {self.loss.importance_sampling} needs the "
                    "sampler's log-probabilities: set rollout.vllm.logprobs: true, and leave "
                    "rollout.top_p at 1 and rollout.top_k at 0, behind which vLLM returns others"
                )
        if not 0 <= lora.dropout < 1:
            raise InputError(f"model.lora.dropout: expected 0 up to below 1, got {lora.dropout}")
        if self.data.size % self.prompts_per_step:
            raise InputError(
                f"data.size: {self.data.size} is no multiple of prompts_per_step "
                f"({self.prompts_per_step}); the one pass must end with a whole step"
            )
        minibatches = self.optim.minibatches_per_rollout
        if self.prompts_per_step % minibatches:
            raise InputError(
                f"optim.minibatches_per_rollout: {minibatches} does not divide prompts_per_step "
                f"({self.prompts_per_step}); the parts of a rollout must be equal"
            )
        overlong = self.reward.overlong
        longest = rollout.max_new_tokens
        if overlong.weight and (overlong.max_length or longest) > longest:
            raise InputError(
                f"reward.overlong.max_length: {overlong.max_length} is never reached: completions "
                f"end at rollout.max_new_tokens ({longest})"
            )
        if self.data.selection == "raw" and self.data.order != "shuffled":
            raise InputError(
                f"data.order: {self.data.order} needs data.selection: ladder, which alone measures "
                "how hard the questions are"
            )


def late_evaluations(eval_steps: Sequence[int], steps: int) -> str | None:
    """Which ``eval_steps`` lie behind the last of so many training steps, in words; None: none.

    No error: they are most often a recipe's, where data.size alone was made smaller.
    """
    late = [str(step) for step in eval_steps if step > steps]
    if not late:
        return None
    return (
        f"eval_steps: {', '.join(late)} left out, training ends after step {steps}; "
        "give steps up to there"
    )
