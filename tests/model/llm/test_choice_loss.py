"""The losses under the trie, against brute force: every answer a sequence of its own, the decisions found anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_batches import TOOLS, build_toy_backbone, build_toy_mllm, gradients, toy_media, toy_questions

from data_pipeline.batches.choices import NO_CHILD, ChoiceTerms
from data_pipeline.batches.encoding import EncodedQuestion
from data_pipeline.batches.packing import PackedBatch, build_micro_batch, collate, pack_questions
from model.decode.tools import score_all_tools
from model.decode.tree_cache import Prompt
from model.decode.trie import ChoiceTrie
from model.llm.tool_llm import ToolLLM, to_tensors

N_QUESTIONS = 7


@pytest.fixture(scope="module")
def mllm(tmp_path_factory: pytest.TempPathFactory) -> ToolLLM:
    return build_toy_mllm(build_toy_backbone(tmp_path_factory.mktemp("choices") / "backbone"))


@pytest.fixture(scope="module")
def trie(mllm: ToolLLM) -> ChoiceTrie:
    return ChoiceTrie(TOOLS, mllm.tokenizer)


def with_choices(trie: ChoiceTrie, questions: list[EncodedQuestion]) -> list[EncodedQuestion]:
    by_tokens = {
        tuple(tokens.tolist()): trie.choices_of(tool) for tool, tokens in zip(TOOLS, trie.sequences, strict=True)
    }
    return [
        replace(question, choices=[by_tokens[tuple(answer.tolist())] for answer in question.answers])
        for question in questions
    ]


def weigh(batch: PackedBatch, tokens: float, answers: float, answer_set: float) -> PackedBatch:
    choices = replace(
        batch.choices,
        answer_weight=batch.choices.answer_weight * answers,
        set_weight=batch.choices.set_weight * answer_set,
    )
    return replace(batch, loss_weight=batch.loss_weight * tokens, choices=choices)


def log_p_by_brute_force(mllm: ToolLLM, question: EncodedQuestion, media: np.ndarray, answer: np.ndarray) -> Tensor:
    """log p(answer) with gradient: one sequence, and what may follow each beginning looked up among all answers."""
    sequences = [tokens.tolist() for tokens in ChoiceTrie(TOOLS, mllm.tokenizer).sequences]
    ids = torch.from_numpy(np.concatenate([question.prompt_ids, answer]).astype(np.int64))[None]
    embeds = mllm.embed_prompt(ids, torch.from_numpy(media)[None])
    hidden = mllm.llm.get_base_model().base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[0]
    logits = mllm.llm.get_base_model().get_output_embeddings()(hidden)  # [T, V]
    total = logits.new_zeros(())
    for i, token in enumerate(answer.tolist()):
        allowed = sorted({s[i] for s in sequences if s[:i] == answer[:i].tolist()})
        if len(allowed) > 1:
            row = logits[len(question.prompt_ids) - 1 + i, allowed]
            total = total + row.log_softmax(0)[allowed.index(token)]
    return total


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> ToolLLM:
    """In float64: the toy's sharp attention makes much of a rounding error in float32."""
    return build_toy_mllm(build_toy_backbone(tmp_path_factory.mktemp("exact") / "backbone")).double()


@pytest.mark.parametrize("weights", [(0, 1, 0), (0, 0, 1), (0.5, 2, 0), (1, 0.5, 3)])
def test_loss_and_gradients_equal_brute_force(
    exact: ToolLLM, trie: ChoiceTrie, weights: tuple[float, float, float]
) -> None:
    questions = with_choices(trie, toy_questions(exact, N_QUESTIONS, seed=3))
    media = toy_media(N_QUESTIONS, 3)
    rows = np.arange(N_QUESTIONS)
    batch = build_micro_batch(questions, rows, rows, pad_id=3, pad_to_multiple=16)
    assert len({len(question.answers) for question in questions}) > 2
    assert len(batch.choices.position) % 16 == 0

    output = exact(to_tensors(weigh(batch, *weights), media[batch.media_row], "cpu"))
    output.loss_sum.backward()
    found = gradients(exact)

    tokens, answers, answer_set = weights
    expected = torch.zeros((), dtype=torch.float64)
    for question, medium in zip(questions, media, strict=True):
        log_p = torch.stack([log_p_by_brute_force(exact, question, medium, answer) for answer in question.answers])
        expected = expected - answers * log_p.sum() - answer_set * log_p.logsumexp(0)
    if tokens:
        plain = replace(batch, choices=ChoiceTerms.empty())
        expected = expected + tokens * exact(to_tensors(plain, media[batch.media_row], "cpu")).loss_sum
    expected.backward()
    assert output.loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in gradients(exact).items():
        difference = (found[name] - gradient).abs().max().item()
        assert difference <= 1e-5 * gradient.abs().max().item() + 1e-7, name


def test_what_is_learnt_is_what_is_decoded(mllm: ToolLLM, trie: ChoiceTrie) -> None:
    """The losses are those of the probabilities that the exhaustive decoder, which knows no trie, gives."""
    questions = with_choices(trie, toy_questions(mllm, N_QUESTIONS, seed=8))
    media = toy_media(N_QUESTIONS, 8)
    rows = np.arange(N_QUESTIONS)
    batch = build_micro_batch(questions, rows, rows, pad_id=3)
    prompts = [
        Prompt(q.prompt_ids, medium if q.has_media else None) for q, medium in zip(questions, media, strict=True)
    ]
    p = score_all_tools(mllm, prompts, trie)
    sequences = [tuple(tokens.tolist()) for tokens in trie.sequences]
    right = [[sequences.index(tuple(answer.tolist())) for answer in question.answers] for question in questions]
    mllm.train()
    with torch.no_grad():
        answers = mllm(to_tensors(weigh(batch, 0, 1, 0), media[batch.media_row], "cpu"))
        sets = mllm(to_tensors(weigh(batch, 0, 0, 1), media[batch.media_row], "cpu"))
    log_p = [np.log(row[tools]) for row, tools in zip(p, right, strict=True)]
    assert answers.loss_sum.item() == pytest.approx(-sum(float(values.sum()) for values in log_p), rel=1e-4)
    expected = -sum(float(np.log(row[tools].sum())) for row, tools in zip(p, right, strict=True))
    assert sets.loss_sum.item() == pytest.approx(expected, rel=1e-4)
    assert answers.n_choices.item() == sum(len(c.depth) for question in questions for c in question.choices or [])


def test_both_layouts_have_the_same_decisions(mllm: ToolLLM, trie: ChoiceTrie) -> None:
    questions = with_choices(trie, toy_questions(mllm, N_QUESTIONS, seed=4))
    media, rows = toy_media(N_QUESTIONS, 4), np.arange(N_QUESTIONS)
    pairs = np.array([(q, a) for q, question in enumerate(questions) for a in range(len(question.answers))])
    outputs = []
    for selection in (rows, pairs):
        batch = weigh(build_micro_batch(questions, selection, rows, pad_id=3), 0, 1, 0)
        with torch.no_grad():
            outputs.append(mllm(to_tensors(batch, media[batch.media_row], "cpu")))
    packed, as_rows = outputs
    assert packed.loss_sum.item() == pytest.approx(as_rows.loss_sum.item(), rel=1e-5)
    assert (packed.n_choices, packed.n_chosen) == (as_rows.n_choices, as_rows.n_chosen)


def test_questions_without_choices_and_with_a_single_tool_bear_none(mllm: ToolLLM) -> None:
    """A rank with no questions, dialogues, and a catalogue of one tool, which leaves nothing to decide."""
    plain = toy_questions(mllm, 2, seed=1, text_only=True)
    assert len(collate([pack_questions(plain, [0, 1], [-1, -1]), pack_questions([], [], [])]).choices.question) == 0
    alone = ChoiceTrie(TOOLS[:1], mllm.tokenizer)
    question = replace(plain[0], answers=[alone.sequences[0]], choices=[alone.choices_of(TOOLS[0])])
    batch = build_micro_batch([question], np.arange(1), np.array([-1]))
    output = mllm(to_tensors(weigh(batch, 0, 1, 1), None, "cpu"))
    assert [value.item() for value in (output.loss_sum, output.n_choices, output.n_chosen)] == [0, 0, 0]


def test_decisions_are_the_tries_branching_nodes(mllm: ToolLLM, trie: ChoiceTrie) -> None:
    for tool, sequence in zip(TOOLS, trie.sequences, strict=True):
        choices = trie.choices_of(tool)
        assert len(choices.depth) == len(trie.ancestors(tool)) > 0
        for depth, taken, children in zip(choices.depth, choices.taken, choices.children, strict=True):
            assert children[taken] == sequence[depth]
            beginnings = {
                tuple(other[: depth + 1].tolist())
                for other in trie.sequences
                if other[:depth].tolist() == sequence[:depth].tolist()
            }
            assert sorted(beginning[-1] for beginning in beginnings) == children.tolist()
            assert NO_CHILD not in children


def test_gradients_are_finite_in_bfloat16(mllm: ToolLLM, trie: ChoiceTrie, tmp_path: Path) -> None:
    low = build_toy_mllm(build_toy_backbone(tmp_path / "backbone"), dtype="bfloat16")
    questions = with_choices(trie, toy_questions(mllm, 4, seed=6))
    rows, media = np.arange(4), toy_media(4, 6)
    batch = build_micro_batch(questions, rows, rows)
    losses = []
    for model in (mllm, low):
        output = model(to_tensors(weigh(batch, 0, 1, 1), media[batch.media_row], "cpu"))
        output.loss_sum.backward()
        losses.append(output.loss_sum.item())
        assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
