"""Task descriptions: the backbone's own words, whatever its adapter learnt, one line for each question."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from model.decode.task_description import MAX_DESCRIPTION_TOKENS, describe_tasks
from model.llm.tool_llm import ToolLLM
from model.tiny.backbone import build_tiny_backbone

sys.path.insert(0, str(Path(__file__).parents[1]))
from toy_batches import build_toy_mllm

QUESTIONS = ["make the dog sharp", "</s> which tool is it? " * 40, ""]
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }} tool: {% endfor %}"


@pytest.fixture(scope="module")
def mllm(tmp_path_factory: pytest.TempPathFactory) -> ToolLLM:
    texts = [*QUESTIONS, "A user asks an assistant which kind of tool is needed. Describe in one short sentence"]
    folder = build_tiny_backbone(tmp_path_factory.mktemp("backbone") / "tiny", texts * 3, vocab_size=340, n_layers=2)
    return build_toy_mllm(folder)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_questions_are_described_alike_alone_and_beside_others(mllm: ToolLLM, template: str | None) -> None:
    mllm.tokenizer.chat_template = template
    together = describe_tasks(mllm, QUESTIONS)
    assert together == [describe_tasks(mllm, [words])[0] for words in QUESTIONS]
    assert len(set(together)) > 1
    assert all("\n" not in text and len(text.split()) <= MAX_DESCRIPTION_TOKENS for text in together)


def test_what_the_adapter_learnt_does_not_speak(mllm: ToolLLM) -> None:
    before = describe_tasks(mllm, QUESTIONS)
    with torch.no_grad():
        for name, parameter in mllm.named_parameters():
            if "lora" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    assert describe_tasks(mllm, QUESTIONS) == before
