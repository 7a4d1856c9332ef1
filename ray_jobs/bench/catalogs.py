"""Selection by the size of the catalogue: our search, greedy and exact, against transformers' `generate`.

`generate` is bound to the catalogue as its documentation says, by `prefix_allowed_tokens_fn`, or left free. The model
has practised the names of its size, at most 933 (`model.tiny.practised`), which are then among others like them: a
question has no more right tools in a larger catalogue. A real backbone is asked with the same names.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from data_pipeline.batches.encoding import encode_question
from model.decode.free import ANSWER_STOP
from model.decode.tools import DecodeStats, Prompt, greedy_tools, top_k_tools
from model.decode.trie import ChoiceTrie
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM
from model.tiny.practised import MAX_NEW_TOKENS, N_TOOLS, build_practised_mllm, build_tools, draw_questions

SIZES = (40, 933, 10_000)
K = 10
BATCH_SIZE = 16
ROUNDS = 3
TRAIN_STEPS = 200
GREEDY, EXACT = "greedy, batched", f"exact top {K}, batched"
FREE, BOUND, BOUND_BATCHED = "generate, one by one", "generate, bound, one by one", "generate, bound, batched"


def run(backbone: str | None = None, sizes: Sequence[int] = SIZES, n_questions: int = BATCH_SIZE) -> dict[int, Any]:
    """Measure, print a table, and return the numbers.

    Args:
        backbone: a real one, folder or id; None for the practised ones.
        sizes: names in the catalogues.
        n_questions: that are asked, all of them in one batch where it is batched.

    Returns:
        by size: queries_per_cpu_s by method, in the best of some rounds in which the methods take turns (other work on
        the machine takes nothing away from CPU seconds; on an idle one and one thread they are those of the clock);
        ratios, to the faster of the two ways of one by one; the part of the greedy answers that are `generate`'s.
    """
    print(f"{'names':>7}  {'method':<30}{'queries/CPU s':>14}{'passes':>8}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {size: _measure_size(size, backbone, n_questions) for size in sizes}
    finally:
        torch.set_num_threads(threads)


def allow_catalog(
    trie: ChoiceTrie, n_prompt_tokens: int, end_token: int
) -> Callable[[int, torch.Tensor], Sequence[int]]:
    """What `generate` takes as `prefix_allowed_tokens_fn`: the tokens that may follow; `end_token` behind an answer.

    Args:
        trie: of the catalogue.
        n_prompt_tokens: in front of what is generated, padding included.
        end_token: that ends generation.
    """
    following: dict[int, Any] = {}
    for sequence in trie.sequences:
        node = following
        for token in sequence.tolist():
            node = node.setdefault(token, {})

    def allow(_: int, ids: torch.Tensor) -> Sequence[int]:
        node = following
        for token in ids[n_prompt_tokens:].tolist():
            node = node.get(token, {})
        return list(node) or [end_token]

    return allow


def generate_bound(mllm: ToolLLM, prompts: Sequence[Prompt], trie: ChoiceTrie) -> list[str]:
    """The tools that transformers' greedy `generate` names under the catalogue, in one batch padded on the left."""
    ids, mask = _pad_left(prompts)  # [B, P]
    end = int(mllm.tokenizer.eos_token_id)
    longest = max(map(len, trie.sequences)) + 1
    with torch.inference_mode():
        texts = mllm.llm.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=longest,
            prefix_allowed_tokens_fn=allow_catalog(trie, ids.shape[1], end),
            eos_token_id=end,
            pad_token_id=end,
        )[:, ids.shape[1] :].tolist()
    choices = {tuple(sequence.tolist()): choice for choice, sequence in zip(trie.choices, trie.sequences, strict=True)}
    return [choices[tuple(text[: text.index(end)] if end in text else text)] for text in texts]


def _measure_size(size: int, backbone: str | None, n_questions: int) -> dict[str, Any]:
    """One size of `run`."""
    tools_of = build_tools(size)
    if backbone is None:
        with tempfile.TemporaryDirectory() as folder:
            mllm, _ = build_practised_mllm(Path(folder) / "backbone", TRAIN_STEPS, min(size, N_TOOLS))
    else:
        mllm = ToolLLM.build(ModelConfig(backbone=backbone, encoder_dim=64, lora_r=8)).eval()
    trie = ChoiceTrie([tool for tools in tools_of.values() for tool in tools], mllm.tokenizer)
    questions = draw_questions(n_questions, 1, list(tools_of))
    prompts = [Prompt(encode_question(mllm.tokenizer, question, False, ()).prompt_ids) for question in questions]
    return _measure(mllm, trie, prompts)


def _measure(mllm: ToolLLM, trie: ChoiceTrie, prompts: Sequence[Prompt]) -> dict[str, Any]:
    stats = {GREEDY: DecodeStats(), EXACT: DecodeStats()}
    methods: dict[str, Callable[[], Any]] = {
        GREEDY: lambda: [tool.tool_id for tool in greedy_tools(mllm, prompts, trie, stats=stats[GREEDY])],
        EXACT: lambda: top_k_tools(mllm, prompts, K, trie, stats=stats[EXACT]),
        FREE: lambda: [_generate_free(mllm, prompt) for prompt in prompts],
        BOUND: lambda: [generate_bound(mllm, [prompt], trie)[0] for prompt in prompts],
        BOUND_BATCHED: lambda: generate_bound(mllm, prompts, trie),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    answers = {}
    for _ in range(ROUNDS):
        for name, decode in methods.items():
            start = time.process_time()
            answers[name] = decode()
            seconds[name].append(time.process_time() - start)
    rates = {name: len(prompts) / min(times) for name, times in seconds.items()}
    for name, rate in rates.items():
        passes = f"{stats[name].forward_passes / ROUNDS:.0f}" if name in stats else "-"
        print(f"{len(trie):>7}  {name:<30}{rate:>14.2f}{passes:>8}")
    one_by_one = max(rates[FREE], rates[BOUND])
    greedy = zip(answers[GREEDY], answers[BOUND], answers[BOUND_BATCHED], strict=True)
    result = {
        "queries_per_cpu_s": rates,
        "greedy_over_one_by_one": rates[GREEDY] / one_by_one,
        "exact_over_one_by_one": rates[EXACT] / one_by_one,
        "greedy_over_batched": rates[GREEDY] / rates[BOUND_BATCHED],
        "equal_answers": sum(len(set(three)) == 1 for three in greedy) / len(prompts),
    }
    print(
        f"{len(trie):>7}  greedy {result['greedy_over_one_by_one']:.1f} x and exact "
        f"{result['exact_over_one_by_one']:.1f} x one generate() at a time, greedy "
        f"{result['greedy_over_batched']:.1f} x generate() in batches; {result['equal_answers']:.0%} of the greedy "
        "answers are theirs"
    )
    return result


def _generate_free(mllm: ToolLLM, prompt: Prompt) -> str:
    ids = torch.from_numpy(prompt.prompt_ids)[None].long()
    with torch.inference_mode():
        text = mllm.llm.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            stop_strings=ANSWER_STOP,
            tokenizer=mllm.tokenizer,
            pad_token_id=mllm.tokenizer.pad_token_id,
        )
    return mllm.tokenizer.decode(text[0, ids.shape[1] :])


def _pad_left(prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 ids and mask [B, P]."""
    width = max(len(prompt.prompt_ids) for prompt in prompts)
    ids, mask = torch.zeros(2, len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt.prompt_ids) :] = torch.from_numpy(prompt.prompt_ids)
        mask[row, width - len(prompt.prompt_ids) :] = 1
    return ids, mask
