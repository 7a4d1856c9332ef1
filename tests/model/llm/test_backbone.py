"""Every kind of adapter against its paper's formula: packed training, decoding, and what cannot be had is refused."""

from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from data_pipeline.batches.packing import build_micro_batch
from data_pipeline.errors import InputError
from model.decode.free import generate_free
from model.decode.tools import Prompt, score_all_tools, top_k_tools
from model.decode.trie import ChoiceTrie
from model.llm.backbone import load_backbone
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM, to_tensors

sys.path.insert(0, str(Path(__file__).parents[1]))
from toy_batches import TOOLS, build_toy_backbone, build_toy_mllm, gradients, run_step, toy_media, toy_questions

ADAPTERS = ("lora", "rslora", "dora")
RANK, ALPHA = 4, 8  # of the toy model


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy_backbone(tmp_path_factory.mktemp("backbone") / "tiny")


def build(backbone: Path, adapter: str, **changes: Any) -> ToolLLM:
    """A toy model whose DoRA sizes, too, have left their first values."""
    mllm = build_toy_mllm(backbone, **{"adapter": adapter, "modules_to_save": []} | changes)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in mllm.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    return mllm


def merged_weight(mllm: ToolLLM, layer: str, adapter: str) -> Tensor:
    """The adapted weight [out, in], by the formula of the adapter's paper."""
    values = {name.removeprefix(layer): value for name, value in mllm.state_dict().items() if name.startswith(layer)}
    scale = ALPHA / math.sqrt(RANK) if adapter == "rslora" else ALPHA / RANK
    weight = values[".base_layer.weight"] + scale * values[".lora_B.default.weight"] @ values[".lora_A.default.weight"]
    if adapter == "dora":  # size times direction, one size per output (Liu et al. 2024, equation 5)
        weight = values[".lora_magnitude_vector.default.weight"][:, None] * weight / weight.norm(dim=1, keepdim=True)
    return weight


@pytest.mark.parametrize("target", ["attention", "all-linear"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_adapter_is_its_formula_in_packs_and_in_decoding(backbone: Path, adapter: str, target: str) -> None:
    mllm = build(backbone, adapter, lora_target=target)
    layers = [name.removesuffix(".lora_A.default.weight") for name in mllm.trainable_names() if "lora_A" in name]
    assert len(layers) == 2 * (4 if target == "attention" else 7)
    assert ("lora_magnitude_vector" in " ".join(mllm.trainable_names())) == (adapter == "dora")
    plain = AutoModelForCausalLM.from_pretrained(backbone)
    base = {name.replace(".base_layer", ""): value for name, value in mllm.llm.get_base_model().state_dict().items()}
    base |= {
        f"{layer.removeprefix('llm.base_model.model.')}.weight": merged_weight(mllm, layer, adapter) for layer in layers
    }
    plain.load_state_dict({name: base[name] for name in plain.state_dict()})
    input_ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected, found = plain(input_ids).logits, mllm.llm(input_ids).logits
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()

    questions, media = toy_questions(mllm, 6, seed=3), toy_media(6, 3)
    rows = run_step(mllm, questions, media, "rows")
    row_gradients = gradients(mllm)
    assert run_step(mllm, questions, media, "packed") == pytest.approx(rows, rel=1e-5)
    for name, gradient in gradients(mllm).items():
        assert row_gradients[name].abs().max() > 0, name
        assert (gradient - row_gradients[name]).abs().max() <= 2e-5 * row_gradients[name].abs().max(), name

    trie = ChoiceTrie(TOOLS, mllm.tokenizer)
    prompts = [
        Prompt(question.prompt_ids, media[i] if (question.prompt_ids < 0).any() else None)
        for i, question in enumerate(questions)
    ]
    brute_force = score_all_tools(mllm, prompts, trie)
    for ranking, scores in zip(top_k_tools(mllm, prompts, len(TOOLS), trie), brute_force, strict=True):
        assert [tool.probability for tool in ranking] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)
    for prompt, (text,) in zip(prompts, generate_free(mllm, prompts, max_new_tokens=4), strict=True):
        medium = None if prompt.media is None else torch.from_numpy(prompt.media)[None]
        with torch.no_grad():
            embeds = mllm.embed_prompt(torch.from_numpy(prompt.prompt_ids.astype("int64"))[None], medium)
            expected = decode_greedily(plain, embeds, 4)
        assert text == mllm.tokenizer.decode(expected, skip_special_tokens=True).split("###")[0]


def decode_greedily(llm: Any, embeds: Tensor, n_tokens: int) -> list[int]:
    """Token ids behind the embeddings [1, T, D], without a cache."""
    produced = []
    for _ in range(n_tokens):
        produced.append(int(llm(inputs_embeds=embeds).logits[0, -1].argmax()))
        if produced[-1] == llm.config.eos_token_id:
            break
        embeds = torch.cat([embeds, llm.get_input_embeddings()(torch.tensor([produced[-1:]]))], dim=1)
    return produced


def test_a_bf16_backbone_takes_a_checkpointed_dora_step(backbone: Path) -> None:
    """The adapter stays in float32, so its gradients show whether packs and checkpointing survive bf16."""
    results = []
    for changes in ({"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "gradient_checkpointing": True}):
        mllm = build(backbone, "dora", **changes)
        questions, media = toy_questions(mllm, 6, seed=1), toy_media(6, 1)
        results.append((run_step(mllm, questions, media, "packed"), gradients(mllm)))
    (exact, _), (plain, plain_gradients), (checkpointed, checkpointed_gradients) = results
    assert plain == pytest.approx(exact, rel=0.05)
    assert plain[0] != exact[0]
    assert checkpointed == plain
    for name, gradient in checkpointed_gradients.items():
        assert torch.equal(gradient, plain_gradients[name]), name


@pytest.mark.skipif(
    torch.cuda.is_available() and find_spec("bitsandbytes") is not None, reason="nothing is missing here"
)
def test_four_bits_without_cuda_or_bitsandbytes_are_refused_in_one_sentence(backbone: Path) -> None:
    with pytest.raises(InputError, match=r"quantize=nf4 needs CUDA and bitsandbytes, but this machine has no .*; set"):
        load_backbone(ModelConfig(backbone=str(backbone), quantize="nf4"))


@pytest.mark.gpu
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_qlora_trains_packs_on_four_bit_weights(backbone: Path, adapter: str) -> None:
    if not torch.cuda.is_available() or find_spec("bitsandbytes") is None:
        pytest.skip("needs a CUDA device and bitsandbytes")
    losses = []
    for quantize in ("none", "nf4"):
        config = ModelConfig(
            backbone=str(backbone), encoder_dim=12, adapter=adapter, quantize=quantize, dtype="bfloat16",
            attention="sdpa", gradient_checkpointing=True, lora_dropout=0.0,
        )  # fmt: skip
        mllm = ToolLLM.build(config).to("cuda").train()
        questions = toy_questions(mllm, 8, 0)
        batch = build_micro_batch(questions, np.arange(8), np.arange(8))
        output = mllm(to_tensors(batch, toy_media(8, 0)[batch.media_row], "cuda"))
        output.loss_sum.backward()
        assert all(torch.isfinite(gradient).all() for gradient in gradients(mllm).values())
        packed = [parameter for name, parameter in mllm.named_parameters() if "base_layer.weight" in name]
        assert {parameter.dtype for parameter in packed} == {torch.uint8 if quantize == "nf4" else torch.bfloat16}
        losses.append(output.loss_sum.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
