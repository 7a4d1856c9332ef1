"""Turns that share passes are written as each alone, whenever they come and go, and one's fault is nobody else's."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.records.dialogue import Answer, parse_turn, render_observation
from data_pipeline.records.schema import Turn
from model.decode.kept_prefixes import KeptPrefixes
from model.decode.tree_cache import DecodeStats, causal_lm_of
from model.decode.turn import EncodedTurn
from model.decode.turn_types import RunningTurn, TurnLimits, TurnRequest, WrittenTurn
from model.decode.turn_writer import TurnBatch, TurnWriter
from model.llm.tool_llm import ToolLLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from toy_batches import build_toy_mllm
from toy_turns import NOW, REQUEST, TOOLS, build_turn_backbone, shaken

LIMIT = 64  # tokens of a pass
FREE = replace(REQUEST, is_constrained=False)
ASKED = (  # of different lengths, free to choose, forced to call, to answer, or to write whatever comes
    REQUEST,
    replace(REQUEST, prompt=REQUEST.prompt[:200], tools=TOOLS[4:5], may_answer=False),
    replace(FREE, prompt=REQUEST.prompt[300:]),
    replace(REQUEST, turns=NOW, may_call=False),
    replace(REQUEST, prompt=REQUEST.prompt[100:], tools=TOOLS[5:], turns=NOW * 2, may_answer=False),
    replace(FREE, prompt="What now?", max_answer_tokens=9),
)


@pytest.fixture(scope="module")
def mllm(tmp_path_factory: pytest.TempPathFactory) -> ToolLLM:
    return build_toy_mllm(build_turn_backbone(tmp_path_factory.mktemp("backbone") / "tiny", "byte-level"))


@pytest.fixture(scope="module")
def writer(mllm: ToolLLM) -> TurnWriter:
    return TurnWriter(mllm, TurnLimits(max_text_tokens=8, max_answer_tokens=24))


@contextmanager
def watching(mllm: ToolLLM) -> Iterator[list[torch.Tensor]]:
    """The token ids [b, Q] of every pass of the model within; a test may raise an error at one that it chooses."""
    passes: list[torch.Tensor] = []

    def look(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        passes.append(inputs["input_ids"])

    handle = causal_lm_of(mllm).base_model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


def ended(turn: RunningTurn) -> WrittenTurn:
    assert isinstance(turn.end, WrittenTurn), turn.end
    return turn.end


def finish(batch: TurnBatch) -> None:
    while len(batch):
        batch.step()


def write_alone(writer: TurnWriter, turns: Sequence[EncodedTurn]) -> list[WrittenTurn]:
    """Each in passes of its own, without what others have read."""
    return [writer.write([turn])[0] for turn in turns]


def check_same(found: WrittenTurn, expected: WrittenTurn) -> None:
    assert replace(found, choices=(), cached_tokens=0) == replace(expected, choices=())
    names = [name for name, _ in expected.choices]
    assert sorted(names) == sorted(name for name, _ in found.choices)
    p, q = dict(found.choices), dict(expected.choices)
    assert [math.exp(p[name]) for name in names] == pytest.approx([math.exp(q[name]) for name in names], abs=1e-5)


@pytest.mark.parametrize("limit", [LIMIT, 1 << 30])
def test_turns_that_come_and_go_are_written_as_each_alone(mllm: ToolLLM, writer: TurnWriter, limit: int) -> None:
    turns = [writer.encode(request) for request in ASKED]
    comes_at = (0, 0, 3, 4, 11, 17)
    for seed in range(2):
        shaken(mllm, seed)
        expected = write_alone(writer, turns)
        batch, running, left = TurnBatch(writer, limit), [], None
        seen: list[list[str]] = [[] for _ in turns]
        for n in range(400):
            running += [batch.begin(turn) for turn, start in zip(turns, comes_at, strict=True) if start == n]
            if n == 5:
                left = batch.begin(turns[3])
            if n == 8:
                assert left is not None
                batch.leave(left)
                assert left.end is None
            batch.step()
            for texts, turn in zip(seen, running, strict=False):
                texts.append(turn.text)
        assert len(batch) == 0
        for texts, turn, alone in zip(seen, running, expected, strict=True):
            check_same(ended(turn), alone)
            step = parse_turn(alone.text)
            whole = step.text if isinstance(step, Answer) else ""
            assert all(whole.startswith(text) for text in texts)
        assert len({len(alone.text) for alone in expected}) > 3, "they end at different passes"


def test_turns_share_their_passes(mllm: ToolLLM, writer: TurnWriter) -> None:
    """Counted by the model: about as many as the longest has, where one after the other they would be the sum."""
    shaken(mllm, 1)
    turns = [writer.encode(replace(FREE, prompt=FREE.prompt[i:], max_answer_tokens=24 - i)) for i in range(8)]
    n_alone = []
    for turn in turns:
        with watching(mllm) as passes:
            writer.write([turn])
        n_alone.append(len(passes))
    with watching(mllm) as passes:
        together = writer.write(turns)
    assert len(passes) == max(n_alone) >= 10
    with watching(mllm) as passes:
        batch = TurnBatch(writer, LIMIT)
        running = [batch.begin(turn) for turn in turns]
        finish(batch)
    assert [ended(turn).text for turn in running] == [turn.text for turn in together]
    n_of_prompts = sum(-(-len(turn.prompt_ids) // LIMIT) for turn in turns)
    # before the last prompt is read, those that were read sooner already write
    assert len(passes) <= n_of_prompts + max(n_alone) + len(turns) < n_of_prompts + sum(n_alone) / 2
    assert all(ids.numel() <= LIMIT for ids in passes)


def test_no_turn_waits_longer_than_the_others(mllm: ToolLLM, writer: TurnWriter) -> None:
    """A long prompt is read in blocks between which those that write go on."""
    shaken(mllm, 1)
    short = writer.encode(replace(FREE, prompt="What now?"))
    batch = TurnBatch(writer, LIMIT)
    batch.begin(short)
    batch.step()
    batch.begin(writer.encode(replace(REQUEST, turns=NOW)))
    with watching(mllm) as passes:
        for _ in range(6):
            batch.step()
    assert [ids.numel() for ids in passes] == [1, LIMIT] * 3
    batch.leave(RunningTurn())
    assert len(batch) == 2, "that one was not among them"


def test_a_fault_is_one_turns_only(mllm: ToolLLM, writer: TurnWriter) -> None:
    shaken(mllm, 2)
    good = [writer.encode(ASKED[0]), writer.encode(ASKED[3])]
    expected = write_alone(writer, good)
    cards = np.zeros((len(TOOLS), 3), dtype=np.float32)  # of another width than the model's
    bad = writer.encode(REQUEST, cards)
    strange = max(set(range(420)) - set(bad.prompt_ids.tolist()) - set(good[1].prompt_ids.tolist()))
    broken = EncodedTurn(FREE, np.append(good[0].prompt_ids, strange).astype(np.int32), None)

    def refuse(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        if inputs["input_ids"].shape[1] > 100 and (inputs["input_ids"] == strange).any():
            raise MemoryError("too large")

    handle = causal_lm_of(mllm).base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        batch = TurnBatch(writer)
        first, by_cards, in_pass, second = (batch.begin(turn) for turn in (good[0], bad, broken, good[1]))
        finish(batch)
    finally:
        handle.remove()
    assert isinstance(by_cards.end, ValueError)
    assert isinstance(in_pass.end, MemoryError)
    check_same(ended(first), expected[0])
    check_same(ended(second), expected[1])
    with pytest.raises(ValueError, match="size"):
        writer.write([good[0], bad])


def test_where_the_head_fails_all_end_and_others_may_come(
    mllm: ToolLLM, writer: TurnWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    shaken(mllm, 2)
    turn = writer.encode(ASKED[3])
    (expected,) = write_alone(writer, [turn])
    batch = TurnBatch(writer, LIMIT)
    running = [batch.begin(turn), batch.begin(turn)]
    with monkeypatch.context() as patch:
        patch.setattr(writer.next_token, "likeliest", lambda wishes: 1 // 0)
        finish(batch)
    assert all(isinstance(turn.end, ZeroDivisionError) for turn in running)
    again = batch.begin(turn)
    finish(batch)
    check_same(ended(again), expected)


def test_what_was_read_before_is_not_read_again(mllm: ToolLLM, writer: TurnWriter) -> None:
    """Dialogues that grow, beside others; what the model wrote itself is not read again either."""
    for seed in range(2):
        shaken(mllm, seed)
        kept, stats = KeptPrefixes(1 << 28), DecodeStats()
        requests: list[TurnRequest] = [replace(REQUEST, tools=TOOLS[:1], may_answer=False), ASKED[3]]
        n_before = [0, 0]
        for n in range(3):
            turns, before = [writer.encode(request) for request in requests], stats.prompt_tokens
            batch = TurnBatch(writer, LIMIT, kept, "m", stats)
            running = [batch.begin(turns[0])]
            for _ in range(n):
                batch.step()
            running.append(batch.begin(turns[1]))
            finish(batch)
            written = [ended(turn) for turn in running]
            for found, expected in zip(written, write_alone(writer, turns), strict=True):
                check_same(found, expected)
            n_cached = [turn.cached_tokens for turn in written]
            lengths = [len(turn.prompt_ids) for turn in turns]
            assert stats.prompt_tokens - before == sum(lengths) - sum(n_cached)
            assert n_cached == [0, 0] if n == 0 else np.all(np.array(n_cached) > n_before)
            n_before = lengths
            seen = Turn("observation", render_observation("image/ab.png"))
            requests = [
                replace(request, turns=(*request.turns, Turn("assistant", turn.text), seen))
                for request, turn in zip(requests, written, strict=True)
            ]
        assert len(kept) == 2
        other = TurnBatch(writer, LIMIT, kept, "another model")
        turn = other.begin(writer.encode(requests[0]))
        finish(other)
        assert ended(turn).cached_tokens == 0
