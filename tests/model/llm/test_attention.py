"""Masks of packs and of the search in backbones that see far and near, and which backend computes them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Cohere2Config,
    FalconConfig,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
    Starcoder2Config,
)

from data_pipeline.errors import InputError
from model.decode.free import generate_free
from model.decode.tools import Prompt, ToolSearch, score_all_tools, top_k_tools
from model.decode.trie import ChoiceTrie
from model.llm.attention import AttentionWindow, build_mask, choose_backend
from model.llm.tool_llm import ToolLLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from toy_batches import TOOLS, build_toy_backbone, build_toy_mllm, gradients, run_step, toy_media, toy_questions

WINDOW = 8
SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 512, "sliding_window": WINDOW,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "tie_word_embeddings": False,
}  # fmt: skip
WINDOWED = {
    "mistral": lambda: MistralConfig(**SHAPE),
    "mixtral": lambda: MixtralConfig(**SHAPE, num_local_experts=2),
    "phi3": lambda: Phi3Config(**SHAPE),
    "starcoder2": lambda: Starcoder2Config(**SHAPE, residual_dropout=0.0, embedding_dropout=0.0),
    "gemma3": lambda: Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window_pattern=2),
    "qwen2": lambda: Qwen2Config(**SHAPE, use_sliding_window=True, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=8, use_sliding_window=True, max_window_layers=1),
}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy_backbone(tmp_path_factory.mktemp("backbone") / "tiny")


def build(config: PretrainedConfig, tokenizer_folder: Path, folder: Path) -> ToolLLM:
    config.vocab_size = LlamaConfig.from_pretrained(tokenizer_folder).vocab_size
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    return build_toy_mllm(folder, modules_to_save=[], lora_target="all-linear")


@pytest.mark.parametrize("family", WINDOWED)
def test_windows_are_kept_in_packs_and_in_the_search(family: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    mllm = build(WINDOWED[family](), tokenizer_folder, tmp_path)
    assert (mllm.window.size, mllm.window.is_known) == (WINDOW, True)
    questions, media = toy_questions(mllm, 6, seed=4), toy_media(6, 4)
    assert min(len(question.prompt_ids) for question in questions) > WINDOW
    rows = run_step(mllm, questions, media, "rows")
    row_gradients = gradients(mllm)
    assert run_step(mllm, questions, media, "packed") == pytest.approx(rows, rel=1e-5)
    for name, gradient in gradients(mllm).items():
        assert (gradient - row_gradients[name]).abs().max() <= 5e-5 * row_gradients[name].abs().max(), name

    trie = ChoiceTrie(TOOLS, mllm.tokenizer)
    prompts = [
        Prompt(question.prompt_ids, media[i] if question.has_media else None) for i, question in enumerate(questions)
    ]
    brute_force = score_all_tools(mllm, prompts, trie)
    search = ToolSearch(mllm, trie)  # rows that join later keep their windows, too
    search.add(prompts[:2], len(TOOLS))
    search.add(prompts[2:], len(TOOLS))
    for rankings in (top_k_tools(mllm, prompts, len(TOOLS), trie, width=1), search.run()):
        for ranking, scores in zip(rankings, brute_force, strict=True):
            assert {tool.tool_id: tool.probability for tool in ranking} == pytest.approx(
                dict(zip(TOOLS, scores, strict=True)), abs=1e-5
            )
    assert_free_decoding_is_that_of_the_model(mllm, next(prompt for prompt in prompts if prompt.media is None))


def assert_free_decoding_is_that_of_the_model(mllm: ToolLLM, prompt: Prompt) -> None:
    ids = prompt.prompt_ids.tolist()
    mllm.eval()
    for _ in range(12):
        with torch.inference_mode():
            logits = mllm.llm.get_base_model()(torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] == mllm.tokenizer.eos_token_id:
            break
    expected = mllm.tokenizer.decode(ids[len(prompt.prompt_ids) :], skip_special_tokens=True).split("###")[0]
    assert generate_free(mllm, [prompt], max_new_tokens=12) == [[expected]]


def test_a_window_that_no_mask_can_hold_is_a_limit(tokenizer_folder: Path, tmp_path: Path) -> None:
    config = Cohere2Config(**SHAPE, head_dim=8, logit_scale=1.0, sliding_window_pattern=2)
    mllm = build(config, tokenizer_folder, tmp_path)
    assert (mllm.window.size, mllm.window.is_known) == (WINDOW, False)
    questions, media = toy_questions(mllm, 3, seed=4, text_only=True), toy_media(3, 4)
    assert np.isfinite(run_step(mllm, questions, media, "rows")).all()
    with pytest.raises(InputError, match=r"is \d\d tokens long, but layers of backbone .* see 8 tokens"):
        run_step(mllm, questions, media, "packed")
    with pytest.raises(InputError, match="see 8 tokens"):
        top_k_tools(mllm, [Prompt(questions[0].prompt_ids)], 8, ChoiceTrie(TOOLS, mllm.tokenizer))
    mllm.window = AttentionWindow(512, is_known=False)  # one that nothing reaches is none
    rows = run_step(mllm, questions, media, "rows")
    assert np.isfinite(rows).all()
    assert np.isfinite(run_step(mllm, questions, media, "packed")).all()


@pytest.mark.parametrize(
    "config", [LlamaConfig(), Qwen2Config(), Phi3Config(), MistralConfig(sliding_window=None), OPTConfig()]
)
def test_backbones_without_a_window_have_none(config: PretrainedConfig) -> None:
    window = AttentionWindow.read(config)
    assert (window.size, window.masks(lambda size: size)) == (None, None)


@pytest.mark.parametrize("window", [None, 2])
def test_both_mask_backends_equal_the_rule(window: int | None) -> None:
    from torch.nn.attention.flex_attention import create_mask

    subtree_end = torch.tensor([[6, 4, 3, 4, 6, 6, 7], [7, 7, 7, 7, 7, 6, 7]])
    position_ids = torch.tensor([[0, 1, 2, 2, 1, 2, 0], [0, 1, 2, 3, 4, 5, 5]])
    index = torch.arange(7)
    expected = (index[None, :] <= index[:, None]) & (index[:, None] < subtree_end[:, None, :])
    if window:
        expected &= (position_ids[:, :, None] - position_ids[:, None, :]) < window
    dense = build_mask(subtree_end, position_ids, window, "sdpa", torch.float32)
    assert isinstance(dense, Tensor)
    assert dense.shape == (2, 1, 7, 7)
    assert torch.equal(dense[:, 0] == 0, expected)
    assert (dense[:, 0][~expected] == torch.finfo(torch.float32).min).all()
    block = build_mask(subtree_end, position_ids, window, "flex_attention", torch.float32)
    assert not isinstance(block, Tensor)
    assert torch.equal(create_mask(block.mask_mod, 2, 1, 7, 7, device="cpu")[:, 0], expected)


def test_flex_attention_is_taken_on_cuda_where_the_backbone_can() -> None:
    assert choose_backend("auto", LlamaConfig(), "cuda", "x") == "flex_attention"
    assert choose_backend("auto", LlamaConfig(), "cpu", "x") == "sdpa"
    assert choose_backend("sdpa", LlamaConfig(), "cuda", "x") == "sdpa"
    assert choose_backend("flex_attention", LlamaConfig(), "cpu", "x") == "flex_attention"
    for config in (FalconConfig(), StableLmConfig(), OPTConfig(attention_dropout=0.1)):
        assert choose_backend("auto", config, "cuda", "x") == "sdpa"
    with pytest.raises(InputError, match="'x' is of type falcon, which transformers has no flex_attention for; set"):
        choose_backend("flex_attention", FalconConfig(), "cuda", "x")
    with pytest.raises(InputError, match="'x' has attention dropout, which flex_attention cannot do; set"):
        choose_backend("flex_attention", OPTConfig(attention_dropout=0.1), "cuda", "x")
