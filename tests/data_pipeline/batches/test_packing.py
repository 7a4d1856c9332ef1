"""Answer trees, packs, and the plan of an epoch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.batches.encoding import MEDIA_SLOT_ID, EncodedQuestion, encode_question
from data_pipeline.batches.packing import build_micro_batch, collate, pack_questions
from data_pipeline.batches.steps import (
    PlanIndex,
    deal_step,
    deal_step_rows,
    packing_statistics,
    plan_epoch,
    steps_per_epoch,
)
from data_pipeline.errors import InputError
from data_pipeline.records.prompts import render_target


def random_questions(n_questions: int, seed: int = 0, max_answers: int = 6) -> list[EncodedQuestion]:
    """Questions over few ids, so that answers often begin alike, are prefixes of each other, or are equal.

    In half of them some answer tokens bear no loss, and answers that begin alike do not agree on which.
    """
    rng = np.random.default_rng(seed)
    questions = []
    for _ in range(n_questions):
        prompt = rng.integers(1, 9, size=rng.integers(2, 9)).astype(np.int32)
        if rng.random() < 0.5:
            prompt[1] = MEDIA_SLOT_ID
        answers = [
            rng.integers(1, 4, size=rng.integers(1, 8)).astype(np.int32)
            for _ in range(rng.integers(1, max_answers + 1))
        ]
        bears_loss = [rng.random(len(answer)) < 0.7 for answer in answers] if rng.random() < 0.5 else None
        questions.append(EncodedQuestion(prompt, answers, bears_loss))
    return questions


def seen_pairs(subtree_end: np.ndarray) -> np.ndarray:
    index = np.arange(len(subtree_end))
    return (index[None, :] <= index[:, None]) & (index[:, None] < subtree_end[None, :])  # [query, key]


@pytest.mark.parametrize("seed", range(5))
def test_every_token_sees_exactly_its_own_row(seed: int) -> None:
    """What a token sees, read in order, must be a prefix of one row of its own question, positions included."""
    questions = random_questions(7, seed)
    pack = pack_questions(questions, range(7), range(7))
    sees = seen_pairs(pack.subtree_end)
    paths = [tuple(pack.input_ids[keys].tolist()) for keys in sees]
    owner = np.repeat(np.arange(7), [len(question.tree.input_ids) for question in questions])
    assert pack.position_ids.tolist() == [len(path) - 1 for path in paths]
    for number, question in enumerate(questions):
        rows = [tuple(question.prompt_ids.tolist() + answer.tolist()) for answer in question.answers]
        # Needed: every prefix of a row except the whole rows that nothing follows; each of them once.
        prefixes = {row[:length] for row in rows for length in range(1, len(row))}
        prefixes |= {tuple(question.prompt_ids[:length].tolist()) for length in range(1, len(question.prompt_ids) + 1)}
        own = [path for path, who in zip(paths, owner, strict=True) if who == number]
        assert len(own) == len(set(own))
        assert set(own) == prefixes
        assert (owner[sees[owner == number].nonzero()[1]] == number).all()


@pytest.mark.parametrize("seed", range(5))
def test_loss_terms_equal_those_of_the_rows(seed: int) -> None:
    questions = random_questions(9, seed)
    pack = pack_questions(questions, range(9), range(9))
    sees = seen_pairs(pack.subtree_end)
    owner = np.repeat(np.arange(9), [len(question.tree.input_ids) for question in questions])
    packed: Counter[tuple] = Counter()
    for source, target, weight in zip(pack.loss_position, pack.loss_target, pack.loss_weight, strict=True):
        context = tuple(pack.input_ids[sees[source]].tolist())
        key = (int(owner[source]), context, int(target))
        assert key not in packed
        packed[key] += int(weight)
    rows: Counter[tuple] = Counter()
    for number, question in enumerate(questions):
        masks = question.bears_loss or [np.ones(len(answer), dtype=bool) for answer in question.answers]
        for answer, bears in zip(question.answers, masks, strict=True):
            row = question.prompt_ids.tolist() + answer.tolist()
            for position in np.flatnonzero(bears):
                length = len(question.prompt_ids) + int(position)
                rows[number, tuple(row[:length]), row[length]] += 1
        assert sum(question.n_loss_tokens) == sum(count for key, count in rows.items() if key[0] == number)
    assert packed == rows
    assert pack.n_rows == sum(len(question.answers) for question in questions)


def test_both_layouts_hold_the_same_loss_terms() -> None:
    questions = random_questions(11, 3)
    index = PlanIndex.from_questions(questions)
    step = np.array([2, 9, 4, 0])
    media_row = np.arange(11)

    def terms(selections: list[np.ndarray]) -> Counter[tuple]:
        found: Counter[tuple] = Counter()
        for selection in selections:
            batch = build_micro_batch(questions, selection, media_row)
            n_tokens = batch.input_ids.shape[1]
            for flat, target, weight in zip(batch.loss_position, batch.loss_target, batch.loss_weight, strict=True):
                row, source = divmod(int(flat), n_tokens)
                context = tuple(batch.input_ids[row][seen_pairs(batch.subtree_end[row])[source]].tolist())
                found[context, int(target)] += int(weight)
        return found

    assert terms(deal_step(step, index, 1, 40)[0]) == terms(deal_step_rows(step, index, 1, 3)[0])


def test_media_slots_point_to_their_question() -> None:
    questions = random_questions(12, 1)
    media_row = np.array([100 + number if question.has_media else -1 for number, question in enumerate(questions)])
    chosen = np.array([5, 1, 8, 2, 11])
    batch = build_micro_batch(questions, chosen, media_row, pad_to_multiple=16)
    assert batch.media_row.tolist() == [100 + q for q in chosen if questions[q].has_media]
    assert (batch.input_ids.reshape(-1)[batch.media_position] == MEDIA_SLOT_ID).all()
    assert (batch.input_ids == MEDIA_SLOT_ID).sum() == len(batch.media_position)
    assert batch.question_index.tolist() == chosen.tolist()
    assert batch.input_ids.shape[1] % 16 == 0
    padding = np.arange(batch.input_ids.shape[1]) >= batch.lengths[0]
    assert padding.any()
    assert (seen_pairs(batch.subtree_end[0])[padding] == np.eye(len(padding), dtype=bool)[padding]).all()


def test_rounded_batches_have_few_shapes_and_the_same_loss_terms() -> None:
    """Whatever is compiled for every other number of tokens or of loss terms is compiled for few."""
    questions = random_questions(400, 4)
    index, media_row = PlanIndex.from_questions(questions), np.arange(400)
    shapes: dict[int, set[tuple[int, int]]] = {1: set(), 64: set()}
    for step in plan_epoch(index, 0, 0, 24):
        for selection in deal_step(step, index, 1, 512)[0]:
            exact = build_micro_batch(questions, selection, media_row)
            rounded = build_micro_batch(questions, selection, media_row, pad_to_multiple=64)
            n_terms = len(exact.loss_target)
            for name in ("loss_position", "loss_target", "loss_weight"):
                assert getattr(rounded, name)[:n_terms].tolist() == getattr(exact, name).tolist()
                assert not getattr(rounded, name)[n_terms:].any()
            for multiple, batch in ((1, exact), (64, rounded)):
                shapes[multiple].add((batch.input_ids.shape[1], len(batch.loss_target)))
    assert len(shapes[1]) > 40
    assert all(tokens % 64 == terms % 64 == 0 for tokens, terms in shapes[64])
    assert len({tokens for tokens, _ in shapes[64]}) <= 512 // 64
    assert len({terms for _, terms in shapes[64]}) <= 512 // 64


def test_a_medium_without_a_vector_is_an_error_that_names_the_question() -> None:
    question = EncodedQuestion(np.array([1, MEDIA_SLOT_ID, 2], np.int32), [np.array([3], np.int32)])
    text = EncodedQuestion(np.array([1, 2], np.int32), [np.array([3], np.int32)])
    for selection in (np.array([0, 2, 1]), np.array([[2, 0]])):
        with pytest.raises(InputError, match="question 2 has a media slot, but no row of the media matrix"):
            build_micro_batch([text, question, question], selection, np.array([-1, 0, -1]))


def test_an_empty_pack_is_one_blind_token() -> None:
    batch = collate([pack_questions([], [], [])])
    assert batch.input_ids.shape == (1, 1)
    assert batch.subtree_end.tolist() == [[1]]
    assert (len(batch.loss_target), len(batch.media_row), batch.n_rows) == (0, 0, 0)


def test_the_plan_is_a_function_of_seed_and_epoch() -> None:
    index = PlanIndex.from_questions(random_questions(200))
    plan = plan_epoch(index, seed=3, epoch=2, global_batch_size=32)
    again = plan_epoch(index, seed=3, epoch=2, global_batch_size=32)
    assert [step.tolist() for step in plan] == [step.tolist() for step in again]
    assert sorted(np.concatenate(plan).tolist()) == list(range(200))
    for other in (plan_epoch(index, 3, 1, 32), plan_epoch(index, 4, 2, 32)):
        assert np.concatenate(other).tolist() != np.concatenate(plan).tolist()
        assert len(other) == len(plan) == steps_per_epoch(index, 32)
    rows = [int(index.n_rows[step].sum()) for step in plan]
    share = sum(rows) / len(rows)
    assert abs(share - 32) <= 2
    assert max(abs(count - share) for count in rows) <= index.n_rows.max()


def test_steps_are_never_empty_beside_a_question_with_very_many_answers() -> None:
    n_rows = np.ones(10, dtype=np.int64)
    n_rows[4] = 90
    index = PlanIndex.apart(n_rows, n_rows * 3, np.full(99, 5))
    for epoch in range(20):
        plan = plan_epoch(index, 0, epoch, 10)
        assert len(plan) == steps_per_epoch(index, 10) == 10
        assert all(len(step) == 1 for step in plan)
    with pytest.raises(InputError, match="global_batch_size is 0"):
        plan_epoch(index, 0, 0, 0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_a_step_holds_the_same_questions_at_any_world_size(world_size: int) -> None:
    index = PlanIndex.from_questions(random_questions(300, 2))
    for step in plan_epoch(index, 0, 0, 128):
        ranks = deal_step(step, index, world_size, pack_tokens=120)
        assert len(ranks) == world_size
        assert len({len(packs) for packs in ranks}) == 1
        packs = [pack for rank in ranks for pack in rank]
        assert sorted(np.concatenate(packs).tolist()) == sorted(step.tolist())
        sizes = [int(index.n_tokens[pack].sum()) for pack in packs]
        assert max(sizes) <= 120
        assert min(sizes) > 0
        assert max(sizes) - min(sizes) <= index.n_tokens[step].max()

        rows = deal_step_rows(step, index, world_size, micro_batch_size=4)
        assert len({len(batches) for batches in rows}) == 1
        pairs = np.concatenate([batch for rank in rows for batch in rank])
        expected = sorted((q, answer) for q in step.tolist() for answer in range(index.n_rows[q]))
        assert sorted(map(tuple, pairs.tolist())) == expected
        assert max(len(batch) for rank in rows for batch in rank) <= 4


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [[3000, 700, 700, 700, 700], [5000, 3000, 2048, 9, 9, 9], [3000], [2049] * 3 + [1]])
def test_a_tree_longer_than_the_budget_is_alone_and_widens_no_other_pack(sizes: list[int], world_size: int) -> None:
    n_tokens = np.array(sizes)
    index = PlanIndex.apart(np.ones(len(sizes), dtype=np.int64), n_tokens, n_tokens)
    ranks = deal_step(np.arange(len(sizes)), index, world_size, pack_tokens=2048)
    assert len({len(packs) for packs in ranks}) == 1
    packs = [pack for rank in ranks for pack in rank]
    assert sorted(np.concatenate(packs).tolist()) == list(range(len(sizes)))
    assert all(n_tokens[pack].sum() <= 2048 or len(pack) == 1 for pack in packs)


def test_too_few_or_too_long_questions_still_give_every_rank_a_pack() -> None:
    index = PlanIndex.from_questions(random_questions(3))
    ranks = deal_step(np.array([0, 2]), index, world_size=4, pack_tokens=5)
    assert [len(packs) for packs in ranks] == [1, 1, 1, 1]
    assert sorted(len(packs[0]) for packs in ranks) == [0, 0, 1, 1]
    empty = next(packs[0] for packs in ranks if len(packs[0]) == 0)
    for sequence_tokens in (None, 256):
        batch = build_micro_batch([], empty, np.zeros(0, dtype=int), sequence_tokens=sequence_tokens)
        assert (batch.n_rows, batch.input_ids.shape) == (0, (1, 1))
    (rows,) = deal_step_rows(np.array([], dtype=int), index, 1, 4)
    assert build_micro_batch([], rows[0], np.zeros(0, dtype=int)).layout == "rows"


@pytest.fixture(scope="module")
def bench_questions(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[EncodedQuestion]:
    """ToolMMBench's distinct (medium, question) pairs of the three files at hand, with a tokenizer trained on them."""
    from model.tiny.backbone import build_tokenizer

    answers: dict[tuple, list[str]] = {}
    for name in ("audio_tx2t", "video_tx2t", "test_shared"):
        for record in json.loads((shared_dir / f"toolmmbench/{name}.json").read_text()):
            human, gpt = (turn["value"] for turn in record["conversations"])
            medium = record["image_path"] or record["audio_path"] or record["video_path"]
            names = answers.setdefault((name, medium, human), [])
            names.extend(tool for tool in ([gpt] if isinstance(gpt, str) else gpt) if tool not in names)
    texts = [text for (_, _, human), names in answers.items() for text in (human, *map(render_target, names))]
    tokenizer = build_tokenizer(texts, vocab_size=2048)
    return [encode_question(tokenizer, human, bool(medium), names) for (_, medium, human), names in answers.items()]


def test_packing_the_real_benchmark_saves_more_than_half(bench_questions: list[EncodedQuestion]) -> None:
    """The bar: at most 45 % of the rows' tokens per step, at least 95 % of them used, at the papers' 64 rows a step."""
    index = PlanIndex.from_questions(bench_questions)
    steps = plan_epoch(index, 0, 0, 64)
    for world_size, pack_tokens, pad_to_multiple in ((1, 512, 1), (1, 2048, 1), (2, 512, 1), (4, 1024, 1)):
        found = packing_statistics(steps, index, world_size, pack_tokens, 4, pad_to_multiple)
        assert found.rows == index.total_rows
        assert found.packed_tokens_per_step <= 0.45 * found.row_tokens_per_step
        assert found.packed_to_unpadded_row_frac <= 0.45
        assert found.packed_used_frac >= 0.95
        assert found.rank_imbalance <= 1.1
    # The counts must be those of the batches that are really built.
    media_row = np.arange(len(bench_questions))
    packs = [build_micro_batch(bench_questions, pack, media_row) for pack in deal_step(steps[0], index, 1, 512)[0]]
    rows = [build_micro_batch(bench_questions, pairs, media_row) for pairs in deal_step_rows(steps[0], index, 1, 4)[0]]
    first = packing_statistics(steps[:1], index, 1, 512)
    assert first.packed_tokens == sum(batch.input_ids.size for batch in packs)
    assert first.row_tokens == sum(batch.input_ids.size for batch in rows)
    assert first.row_used_frac == sum(batch.lengths.sum() for batch in rows) / first.row_tokens
