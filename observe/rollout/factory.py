"""Which engine a run samples with."""

from observe.config import RolloutConfig
from observe.model.policy import Policy
from observe.rollout.engine import Engine


def make_engine(policy: Policy, config: RolloutConfig) -> Engine:
    """The engine that ``rollout.engine`` names, ready to sample from the policy.

    Raises InputError when vLLM is asked for and not installed, EngineError when it does not start.
    """
    if config.engine == "vllm":
        from observe.rollout.vllm import VllmEngine

        return VllmEngine(policy, config.vllm)
    if config.engine == "server":
        from observe.rollout.client import ServerEngine

        return ServerEngine(policy, config.vllm)
    from observe.rollout.native import NativeEngine

    return NativeEngine(policy)
