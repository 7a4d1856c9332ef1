"""Questions whose prompts begin alike read what they share once, and nothing else changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from data_pipeline.batches.encoding import MEDIA_SLOT_ID, EncodedQuestion
from data_pipeline.batches.families import BLOCK_TOKENS, count_shared, find_families, hash_blocks
from data_pipeline.batches.packing import Pack, build_micro_batch, pack_questions
from data_pipeline.batches.steps import PlanIndex, deal_step, packing_statistics, plan_epoch


def draw_families(sizes: list[int], n_shared: int, seed: int = 0, vocabulary: int = 900) -> list[EncodedQuestion]:
    """Families of so many questions; the prompts of one begin with the same `n_shared` tokens."""
    rng = np.random.default_rng(seed)
    questions = []
    for size in sizes:
        head = rng.integers(1, vocabulary, n_shared)
        for _ in range(size):
            prompt = np.concatenate([head, rng.integers(1, vocabulary, rng.integers(3, 20))]).astype(np.int32)
            answers = [rng.integers(1, 4, rng.integers(1, 6)).astype(np.int32) for _ in range(rng.integers(1, 4))]
            questions.append(EncodedQuestion(prompt, answers))
    order = rng.permutation(len(questions))
    return [questions[number] for number in order]


def seen_rows(pack: Pack) -> Counter[tuple[int, ...]]:
    """What every token of a pack sees, read in order."""
    index = np.arange(len(pack.input_ids))
    sees = (index[None, :] <= index[:, None]) & (index[:, None] < pack.subtree_end[None, :])  # [query, key]
    assert pack.position_ids.tolist() == (sees.sum(axis=1) - 1).tolist()
    return Counter(tuple(pack.input_ids[keys].tolist()) for keys in sees)


def loss_terms(pack: Pack) -> Counter[tuple]:
    index = np.arange(len(pack.input_ids))
    terms: Counter[tuple] = Counter()
    for position, target, weight in zip(pack.loss_position, pack.loss_target, pack.loss_weight, strict=True):
        sees = (index <= position) & (position < pack.subtree_end)
        terms[tuple(pack.input_ids[sees].tolist()), int(target)] += float(weight)
    return terms


@pytest.mark.parametrize("seed", range(4))
def test_a_family_in_a_pack_sees_and_learns_what_its_members_do_apart(seed: int) -> None:
    questions = draw_families([3, 1, 4, 1], 70, seed)
    family = PlanIndex.from_questions(questions).family
    order = np.argsort(family, kind="stable")
    numbers, rows = np.arange(len(order)), np.full(len(order), -1)
    apart = pack_questions([questions[i] for i in order], numbers, rows)
    shared = pack_questions([questions[i] for i in order], numbers, rows, family[order])
    assert len(shared.input_ids) == len(apart.input_ids) - 5 * 70
    assert set(seen_rows(shared)) == set(seen_rows(apart))
    assert loss_terms(shared) == loss_terms(apart)
    ends = [tuple(questions[i].prompt_ids.tolist()) for i in order]
    index = np.arange(len(shared.input_ids))
    for end, prompt in zip(shared.prompt_end, ends, strict=True):
        sees = (index <= end) & (end < shared.subtree_end)
        assert tuple(shared.input_ids[sees].tolist()) == prompt


def test_media_slots_keep_their_rows() -> None:
    head = np.arange(1, 50, dtype=np.int32)
    answer = [np.array([3, 4, 5], dtype=np.int32)]
    with_slot = [
        EncodedQuestion(np.concatenate([head, [MEDIA_SLOT_ID, 7 + n]]).astype(np.int32), answer) for n in (0, 1)
    ]
    plain = EncodedQuestion(np.array([9, 9], dtype=np.int32), answer)
    pack = pack_questions([*with_slot, plain], [0, 1, 2], [5, 6, -1], [0, 0, 2])
    assert pack.media_row.tolist() == [5, 6]
    assert len(pack.input_ids) == sum(len(q.tree.input_ids) for q in (*with_slot, plain)) - 49
    assert count_shared([question.prompt_ids for question in with_slot]) == 49


def test_families_are_those_that_save_most() -> None:
    rng = np.random.default_rng(0)
    preamble, tools_a, tools_b = (rng.integers(1, 900, 3 * BLOCK_TOKENS) for _ in range(3))
    same = rng.integers(1, 900, BLOCK_TOKENS)
    prompts = [
        np.concatenate([preamble, tools, [n, n]]).astype(np.int32) for tools in (tools_a, tools_b) for n in range(4)
    ]
    prompts += [
        np.concatenate([preamble, tools_a, same, [n, n]]).astype(np.int32) for n in (7, 8)
    ]  # a pair goes further
    prompts += [np.concatenate([preamble, [n] * 40]).astype(np.int32) for n in (1, 2)]
    prompts += [np.array([5, 6, 7], dtype=np.int32)]
    blocks = [hash_blocks(prompt) for prompt in prompts]
    family, shared = find_families(np.concatenate(blocks), np.array([len(each) for each in blocks]))
    assert family.tolist() == [0] * 4 + [4] * 4 + [0] * 2 + [10, 10, 12]
    assert shared.tolist() == [6 * BLOCK_TOKENS] * 10 + [3 * BLOCK_TOKENS] * 2 + [0]


def test_what_is_shared_ends_before_a_media_slot_and_before_the_last_token() -> None:
    prompt = np.arange(1, 2 * BLOCK_TOKENS + 1, dtype=np.int32)
    assert len(hash_blocks(prompt)) == 1
    assert len(hash_blocks(np.append(prompt, 5).astype(np.int32))) == 2
    prompt[40] = MEDIA_SLOT_ID
    assert len(hash_blocks(np.tile(prompt, 3))) == 1
    assert count_shared([prompt[:3], prompt[:5]]) == 2


def test_questions_that_share_nothing_are_planned_as_before() -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(20, 90, 120)
    index = PlanIndex.apart(rng.integers(1, 4, 120), sizes, sizes)
    order = np.concatenate(plan_epoch(index, 5, 2, 16))
    assert order.tolist() == np.random.default_rng([5, 2]).permutation(120).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_family_meets_in_a_step_and_a_budget_is_a_budget(world_size: int) -> None:
    questions = draw_families([4] * 30 + [1] * 20 + [50], 200, 1)
    index = PlanIndex.from_questions(questions)
    for epoch in (0, 1):
        steps = plan_epoch(index, 0, epoch, 16)
        assert sorted(np.concatenate(steps).tolist()) == list(range(len(questions)))
        n_families = [len(np.unique(index.family[step])) for step in steps]
        assert np.mean(n_families) < 0.5 * np.mean([len(step) for step in steps])
        assert np.mean(n_families) > 2  # a large family does not fill a step
        for step in steps:
            ranks = deal_step(step, index, world_size, 512)
            packs = [pack for rank in ranks for pack in rank]
            assert sorted(np.concatenate(packs).tolist()) == sorted(step.tolist())
            for pack in packs:
                assert index.count_tokens(pack) <= 512
                batch = build_micro_batch(questions, pack, np.full(len(questions), -1), family=index.family)
                assert batch.lengths.sum() <= max(1, index.count_tokens(pack))
                side_by_side = build_micro_batch(
                    questions, pack, np.full(len(questions), -1), sequence_tokens=256, family=index.family
                )
                assert side_by_side.lengths.sum() == batch.lengths.sum()
    statistics = packing_statistics(plan_epoch(index, 0, 0, 16), index, world_size, 512)
    apart = PlanIndex.apart(index.n_rows, index.n_tokens, index.row_tokens)
    alone = packing_statistics(plan_epoch(apart, 0, 0, 16), apart, world_size, 512)
    assert statistics.packed_tokens < 0.7 * alone.packed_tokens
    assert statistics.packed_used_frac <= 1
    assert statistics.rank_imbalance < 1.6


def test_no_rank_idles_while_another_holds_a_whole_family() -> None:
    questions = draw_families([8], 40, 2)
    index = PlanIndex.from_questions(questions)
    ranks = deal_step(np.arange(8), index, 2, 4096)
    assert [len(packs) for packs in ranks] == [1, 1]
    assert all(len(packs[0]) >= 3 for packs in ranks)
