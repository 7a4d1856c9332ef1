"""The benchmarks' model: enough tools, and answers in the right form."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.batches.encoding import encode_question
from model.decode.tools import Prompt
from model.tiny.practised import N_TOOLS, build_practised_mllm, draw_questions, sample_with_generate


def test_it_has_as_many_tools_as_toolmmbench(tmp_path: Path) -> None:
    """How well it has practised, the decoding benchmark's test tells."""
    mllm, tools_of = build_practised_mllm(tmp_path / "backbone", 2)
    assert len({tool for tools in tools_of.values() for tool in tools}) == N_TOOLS
    (question,) = draw_questions(1, seed=0)
    prompt = Prompt(encode_question(mllm.tokenizer, question, False, ()).prompt_ids)
    first, second = sample_with_generate(mllm, prompt, 2)
    assert first != second, "drawn, not greedy"
