"""What a tool for a question would do, in the words of the language model: the queries of retrieval by description.

RaTA-Tool (arXiv 2604.14951) lets a multimodal LLM write a description of the task and looks for the tool whose own
description is nearest. Here the backbone writes it as it was released, without the adapter and from the words alone:
the form of that retrieval as a baseline, without the paper's training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from data_pipeline.batches.encoding import encode_bos, encode_text
from model.decode.free import decode_text
from model.llm.tool_llm import ToolLLM

MAX_DESCRIPTION_TOKENS = 32
_MAX_QUESTION_TOKENS = 256

_MARK = "\x00"  # stands for the question while a prompt is put together
_ASK = (
    "A user asks an assistant that has many tools: "
    f'"{_MARK}" Which kind of tool is needed? Describe in one short sentence what the tool does. '
    "Do not answer the user."
)


def describe_tasks(mllm: ToolLLM, instructions: Sequence[str]) -> list[str]:
    """Write, greedily, a sentence for each question.

    Args:
        mllm: a model whose adapter is left out while it writes.
        instructions: the users' words.

    Returns:
        one line each, at most `MAX_DESCRIPTION_TOKENS` tokens; "" where the model ended at once.
    """
    tokenizer = mllm.tokenizer
    opening, closing = _render_ask(tokenizer).split(_MARK)
    before, after = (np.array(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (opening, closing))
    prompts = [
        np.concatenate([before, encode_text(tokenizer, words)[:_MAX_QUESTION_TOKENS], after]).astype(np.int64)
        for words in instructions
    ]
    n_tokens = max(map(len, prompts))
    ids = torch.zeros(len(prompts), n_tokens, dtype=torch.int64)  # [B, T], padded on the left
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, n_tokens - len(prompt) :] = torch.from_numpy(prompt)
        mask[row, n_tokens - len(prompt) :] = 1
    device = mllm.llm.device
    with torch.inference_mode(), mllm.llm.disable_adapter():
        written = mllm.llm.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=MAX_DESCRIPTION_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id or 0,
        )
    texts = [decode_text(tokenizer, row[n_tokens:].tolist()) for row in written]
    return [" ".join(text.strip().partition("\n")[0].split()) for text in texts]


def _render_ask(tokenizer: Any) -> str:
    """The prompt, in the backbone's own chat form where it has one."""
    if not getattr(tokenizer, "chat_template", None):
        bos = tokenizer.decode(encode_bos(tokenizer))
        return f"{bos}{_ASK}\nThe tool"
    messages = [{"role": "user", "content": _ASK}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
