"""The loss of dialogues and tool questions in one pack is the masked cross entropy that Hugging Face computes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.batches.encoding import encode_dialogue
from data_pipeline.batches.packing import build_micro_batch
from data_pipeline.records.schema import Turn
from model.llm.tool_llm import to_tensors

sys.path.insert(0, str(Path(__file__).parents[1]))
from toy_batches import build_toy_backbone, build_toy_mllm, toy_questions

IGNORED = -100
CALL = "Thought: Yes\nAction: improve\nAction Input: image/a.png\nObservation:"
ANSWER = "Thought: No\nAI: this is the sound of my video."
DIALOGUES = (
    (Turn("assistant", CALL), Turn("observation", " image/b.png\n"), Turn("assistant", ANSWER)),
    (Turn("assistant", ANSWER),),
    (Turn("assistant", CALL), Turn("observation", " nothing\n"), Turn("assistant", CALL.replace("a", "b"))),
)


@pytest.mark.parametrize("layout", ["packed", "rows"])
def test_loss_is_that_of_labels_with_ignored_observations(layout: str, tmp_path: Path) -> None:
    mllm = build_toy_mllm(build_toy_backbone(tmp_path / "tiny"))
    tokenizer = mllm.tokenizer
    prompts = [f"Tools:\n> improve: the picture\nNew input: {text}\n" for text in ("what is this", "now", "please")]
    questions = [encode_dialogue(tokenizer, prompt, turns) for prompt, turns in zip(prompts, DIALOGUES, strict=True)]
    questions += toy_questions(mllm, 2, seed=0, text_only=True)

    loss_sum = n_targets = 0.0
    for prompt, turns in zip(prompts, DIALOGUES, strict=True):
        ids, labels = [tokenizer.bos_token_id], [IGNORED]
        for text, is_target in [(prompt, False), *((turn.text, turn.role == "assistant") for turn in turns)]:
            piece = tokenizer(text, add_special_tokens=False).input_ids
            ids += piece
            labels += piece if is_target else [IGNORED] * len(piece)
        loss_sum += labelled_loss(mllm, [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id])
        n_targets += 1 + sum(label != IGNORED for label in labels)
    for question in questions[3:]:
        for answer in question.answers:
            ids = [*question.prompt_ids.tolist(), *answer.tolist()]
            loss_sum += labelled_loss(mllm, ids, [IGNORED] * len(question.prompt_ids) + answer.tolist())
            n_targets += len(answer)

    selection = np.arange(5)
    if layout == "rows":
        selection = np.array([(q, a) for q, question in enumerate(questions) for a in range(len(question.answers))])
    batch = build_micro_batch(questions, selection, np.full(5, -1), pad_id=tokenizer.pad_token_id)
    output = mllm(to_tensors(batch, None, "cpu"))
    assert output.weight_sum.item() == n_targets == sum(sum(question.n_loss_tokens) for question in questions)
    assert output.loss_sum.item() == pytest.approx(loss_sum, rel=1e-5)


def labelled_loss(mllm, ids: list[int], labels: list[int]) -> float:
    """Sum of the cross entropies as Hugging Face's own head computes them from labels."""
    with torch.no_grad():
        mean = mllm.llm(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
    return mean * sum(label != IGNORED for label in labels)
