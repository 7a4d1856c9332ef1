"""From corpus rows to micro steps over Ray Data: every row once, any start, any world size."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from data_pipeline.batches.cards import CardForm
from data_pipeline.batches.choices import AnswerChoices
from data_pipeline.batches.encoding import MEDIA_SLOT_ID, encode_question
from data_pipeline.batches.packing import Layout
from data_pipeline.batches.plan import UniformPlan
from data_pipeline.batches.steps import PlanIndex
from data_pipeline.batches.stream import BatchForm, MicroStep, stream_micro_steps
from data_pipeline.batches.token_shards import TokenForm, tokenize_shards
from data_pipeline.batches.tokenized import StoredQuestions, TokenizedQuestions, select_questions
from data_pipeline.batches.vector_table import write_vectors
from data_pipeline.errors import InputError
from data_pipeline.records.dialogue import render_answer, render_call
from data_pipeline.records.prompts import render_target
from data_pipeline.records.schema import CORPUS_SCHEMA, Modality, ToolRecord, Turn

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

N_QUESTIONS = 60
TOOLS = ("lab/dehaze", "lab/deblur", "sound/pitch", "t5", "t5-base")
GLOBAL_BATCH_SIZE = 16
PAD_ID = 2
MICRO_BATCH_SIZE = 3
PACKED = BatchForm("packed", PAD_ID)
MEDIA = np.arange(20 * 4, dtype=np.float16).reshape(20, 4)  # M = 20 vectors of width E = 4


class CharacterTokenizer:
    """One id per character."""

    bos_token_id = 1
    eos_token_id = 0

    def save_pretrained(self, folder: str) -> None:
        (Path(folder) / "characters").touch()

    def __call__(self, texts: list[str], add_special_tokens: bool, split_special_tokens: bool) -> Any:
        return {"input_ids": [[ord(character) + 3 for character in text] for text in texts]}


def build_records() -> list[ToolRecord]:
    """Questions of one to four answers; the words name the question; a third is text, the others share 20 media."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(N_QUESTIONS):
        has_media = number % 3 > 0
        tool_ids = rng.choice(TOOLS, size=rng.integers(1, 5), replace=False).tolist()
        records.append(
            ToolRecord(
                record_id=f"r{number}",
                source="test",
                modality=Modality.IMAGE if has_media else Modality.TEXT,
                instruction=f"[{number}]" + "w" * int(rng.integers(0, 30)),
                valid_tool_ids=tuple(tool_ids),
                media_uri=f"{number % 20}.png" if has_media else "",
                media_sha256=f"sha{number % 20}" if has_media else "",
            )
        )
    return records


RECORDS = build_records()
EXPECTED_ROWS = Counter((number, tool_id) for number, record in enumerate(RECORDS) for tool_id in record.valid_tool_ids)


class Tokens(NamedTuple):
    """A tokenised split, as planning and as ranks see it."""

    facts: TokenizedQuestions
    stored: StoredQuestions


def write_shards(records: list[ToolRecord], folder: Path) -> list[tuple[Path, int]]:
    """Several files, whose tasks Ray Data may finish in any order."""
    table = pa.Table.from_pylist([record.to_row() for record in records], schema=CORPUS_SCHEMA)
    shards = []
    for start in range(0, len(table), 13):
        shards.append((folder / f"shard-{start}.parquet", len(table[start : start + 13])))
        pq.write_table(table[start : start + 13], shards[-1][0], row_group_size=5)
    return shards


def build_tokens(
    records: list[ToolRecord],
    folder: Path,
    media: dict[str, int] | None = None,
    limits: tuple[int, int, int] = (512, 0, 2048),
    ends: tuple[int, ...] = (),
    call_numbers: dict[str, int] | None = None,
) -> Tokens:
    form = TokenForm(CharacterTokenizer(), *limits, TOOLS, ends, call_numbers or {})
    shards = tokenize_shards(folder / "tokens", write_shards(records, folder), "these records", form)
    vectors = write_vectors(folder / "vectors", "", MEDIA.shape, "float16", lambda matrix: np.copyto(matrix, MEDIA))
    return Tokens(*select_questions(shards, list(media or {}), vectors))


@pytest.fixture(scope="module")
def split(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return build_tokens(RECORDS, tmp_path_factory.mktemp("split"), {f"sha{number}": number for number in range(20)})


@pytest.fixture(scope="module")
def steps(split: Tokens) -> int:
    """Of an epoch."""
    return build_plan(split).total_steps(1)


def build_plan(split: Tokens, layout: Layout = "packed") -> UniformPlan:
    sizes = (3, GLOBAL_BATCH_SIZE, layout, 300, MICRO_BATCH_SIZE)
    facts = split.facts
    return UniformPlan(facts.index, facts.loss_weight, facts.is_dialogue, *sizes, n_asked=facts.n_asked)


def stream(
    split: Tokens, rank: int, world_size: int, first: int, end: int, form: BatchForm = PACKED
) -> list[MicroStep]:
    plan = ray.put(build_plan(split, form.layout))
    return list(stream_micro_steps(split.stored, plan, form, rank, world_size, first, end))


def read_rows(micro: MicroStep) -> Counter[tuple[int, str]]:
    """The (question, answer) rows of a micro step, found by walking its trees: an answer ends where a loss term does.

    In a tree, the path to a token runs through every earlier token whose subtree holds it.
    """
    batch, found = micro.batch, Counter[tuple[int, str]]()
    n_tokens = batch.input_ids.shape[1]
    terms = zip(batch.loss_position, batch.loss_target, batch.loss_weight, strict=True)
    for position, target in ((position, target) for position, target, weight in terms if weight):  # else padding
        row, column = divmod(int(position), n_tokens)
        before = np.arange(column + 1)
        path = before[batch.subtree_end[row, : column + 1] > column]
        ids = batch.input_ids[row, path].tolist()
        text = "".join("" if i in (1, MEDIA_SLOT_ID) else chr(i - 3) for i in ids) + chr(int(target) - 3)
        if not text.endswith("}\n###"):
            continue
        words, answer = text.split("\n### Assistant: ")
        tool_id = next(tool_id for tool_id in TOOLS if render_target(tool_id) == answer)
        found[int(words[words.index("[") + 1 : words.index("]")]), tool_id] += 1
    return found


@pytest.fixture(scope="module")
def two_ranks(split: Tokens, steps: int) -> list[list[MicroStep]]:
    """Both ranks' streams of two epochs."""
    return [stream(split, rank, 2, 0, 2 * steps) for rank in range(2)]


def test_the_split_knows_its_size(split: Tokens, steps: int) -> None:
    assert len(split.facts.index) == len(split.facts.modalities) == len(split.facts.sources) == N_QUESTIONS
    assert split.facts.modalities == [record.modality.value for record in RECORDS]
    assert split.facts.n_too_long == 0
    assert steps == round(sum(EXPECTED_ROWS.values()) / GLOBAL_BATCH_SIZE) > 5
    questions = [
        encode_question(CharacterTokenizer(), record.instruction, record.has_media, record.valid_tool_ids)
        for record in RECORDS
    ]
    index, expected = split.facts.index, PlanIndex.from_questions(questions)
    assert np.array_equal(index.n_rows, expected.n_rows)
    assert np.array_equal(index.n_tokens, expected.n_tokens)
    assert np.array_equal(index.row_tokens, expected.row_tokens)


def test_two_ranks_together_see_every_row_of_an_epoch_once(steps: int, two_ranks: list[list[MicroStep]]) -> None:
    for epoch in range(2):
        of_epoch = range(epoch * steps, (epoch + 1) * steps)
        micros = [micro for rank in two_ranks for micro in rank if micro.step in of_epoch]
        assert sum((read_rows(micro) for micro in micros), Counter()) == EXPECTED_ROWS
        assert sum(micro.batch.n_rows for micro in micros) == sum(EXPECTED_ROWS.values())
    by_step = rows_by_step([micro for rank in two_ranks for micro in rank])
    assert by_step[0] != by_step[steps], "each epoch has its own order"


def test_ranks_keep_step_and_end_each_step_together(two_ranks: list[list[MicroStep]]) -> None:
    first, second = ([(micro.step, micro.is_last) for micro in rank] for rank in two_ranks)
    assert first == second
    steps = [step for step, _ in first]
    assert steps == sorted(steps)
    last_of = {step: position for position, step in enumerate(steps)}
    assert [is_last for _, is_last in first] == [last_of[step] == n for n, step in enumerate(steps)]
    assert len(steps) > len(last_of), "some step has several micro steps"


def test_step_weight_is_the_answer_tokens_of_the_whole_step(two_ranks: list[list[MicroStep]]) -> None:
    """Divided by it, the summed losses of all ranks and micro steps are the step's mean per answer token."""
    weights: dict[int, float] = defaultdict(float)
    for micro in (micro for rank in two_ranks for micro in rank):
        weights[micro.step] += float(micro.batch.loss_weight.sum())
    assert all(micro.step_weight == weights[micro.step] for rank in two_ranks for micro in rank)
    answer_tokens = sum(len(render_target(tool_id)) * n for (_, tool_id), n in EXPECTED_ROWS.items())
    assert sum(weights.values()) == 2 * answer_tokens


def test_every_slot_gets_the_vector_of_its_question(two_ranks: list[list[MicroStep]]) -> None:
    n_slots = 0
    for micro in (micro for rank in two_ranks for micro in rank):
        batch = micro.batch
        assert micro.media.dtype == np.float32
        assert np.array_equal(np.flatnonzero(batch.input_ids.ravel() == MEDIA_SLOT_ID), batch.media_position)
        with_media = [int(q) for q in batch.question_index if RECORDS[q].has_media]
        assert batch.media_row.tolist() == [q % 20 for q in with_media]
        assert np.array_equal(micro.media, MEDIA[batch.media_row].astype(np.float32))
        n_slots += len(with_media)
    assert n_slots == 2 * sum(record.has_media for record in RECORDS)


@pytest.mark.parametrize("first_step", [1, 9])
def test_a_stream_that_starts_later_is_the_tail_of_the_whole(
    split: Tokens, steps: int, two_ranks: list[list[MicroStep]], first_step: int
) -> None:
    """Also where the start is in the middle of an epoch or in the second one."""
    end = 2 * steps
    expected = [micro for micro in two_ranks[1] if micro.step >= first_step]
    found = stream(split, 1, 2, first_step, end)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert (one.step, one.is_last, one.step_weight) == (other.step, other.is_last, other.step_weight)
        assert np.array_equal(one.media, other.media)
        for name in ("input_ids", "position_ids", "subtree_end", "loss_position", "loss_target", "loss_weight"):
            assert np.array_equal(getattr(one.batch, name), getattr(other.batch, name)), name


def rows_by_step(micros: list[MicroStep]) -> dict[int, Counter[tuple[int, str]]]:
    rows: dict[int, Counter[tuple[int, str]]] = defaultdict(Counter)
    for micro in micros:
        rows[micro.step] += read_rows(micro)
    return rows


def test_steps_hold_the_same_at_any_world_size_and_in_both_layouts(
    split: Tokens, steps: int, two_ranks: list[list[MicroStep]]
) -> None:
    expected = rows_by_step([micro for rank in two_ranks for micro in rank if micro.step < steps])
    alone = stream(split, 0, 1, 0, steps)
    assert rows_by_step(alone) == expected
    as_rows = [
        micro
        for rank in range(2)
        for micro in stream(split, rank, 2, 0, steps, BatchForm("rows", PAD_ID, pad_to_multiple=8))
    ]
    assert rows_by_step(as_rows) == expected
    for micro in as_rows:
        batch = micro.batch
        assert batch.layout == "rows"
        assert len(batch.lengths) == max(1, batch.n_rows) <= MICRO_BATCH_SIZE
        assert batch.input_ids.shape[1] % 8 == 0
        for row, length in enumerate(batch.lengths):
            assert (batch.input_ids[row, length:] == PAD_ID).all()
            assert (batch.position_ids[row, :length] == np.arange(length)).all()
    weights = {micro.step: micro.step_weight for micro in alone}
    assert weights == {micro.step: micro.step_weight for micro in as_rows}


def test_an_input_error_in_a_task_arrives_as_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_target_tokens leaves 10 tokens for a question"):
        build_tokens(RECORDS[:3], tmp_path, limits=(40, 30, 2048))


def test_nothing_to_do_and_nothing_to_train_on(split: Tokens, tmp_path: Path) -> None:
    assert stream(split, 0, 1, 4, 4) == []
    for records in ([], [record for record in RECORDS if record.has_media]):
        with pytest.raises(InputError, match="holds no usable question"):
            build_tokens(records, tmp_path)


def test_dialogues_come_with_their_loss_mask_and_too_long_ones_are_left_out(tmp_path: Path) -> None:
    def build(number: int, words: str) -> ToolRecord:
        turns = (Turn("assistant", "call:"), Turn("observation", " seen "), Turn("assistant", "done"))
        return ToolRecord(f"d{number}", "talk", Modality.TEXT, words, ("t5",), turns=turns)

    records = [RECORDS[0], build(1, "short"), build(2, "x" * 100), RECORDS[3]]
    split = build_tokens(records, tmp_path, limits=(512, 0, 60))
    assert split.facts.n_too_long == 1
    assert split.facts.sources == ["test", "talk", "test"]
    n_words = len("call:") + len("done") + 1  # the end token too, the observation not
    assert split.facts.loss_weight[1] == n_words
    (micro,) = stream(split, 0, 1, 0, 1)
    assert sorted(micro.batch.question_index.tolist()) == [0, 1, 2]
    assert micro.step_weight == micro.batch.loss_weight.sum() == split.facts.loss_weight.sum()
    targets = "".join(chr(i - 3) if i else "$" for i in micro.batch.loss_target.tolist())
    assert "call:done$" in targets
    assert "seen" not in targets


def test_losses_under_the_trie_are_means_over_answers_and_questions(split: Tokens, steps: int) -> None:
    """All are divided by the step's answer tokens in the end, at any world size."""
    trie = tuple(
        AnswerChoices(np.array([2]), np.array([number]), (np.arange(3, 3 + len(TOOLS), dtype=np.int32),))
        for number in range(len(TOOLS))
    )
    form = BatchForm("packed", PAD_ID, 8, 200, trie, token_weight=0.0, answer_weight=2.0, set_weight=0.5)
    weights: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for micro in (micro for rank in range(2) for micro in stream(split, rank, 2, 0, steps, form)):
        batch, choices = micro.batch, micro.batch.choices
        assert len(batch.loss_target) == 0
        assert len(choices.question) == batch.n_rows
        assert choices.children.shape == (len(choices.position), len(TOOLS) if batch.n_rows else 1)
        named = [TOOLS.index(tool_id) for q in batch.question_index for tool_id in RECORDS[q].valid_tool_ids]
        assert choices.taken[: batch.n_rows].tolist() == named
        weights[micro.step] += (choices.answer_weight.sum() / micro.step_weight, 0)
        weights[micro.step] += (0, choices.set_weight.sum() / micro.step_weight)
    assert len(weights) == steps
    for weight in weights.values():
        assert weight.tolist() == pytest.approx([2.0, 0.5])


def test_answers_end_with_their_last_decision_where_no_other_token_bears_loss(tmp_path: Path) -> None:
    ends = (3,) * len(TOOLS)
    records = [record for record in RECORDS[:9] if not record.has_media]
    cut = build_tokens(records, tmp_path, ends=ends)
    assert (cut.facts.loss_weight == 3 * cut.facts.index.n_rows).all()


def test_cards_of_right_tools_and_others_stand_beside_the_questions(split: Tokens, steps: int) -> None:
    cards = [np.array([1, 50 + number], dtype=np.int32) for number in range(len(TOOLS))]
    seen = np.array([0, 1, 2, 4])
    card_form = CardForm(seen, tuple(cards), tuple(cards), n_cards=4, seed=1)
    form = BatchForm("packed", PAD_ID, token_weight=0.0, cards=card_form, retrieval_weight=3.0)
    weights: dict[int, float] = defaultdict(float)
    for micro in (micro for rank in range(2) for micro in stream(split, rank, 2, 0, steps, form)):
        batch, terms = micro.batch, micro.retrieval
        ids = batch.input_ids.ravel()
        shown = [int(ids[position]) - 50 for position in terms.card]
        right = {tool_id for q in batch.question_index if q >= 0 for tool_id in RECORDS[q].valid_tool_ids}
        assert {TOOLS[tool] for tool in shown} >= right
        assert len(shown) == len(set(shown)) == max(4, len(right))
        if "t5" not in right:
            assert TOOLS.index("t5") not in shown, "held out of training, so no wrong answer either"
        for row, q in enumerate(q for q in batch.question_index if q >= 0):
            assert ids[terms.question[row]] == ord(" ") + 3, "the last token of '### Assistant: '"
            expected = [TOOLS[tool] in RECORDS[q].valid_tool_ids for tool in shown]
            assert terms.is_right[row].astype(bool).tolist() == expected
        weights[micro.step] += float(terms.weight.sum()) / micro.step_weight
    assert list(weights.values()) == pytest.approx([3.0] * steps)


def test_dialogues_ask_for_the_card_of_every_tool_that_they_call_in_front_of_the_call(tmp_path: Path) -> None:
    calls = [render_call(name, "image/a.png") for name in ("Blur It", "Not In The Catalogue", "Find It")]
    texts = [calls[0], " image/b.png\n", calls[1], " none\n", calls[2], " two\n", render_answer("Two.")]
    turns = [Turn("observation" if number % 2 else "assistant", text) for number, text in enumerate(texts)]
    talk = [Turn("assistant", render_answer("Hello."))]
    prompt = "Tools, words and many more words than one block of them, so that both are of one family. "
    records = [
        ToolRecord(f"d{n}", "talk", Modality.TEXT, prompt + end, ("t5",), turns=tuple(each))
        for n, (end, each) in enumerate([("a", turns), ("b", turns[4:]), ("c", talk)])
    ]
    numbers = {"Blur It": 5, "Find It": 6}
    split = build_tokens([RECORDS[0], *records], tmp_path, call_numbers=numbers)
    assert split.facts.n_asked.tolist() == [1, 2, 1, 0]
    cards = [np.array([1, 900 + number], dtype=np.int32) for number in range(7)]
    card_form = CardForm(np.arange(7), tuple(cards), tuple(cards), n_cards=3, seed=1)
    form = BatchForm("packed", PAD_ID, cards=card_form, retrieval_weight=2.0)
    asked, weight = [], 0.0
    for micro in stream(split, 0, 1, 0, 1, form):
        terms, ids, positions = micro.retrieval, micro.batch.input_ids.ravel(), micro.batch.position_ids.ravel()
        shown = [int(ids[position]) - 900 for position in terms.card]
        for place, is_right in zip(terms.question, terms.is_right, strict=True):
            right = sorted(shown[n] for n in np.flatnonzero(is_right))
            asked.append((chr(int(ids[place]) - 3), int(positions[place]), right))
        weight += float(terms.weight.sum()) / micro.step_weight
    length = 1 + len(prompt)  # bos
    behind = length + len("".join(texts[:4]))
    own = sorted(TOOLS.index(tool_id) for tool_id in RECORDS[0].valid_tool_ids)
    question = len(encode_question(CharacterTokenizer(), RECORDS[0].instruction, False, ()).prompt_ids) - 1
    expected = [("a", length, [5]), ("\n", behind, [6]), ("b", length, [6]), (" ", question, own)]
    assert sorted(asked) == sorted(expected)
    assert weight == pytest.approx(2.0)
