"""Packing: prompts, then completions, nothing padded; micro-batches within their budget."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from observe.model.batch import micro_batches, pack, pack_sharing_prefixes
from observe.model.processor import Sample


def sample(length, images=0):
    return Sample(
        token_ids_L=torch.arange(length) + 100 * length,
        positions_3L=torch.arange(3 * length).reshape(3, length),
        pixels_RD=torch.full((4 * images, 6), float(length)) if images else torch.zeros(0, 0),
        grid_I3=torch.tensor([[1, 2, 2]] * images) if images else torch.zeros(0, 3).long(),
    )


def test_prompts_come_first_and_completions_leave_their_last_token_out():
    batch = pack([sample(2), sample(3)], [[[1, 2, 3], [4]], [[], [5, 6]]])
    assert batch.token_ids_1S.tolist() == [[200, 201, 300, 301, 302, 1, 2, 5]]
    assert batch.completion_lengths == [3, 1, 0, 2]
    assert batch.layout.prompts.lengths == [2, 3]
    assert batch.layout.completions.lengths == [2, 0, 0, 1]
    assert batch.layout.groups.lengths == [2, 1]


def test_every_token_is_predicted_by_the_one_before_it():
    batch = pack([sample(2), sample(3)], [[[1, 2, 3], [4]], [[], [5, 6]]])
    assert batch.targets_K.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.predictors_K.tolist() == [1, 5, 6, 1, 4, 7]


def test_a_completion_goes_on_beyond_every_axis_of_its_prompt():
    batch = pack([sample(2), sample(3)], [[[1, 2, 3]], [[5, 6, 7]]])
    assert torch.equal(batch.positions_31S[:, 0, :2], sample(2).positions_3L)
    assert batch.positions_31S[:, 0, 5:].tolist() == [[6, 7, 9, 10]] * 3


def test_values_come_back_completion_by_completion():
    batch = pack([sample(2), sample(3)], [[[1, 2, 3], [4]], [[], [5, 6]]])
    values = batch.per_completion(batch.targets_K.double())
    assert values.tolist() == [[1, 2, 3], [4, 0, 0], [0, 0, 0], [5, 6, 0]]
    assert batch.mask_NT.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]]


def test_pixels_are_put_together_in_the_order_of_the_prompts():
    batch = pack([sample(3, images=1), sample(2), sample(5, images=2)])
    assert batch.pixels_RD[:, 0].tolist() == [3.0] * 4 + [5.0] * 8
    assert batch.grid_I3.shape == (3, 3)


def test_prompts_alone_without_images_have_neither_pixels_nor_targets():
    batch = pack([sample(3), sample(2)])
    assert batch.pixels_RD.shape[0] == 0
    assert batch.grid_I3.shape == (0, 3)
    assert len(batch.targets_K) == len(batch.completion_lengths) == 0


IMAGE = 9


def prompt(tokens, images=0):
    return Sample(
        token_ids_L=torch.tensor(tokens),
        positions_3L=torch.arange(len(tokens)).expand(3, -1),
        pixels_RD=torch.full((4 * images, 6), float(tokens[-1])) if images else torch.zeros(0, 0),
        grid_I3=torch.tensor([[1, 2, 2]] * images) if images else torch.zeros(0, 3).long(),
    )


def test_prompts_that_begin_alike_share_what_stands_before_their_first_image():
    one, two, other = prompt([1, 2, IMAGE, 3], 1), prompt([1, 2, IMAGE, 4], 1), prompt([5, 6, 7])
    row = pack_sharing_prefixes([one, other, two], image_pad_id=IMAGE)
    assert row.batch.token_ids_1S.tolist() == [[1, 2, 5, IMAGE, 3, IMAGE, 4, 6, 7]]
    assert row.batch.layout.prompts.lengths == [2, 1]
    assert row.batch.layout.completions.lengths == [2, 2, 2]
    assert row.batch.layout.groups.lengths == [4, 2]
    assert row.order == [0, 2, 1]
    assert row.batch.pixels_RD[:, 0].tolist() == [3.0] * 4 + [4.0] * 4
    assert row.prompts.lengths == [4, 3, 4]
    tokens = row.batch.token_ids_1S[0, row.rows_T].tolist()
    assert tokens == [1, 2, IMAGE, 3, 5, 6, 7, 1, 2, IMAGE, 4]
    positions = row.batch.positions_31S[:, 0, row.rows_T]
    assert torch.equal(positions, torch.cat([s.positions_3L for s in (one, other, two)], dim=1))


def test_targets_stand_behind_their_prompts_and_are_predicted_by_the_token_before():
    samples = [prompt([1, 2, IMAGE, 3], 1), prompt([5, 6, 7]), prompt([1, 2, IMAGE, 4], 1)]
    row = pack_sharing_prefixes(samples, [[10, 11], [12], []], image_pad_id=IMAGE)
    assert row.batch.token_ids_1S.tolist() == [[1, 2, 5, IMAGE, 3, 10, IMAGE, 4, 6, 7]]
    assert row.batch.targets_K.tolist() == [10, 11, 12]
    assert row.batch.predictors_K.tolist() == [4, 5, 9]
    assert row.batch.completion_lengths == [2, 0, 1]
    assert row.batch.positions_31S[0, 0].tolist() == [0, 1, 0, 2, 3, 4, 2, 3, 1, 2]


def test_a_prompt_of_a_single_token_is_its_own_beginning():
    row = pack_sharing_prefixes([prompt([4]), prompt([4])], [[7, 8], [9]], image_pad_id=IMAGE)
    assert row.batch.token_ids_1S.tolist() == [[4, 7]]
    assert row.batch.predictors_K.tolist() == [0, 1, 0]
    assert row.rows_T.tolist() == [0, 0]


GROUPS = st.lists(
    st.tuples(st.integers(1, 30), st.lists(st.integers(0, 40), max_size=6)), max_size=8
)


@given(GROUPS, st.integers(1, 200))
def test_micro_batches_hold_every_completion_once_within_the_budget(groups, budget):
    prompts, lengths = [p for p, _ in groups], [c for _, c in groups]
    batches = micro_batches(prompts, lengths, tokens=budget)
    found = sorted((i, j) for batch in batches for i, members in batch for j in members)
    assert found == [(i, j) for i, group in enumerate(lengths) for j in range(len(group))]
    for batch in batches:
        tokens = sum(prompts[i] + sum(lengths[i][j] for j in members) for i, members in batch)
        alone = len(batch) == 1 and len(batch[0][1]) == 1
        assert tokens <= budget or alone


def test_groups_of_like_length_come_together_the_longest_first():
    batches = micro_batches([5] * 4, [[3, 9], [2, 2], [9, 1], [1, 2]], tokens=40)
    assert batches == [[(0, [0, 1]), (2, [0, 1])], [(1, [0, 1]), (3, [0, 1])]]


def test_a_group_beyond_the_budget_is_split_and_its_prompt_repeated():
    assert micro_batches([10], [[5, 5, 5]], tokens=20) == [[(0, [0, 1])], [(0, [2])]]
