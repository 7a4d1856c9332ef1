"""Decoding: the search agrees with brute force, free decoding with `generate`, batches with single prompts."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
)

from data_pipeline.errors import InputError
from data_pipeline.records.prompts import render_target
from model.decode.free import generate_free
from model.decode.tools import (
    DecodeStats,
    Prompt,
    RankedTool,
    ToolSearch,
    calibrate,
    greedy_tools,
    p_unknown,
    score_all_tools,
    top_k_tools,
)
from model.decode.trie import ChoiceTrie
from model.llm.tool_llm import ToolLLM
from model.scoring.calibration import Calibration

sys.path.insert(0, str(Path(__file__).parents[1]))
from tokenizer_kinds import KINDS, train_llama_tokenizer
from toy_llm import EMBED_DIM, QUESTIONS, build_mllm, hub_like_names, make_prompts, train_tokenizer


def assert_same_ranking(ranking: list[RankedTool], probabilities: np.ndarray, tool_ids: Sequence[str]) -> None:
    order = np.argsort(-probabilities, kind="stable")[: len(ranking)]
    assert [tool.tool_id for tool in ranking] == [tool_ids[i] for i in order]
    np.testing.assert_allclose([tool.probability for tool in ranking], probabilities[order], rtol=1e-4)


@pytest.fixture(scope="module", params=KINDS)
def small(request: pytest.FixtureRequest) -> tuple[ToolLLM, ChoiceTrie, list[Prompt], np.ndarray]:
    names = hub_like_names(40)
    if request.param == "llama":
        tokenizer = train_llama_tokenizer([*map(render_target, names), *QUESTIONS], 330)
    else:
        tokenizer = train_tokenizer(names)
    mllm, trie = build_mllm(tokenizer), ChoiceTrie(names, tokenizer)
    prompts = make_prompts(tokenizer)
    return mllm, trie, prompts, score_all_tools(mllm, prompts, trie)


def test_brute_force_sums_to_one_and_depends_on_the_medium(small) -> None:
    mllm, trie, prompts, expected = small
    np.testing.assert_allclose(expected.sum(1), 1, atol=1e-6)
    other = Prompt(prompts[1].prompt_ids, -prompts[1].media)
    assert np.abs(score_all_tools(mllm, [other], trie)[0] - expected[1]).max() > 1e-3


@pytest.mark.parametrize("k", [1, 5, 10, 40, 1000])
@pytest.mark.parametrize("width", [1, 8])
def test_top_k_is_brute_force(small, k: int, width: int) -> None:
    mllm, trie, prompts, expected = small
    rankings = top_k_tools(mllm, prompts, k, trie, width=width)
    assert len(rankings) == len(prompts)
    for ranking, probabilities in zip(rankings, expected, strict=True):
        assert len(ranking) == min(k, 40)
        assert_same_ranking(ranking, probabilities, trie.choices)
    if k >= 40:
        np.testing.assert_allclose([sum(tool.probability for tool in ranking) for ranking in rankings], 1, atol=1e-6)


def check_large_catalogue(names: list[str]) -> None:
    tokenizer = train_tokenizer(names)
    mllm, trie = build_mllm(tokenizer), ChoiceTrie(names, tokenizer)
    prompts = make_prompts(tokenizer)[:2]
    expected = score_all_tools(mllm, prompts, trie)
    for k in (1, 5, 10, len(names)):
        stats = DecodeStats()
        rankings = top_k_tools(mllm, prompts, k, trie, stats=stats)
        for ranking, probabilities in zip(rankings, expected, strict=True):
            assert_same_ranking(ranking, probabilities, names)
        if k == 10:
            assert stats.forward_passes <= 12, stats
            assert stats.decisions < 0.4 * 2 * trie.n_decisions, stats


def test_top_k_is_brute_force_on_a_large_catalogue() -> None:
    check_large_catalogue(hub_like_names(933))


def test_top_k_is_brute_force_on_the_released_catalogue(shared_dir: Path) -> None:
    text = (shared_dir / "toolmmbench" / "api_names.txt").read_text(encoding="utf-8")
    check_large_catalogue(list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip())))


def test_prompts_run_once_and_little_else(small) -> None:
    mllm, trie, prompts, _ = small
    stats = DecodeStats()
    top_k_tools(mllm, prompts, 5, trie, stats=stats)
    assert stats.prompt_tokens == sum(len(prompt.prompt_ids) + trie.edge_length[0] for prompt in prompts)
    inner_tokens = int(trie.edge_length[1:][trie.child_count[1:] > 0].sum())
    assert stats.answer_tokens <= inner_tokens * len(prompts)  # leaves' tokens are forced and never run
    assert stats.decisions <= trie.n_decisions * len(prompts)


def test_also_reports_tools_outside_the_top_k(small) -> None:
    mllm, trie, prompts, expected = small
    unknown = trie.choices.index("unknown")
    plain = top_k_tools(mllm, prompts, 2, trie)
    for ranking, probabilities, without in zip(
        top_k_tools(mllm, prompts, 2, trie, also=["unknown"]), expected, plain, strict=True
    ):
        assert ranking[:2] == [RankedTool(t.tool_id, pytest.approx(t.probability, rel=1e-4)) for t in without]
        assert len(ranking) == (2 if "unknown" in [tool.tool_id for tool in without] else 3)
        assert p_unknown(ranking) == pytest.approx(probabilities[unknown], rel=1e-4)
    assert p_unknown([RankedTool("other", 1.0)]) is None


def test_greedy_follows_the_locally_likeliest_child(small) -> None:
    mllm, trie, prompts, expected = small
    answers = greedy_tools(mllm, prompts, trie)
    for answer, probabilities in zip(answers, expected, strict=True):
        mass = np.zeros(trie.n_nodes)  # probability of everything below a node: the ratio to its siblings decides
        for tool, probability in enumerate(probabilities):
            node = int(trie.choice_leaf[tool])
            while node >= 0:
                mass[node] += probability
                node = int(trie.parent[node])
        node = 0
        while trie.leaf_choice[node] < 0:
            node = max(trie.children(node), key=lambda child: mass[child])
        tool = int(trie.leaf_choice[node])
        assert answer.tool_id == trie.choices[tool]
        assert answer.probability == pytest.approx(probabilities[tool], rel=1e-4)


def test_batch_equals_single_prompts(small) -> None:
    mllm, trie, prompts, _ = small
    together = top_k_tools(mllm, prompts, 5, trie)
    for prompt, ranking, answer in zip(prompts, together, greedy_tools(mllm, prompts, trie), strict=True):
        (alone,) = top_k_tools(mllm, [prompt], 5, trie)
        assert [tool.tool_id for tool in alone] == [tool.tool_id for tool in ranking]
        np.testing.assert_allclose(
            [tool.probability for tool in alone], [tool.probability for tool in ranking], rtol=1e-4
        )
        assert greedy_tools(mllm, [prompt], trie)[0].tool_id == answer.tool_id


def test_calibrated_tools_keep_their_order_and_sum(small) -> None:
    mllm, trie, prompts, _ = small
    for ranking in top_k_tools(mllm, prompts, len(trie), trie):
        found = calibrate(ranking, Calibration(0.5, 1.0))
        assert [tool.tool_id for tool in found] == [tool.tool_id for tool in ranking]
        assert sum(tool.probability for tool in found) == pytest.approx(1, abs=1e-6)
        assert calibrate(ranking[:3], Calibration(0.5, 1.0)) == found[:3]


FULLY_TRAINED_HEAD = {"target_modules": "all-linear", "modules_to_save": ["lm_head", "embed_tokens"]}
ADAPTED_HEAD = {"target_modules": ["lm_head", "q_proj"]}


@pytest.mark.parametrize("adapter", [FULLY_TRAINED_HEAD, ADAPTED_HEAD])
def test_adapters_are_used_on_the_head_as_well(adapter: dict[str, Any]) -> None:
    names = hub_like_names(30)
    tokenizer = train_tokenizer(names)
    mllm, trie = build_mllm(tokenizer, adapter=adapter), ChoiceTrie(names, tokenizer)
    mllm.train()
    prompts = make_prompts(tokenizer)
    expected = score_all_tools(mllm, prompts, trie)
    for ranking, probabilities in zip(top_k_tools(mllm, prompts, 30, trie), expected, strict=True):
        assert_same_ranking(ranking, probabilities, names)
    assert mllm.training, "decoding must leave the mode as it was"
    with mllm.llm.disable_adapter():
        assert np.abs(score_all_tools(mllm, prompts, trie) - expected).max() > 1e-2


def test_learned_positions_and_biases(small) -> None:
    _, trie, prompts, _ = small
    mllm = build_mllm(small[0].tokenizer, opt=True)
    expected = score_all_tools(mllm, prompts, trie)
    for ranking, probabilities in zip(top_k_tools(mllm, prompts, 10, trie), expected, strict=True):
        assert_same_ranking(ranking, probabilities, trie.choices)


def test_backbone_without_tree_masks_is_refused(small) -> None:
    _, trie, prompts, _ = small
    mllm = build_mllm(small[0].tokenizer)
    config = BloomConfig(vocab_size=len(mllm.tokenizer), hidden_size=48, n_layer=1, n_head=2)
    mllm.llm = BloomForCausalLM(config)
    with pytest.raises(InputError, match="cannot decode"):
        top_k_tools(mllm, prompts[:1], 1, trie)


@pytest.mark.parametrize("parts", [(0, 1), (1, 0), (2, 1, 0)])
def test_prompts_that_come_one_after_the_other_are_ranked_as_together(
    small: tuple[ToolLLM, ChoiceTrie, list[Prompt], np.ndarray], parts: tuple[int, ...]
) -> None:
    """Longer ones behind shorter ones and the other way round, each part with another k."""
    mllm, trie, prompts, _ = small
    order = [prompts[i :: len(parts)] for i in parts]
    search, stats = ToolSearch(mllm, trie, also=("unknown",), stats=(found := DecodeStats())), DecodeStats()
    for k, part in enumerate(order, start=3):
        search.add(part, k)
    rankings = iter(search.run())
    for k, part in enumerate(order, start=3):
        for expected in top_k_tools(mllm, part, k, trie, also=("unknown",), stats=stats):
            ranking = next(rankings)
            assert [tool.tool_id for tool in ranking] == [tool.tool_id for tool in expected]
            np.testing.assert_allclose(
                [tool.probability for tool in ranking], [tool.probability for tool in expected], rtol=1e-4
            )
    assert found.prompt_tokens == stats.prompt_tokens
    assert found.decisions == stats.decisions
    assert found.forward_passes < stats.forward_passes


def test_prompts_that_cannot_be_added_leave_the_others(
    small: tuple[ToolLLM, ChoiceTrie, list[Prompt], np.ndarray],
) -> None:
    mllm, trie, prompts, _ = small
    search = ToolSearch(mllm, trie)
    search.add(prompts[:2], 3)
    with pytest.raises(InputError, match="shapes"):
        search.add([prompts[1], Prompt(prompts[2].prompt_ids, np.zeros(3))], 3)
    with pytest.raises(InputError, match="at least 1"):
        search.add(prompts[2:], 0)
    search.add([], 3)
    search.add(prompts[3:], 3)
    expected = top_k_tools(mllm, [*prompts[:2], prompts[3]], 3, trie)
    assert [[tool.tool_id for tool in ranking] for ranking in search.run()] == [
        [tool.tool_id for tool in ranking] for ranking in expected
    ]
    assert ToolSearch(mllm, trie).run() == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_close_to_float32(small, dtype: torch.dtype) -> None:
    mllm, trie, prompts, _ = small
    rounded = build_mllm(mllm.tokenizer, sharpness=2.0)
    expected = score_all_tools(rounded, prompts, trie)
    rounded.to(dtype)
    for ranking, probabilities in zip(top_k_tools(rounded, prompts, 40, trie), expected, strict=True):
        found = [next(t.probability for t in ranking if t.tool_id == name) for name in trie.choices]
        np.testing.assert_allclose(found, probabilities, atol=0.03)
    assert all(isinstance(text, str) for (text,) in generate_free(rounded, prompts, max_new_tokens=4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_agrees_with_cpu(small, dtype: torch.dtype) -> None:
    mllm, trie, prompts, _ = small
    mllm = build_mllm(mllm.tokenizer, sharpness=2.0)
    expected = score_all_tools(mllm, prompts, trie)
    mllm.to("cuda", dtype)
    for ranking, probabilities in zip(top_k_tools(mllm, prompts, 40, trie), expected, strict=True):
        found = [next(t.probability for t in ranking if t.tool_id == name) for name in trie.choices]
        np.testing.assert_allclose(found, probabilities, atol=1e-4 if dtype is torch.float32 else 0.03)
    assert len(generate_free(mllm, prompts, 4, n_samples=2, temperature=0.4)) == len(prompts)


def test_attention_backend_is_lent_and_given_back(small) -> None:
    _, trie, prompts, expected = small
    mllm = build_mllm(small[0].tokenizer)
    mllm.llm.get_base_model().set_attn_implementation("eager")
    assert_same_ranking(top_k_tools(mllm, prompts, 5, trie)[0], expected[0], trie.choices)
    assert mllm.llm.get_base_model().config._attn_implementation == "eager"


def test_trivial_batches_and_catalogues(small) -> None:
    mllm, trie, prompts, _ = small
    one = ChoiceTrie(["unknown"], mllm.tokenizer)
    assert top_k_tools(mllm, prompts[:2], 3, one, also=["unknown"]) == [[RankedTool("unknown", 1.0)]] * 2
    assert greedy_tools(mllm, prompts[:1], one) == [RankedTool("unknown", 1.0)]
    assert score_all_tools(mllm, prompts[:1], one).tolist() == [[1.0]]
    assert top_k_tools(mllm, [], 3, trie) == greedy_tools(mllm, [], trie) == generate_free(mllm, []) == []


@pytest.mark.parametrize("adapter", [{}, FULLY_TRAINED_HEAD])
def test_free_greedy_is_generate(adapter: dict[str, Any]) -> None:
    tokenizer = train_tokenizer(hub_like_names(40))
    mllm = build_mllm(tokenizer, adapter=adapter).eval()
    prompts = make_prompts(tokenizer)
    for prompt, (text,) in zip(prompts, generate_free(mllm, prompts, max_new_tokens=20), strict=True):
        media = None if prompt.media is None else torch.from_numpy(prompt.media)[None]
        embeds = mllm.embed_prompt(torch.from_numpy(prompt.prompt_ids)[None].long(), media)
        with torch.inference_mode():
            ids = mllm.llm.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
                max_new_tokens=20,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )[0]
        assert text == tokenizer.decode(ids, skip_special_tokens=True).split("###")[0]
        assert text


def force_next(mllm: ToolLLM, following: dict[int, int]) -> None:
    """Make the model a table: after token a comes `following[a]`, whatever stands before."""
    llm = mllm.llm.get_base_model()
    n_tokens, width = llm.lm_head.weight.shape
    generator = torch.Generator().manual_seed(0)
    codes = nn.functional.normalize(torch.randn(n_tokens, width, generator=generator), dim=1)
    with torch.no_grad():
        for layer in llm.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        llm.model.embed_tokens.weight.copy_(codes)
        llm.lm_head.weight.zero_()
        for before, after in following.items():
            llm.lm_head.weight[after] += codes[before] * 20


@pytest.mark.parametrize("stop", ["###", "</s>"])
def test_free_decoding_stops_at_the_end_marker(stop: str) -> None:
    tokenizer = train_tokenizer(["a"])
    mllm = build_mllm(tokenizer)
    prompt = Prompt(np.array(tokenizer("x", add_special_tokens=False).input_ids, dtype=np.int32))
    target = ["x", "{", "q", "}", "#", "!"] if stop == "###" else ["x", "{", "q", "}", "</s>", "!"]
    ids = tokenizer.convert_tokens_to_ids(target)
    following = dict(itertools.pairwise(ids))
    following[ids[4]] = ids[4] if stop == "###" else ids[5]  # "#" repeats itself: the marker comes in three tokens
    force_next(mllm, following)
    stats = DecodeStats()
    assert generate_free(mllm, [prompt, prompt], 30, stats=stats) == [["{q}"], ["{q}"]]
    n_tokens = 6 if stop == "###" else 4
    assert stats.decisions == 2 * n_tokens
    assert stats.forward_passes == n_tokens  # the prompt's pass gives the first token; the last token is not run


def test_free_sampling_is_seeded_and_independent_of_the_batch(small) -> None:
    mllm, _, prompts, _ = small
    mllm = build_mllm(mllm.tokenizer, sharpness=3.0)
    arguments = {"max_new_tokens": 8, "n_samples": 3, "temperature": 1.0}
    texts = generate_free(mllm, prompts, seed=5, **arguments)
    assert [len(samples) for samples in texts] == [3] * len(prompts)
    assert all(len(set(samples)) > 1 for samples in texts)
    assert generate_free(mllm, prompts, seed=5, **arguments) == texts
    assert generate_free(mllm, prompts, seed=6, **arguments) != texts
    for prompt, samples in zip(prompts[::-1], texts[::-1], strict=True):
        assert generate_free(mllm, [prompt], seed=5, **arguments) == [samples]


def test_free_sampling_follows_the_distribution_and_the_nucleus(small) -> None:
    mllm, _, prompts, _ = small
    mllm = build_mllm(mllm.tokenizer, sharpness=4.0).eval()
    prompt = prompts[0]
    with torch.inference_mode():
        logits = mllm.llm(
            inputs_embeds=mllm.embed_prompt(torch.from_numpy(prompt.prompt_ids)[None].long(), None)
        ).logits
    probabilities = (logits[0, -1].double() / 0.7).softmax(0)
    decoded = [mllm.tokenizer.decode([i], skip_special_tokens=True) for i in range(len(probabilities))]
    best = int(probabilities.argmax())
    expected = sum(p for p, text in zip(probabilities.tolist(), decoded, strict=True) if text == decoded[best])
    (texts,) = generate_free(mllm, [prompt], 1, n_samples=3000, temperature=0.7)
    assert abs(np.mean([text == decoded[best] for text in texts]) - expected) < 4 * (0.25 / 3000) ** 0.5
    nucleus = probabilities.sort(descending=True)
    kept = nucleus.indices[: int((nucleus.values.cumsum(0) < 0.5).sum()) + 1].tolist()
    (texts,) = generate_free(mllm, [prompt], 1, n_samples=500, temperature=0.7, top_p=0.5)
    assert set(texts) <= {decoded[i] for i in kept}
    assert len(kept) == 1 or len(set(texts)) > 1


def test_faults_are_named(small) -> None:
    mllm, trie, prompts, _ = small
    ids = prompts[0].prompt_ids
    with pytest.raises(InputError, match="0 media slots and a media vector"):
        Prompt(ids, np.zeros(EMBED_DIM))
    with pytest.raises(InputError, match="1 media slots and no media vector"):
        Prompt(prompts[1].prompt_ids)
    with pytest.raises(InputError, match="no tokens"):
        Prompt(ids[:0])
    with pytest.raises(InputError, match="k is 0"):
        top_k_tools(mllm, prompts, 0, trie)
    with pytest.raises(InputError, match="not among the 40 choices"):
        top_k_tools(mllm, prompts, 1, trie, also=["nobody/none"])
    with pytest.raises(InputError, match="set a temperature"):
        generate_free(mllm, prompts, n_samples=2)
    with pytest.raises(InputError, match="top_p above 0"):
        generate_free(mllm, prompts, temperature=0.4, top_p=0.0)
    with pytest.raises(InputError, match="shapes"):
        top_k_tools(mllm, [prompts[1], Prompt(prompts[2].prompt_ids, np.zeros(3))], 1, trie)
    broken = build_mllm(mllm.tokenizer)
    with torch.no_grad():
        broken.llm.get_base_model().lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        top_k_tools(broken, prompts, 1, trie)
