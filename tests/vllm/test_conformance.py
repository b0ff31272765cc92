"""What every engine must do, asked of vLLM.

The tests are those of the other engines, but for the ones that sample hotter than vLLM does; they
have their counterpart in test_engine.py.
"""

import pytest

pytest.importorskip("vllm", reason="no vLLM: make test-vllm sets it up")

from test_engines import (  # noqa: E402, F401
    test_a_completion_does_not_depend_on_its_batch,
    test_each_group_is_told_once_with_its_prompt_s_index,
    test_equal_seeds_give_equal_completions_and_different_seeds_different_ones,
    test_every_prompt_gets_its_group_in_order,
    test_greedy_takes_the_most_probable_token_of_a_teacher_forced_pass,
    test_no_prompts_give_no_completions,
    test_the_global_random_state_is_neither_used_nor_changed,
    test_the_narrowest_sampling_is_greedy,
    test_tokens_are_drawn_with_their_teacher_forced_probabilities,
)


@pytest.fixture
def engine(engine_of, untrained):
    return engine_of(untrained)
