"""The retriever's loss, against each question and each card run alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_batches import TOOLS, build_toy_backbone, build_toy_mllm, gradients, toy_media, toy_questions

from data_pipeline.batches.cards import RetrievalTerms, as_question, encode_card
from data_pipeline.batches.packing import build_micro_batch
from data_pipeline.records.catalog import Tool
from model.llm.retrieval_loss import SCALE
from model.llm.tool_llm import ToolLLM, to_tensors

N_QUESTIONS = 5
CARDS = [Tool(tool_id, f"improve the {tool_id} of my video") for tool_id in TOOLS[:4]]
RIGHT = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0, 1], [0, 0, 1, 0]], dtype=np.uint8)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> ToolLLM:
    return build_toy_mllm(build_toy_backbone(tmp_path_factory.mktemp("retrieval") / "backbone")).double()


def vector_of(mllm: ToolLLM, prompt_ids: np.ndarray, media: np.ndarray | None) -> torch.Tensor:
    ids = torch.from_numpy(prompt_ids.astype(np.int64))[None]
    embeds = mllm.embed_prompt(ids, None if media is None else torch.from_numpy(media)[None])
    hidden = mllm.llm.get_base_model().base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[0, -1]
    return hidden / hidden.norm()


@pytest.mark.parametrize("sequence_tokens", [None, 48])
def test_loss_and_gradients_equal_single_runs(exact: ToolLLM, sequence_tokens: int | None) -> None:
    """Answers stand behind the questions in the pack and change nothing; so does how the pack is cut."""
    questions, media = toy_questions(exact, N_QUESTIONS, seed=2), toy_media(N_QUESTIONS, 2)
    cards = [encode_card(exact.tokenizer, tool.tool_id, tool.description) for tool in CARDS]
    rows = np.arange(N_QUESTIONS)
    batch = build_micro_batch(questions, rows, rows, 3, 8, sequence_tokens, [as_question(card) for card in cards])
    assert (len(batch.lengths) > 1) == (sequence_tokens is not None)
    is_card = batch.question_index < 0
    order = batch.question_index[~is_card]
    terms = RetrievalTerms(
        question=batch.prompt_end[~is_card],
        card=batch.prompt_end[is_card],
        is_right=RIGHT[order][:, -1 - batch.question_index[is_card]],
        weight=np.linspace(0.5, 2, N_QUESTIONS, dtype=np.float32)[order],
    )
    tensors = to_tensors(batch, media[batch.media_row], "cpu", terms)
    tensors["loss_weight"] = torch.zeros_like(tensors["loss_weight"])
    output = exact(tensors)
    output.loss_sum.backward()
    found = gradients(exact)

    card_vectors = torch.stack([vector_of(exact, card, None) for card in cards])
    expected, n_found = torch.zeros((), dtype=torch.float64), 0
    for number, (question, medium) in enumerate(zip(questions, media, strict=True)):
        vector = vector_of(exact, question.prompt_ids, medium if question.has_media else None)
        p = (SCALE * card_vectors @ vector).softmax(0)
        right = torch.from_numpy(RIGHT[number].astype(bool))
        expected = expected - np.linspace(0.5, 2, N_QUESTIONS)[number] * p[right].sum().log()
        n_found += int(right[p.argmax()])
    (
        expected + 0 * sum(p.sum() for p in exact.parameters() if p.requires_grad)
    ).backward()  # the head has no part in it
    assert output.loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (output.n_asked.item(), output.n_found.item()) == (N_QUESTIONS, n_found)
    for name, gradient in gradients(exact).items():
        difference = (found[name] - gradient).abs().max().item()
        assert difference <= 1e-4 * gradient.abs().max().item() + 1e-7, name


def test_cards_are_cut_at_their_description_and_may_do_without_a_name(exact: ToolLLM) -> None:
    tokenizer = exact.tokenizer
    name, description = CARDS[0].tool_id, CARDS[0].description
    assert tokenizer.decode(encode_card(tokenizer, name, description)[1:]).startswith(
        "### Tool: lab/blur-remover: improve"
    )
    nameless = tokenizer.decode(encode_card(tokenizer, name, description, has_name=False)[1:])
    assert nameless == "### Tool: improve the lab/blur-remover of my video\n### Assistant: "
    bare = encode_card(tokenizer, "sound/pitch", "", has_name=False)
    assert bare.tolist() == encode_card(tokenizer, "sound/pitch", "").tolist()
    long = encode_card(tokenizer, "lab/long", "video " * 500)
    assert len(long) == 96
    assert tokenizer.decode(long).endswith("\n### Assistant: ")
