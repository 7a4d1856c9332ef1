"""The multimodal LLM: packed training equals row-by-row training, on one rank and on two; weights; errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from data_pipeline.batches.encoding import MEDIA_SLOT_ID, encode_dialogue, encode_question
from data_pipeline.batches.packing import build_micro_batch, collate, pack_questions, pack_row
from data_pipeline.batches.steps import PlanIndex
from data_pipeline.errors import InputError
from data_pipeline.records.schema import Turn
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM, compute_loss, to_tensors
from model.tiny.backbone import build_tiny_backbone

sys.path.insert(0, str(Path(__file__).parents[1]))  # the second processes import it by name as well
from tokenizer_kinds import put_llama_tokenizer
from toy_batches import (
    ENCODER_DIM,
    build_toy_backbone,
    build_toy_mllm,
    gradients,
    run_step,
    toy_media,
    toy_questions,
    toy_texts,
)

IGNORED = -100
CALL = "Thought: Yes\nAction: improve\nAction Input: image/a.png\nObservation:"
ANSWER = "Thought: No\nAI: this is the sound of my video."
DIALOGUES = (
    (Turn("assistant", CALL), Turn("observation", " image/b.png\n"), Turn("assistant", ANSWER)),
    (Turn("assistant", ANSWER),),
    (Turn("assistant", CALL), Turn("observation", " nothing\n"), Turn("assistant", CALL.replace("a", "b"))),
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy_backbone(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="module")
def mllm(backbone: Path) -> ToolLLM:
    return build_toy_mllm(backbone)


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-5) -> None:
    """Relative to each parameter's largest gradient, since single entries may cancel to rounding noise."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        assert (found[name] - gradient).abs().max().item() <= rtol * scale, name


@pytest.fixture(scope="module")
def llama_like(tmp_path_factory: pytest.TempPathFactory) -> ToolLLM:
    """With a tokenizer as Llama's, which has no pad token."""
    folder = build_toy_backbone(tmp_path_factory.mktemp("backbone") / "llama")
    return build_toy_mllm(put_llama_tokenizer(folder, toy_texts(), 400))


@pytest.mark.parametrize(("kind", "seed"), [("mllm", 0), ("mllm", 1), ("mllm", 2), ("llama_like", 0)])
def test_packed_equals_row_by_row(request: pytest.FixtureRequest, kind: str, seed: int) -> None:
    mllm: ToolLLM = request.getfixturevalue(kind)
    questions = toy_questions(mllm, 10, seed)
    media = toy_media(10, seed)
    rows = run_step(mllm, questions, media, "rows")
    row_gradients = gradients(mllm)
    packed = run_step(mllm, questions, media, "packed")
    packed_gradients = gradients(mllm)
    assert packed[0] == pytest.approx(rows[0], rel=1e-5)
    assert packed[1] == rows[1] == sum(len(answer) for question in questions for answer in question.answers)
    assert packed[2] == rows[2]
    assert len(row_gradients) == 2 * 2 * 4 + 2 + 2  # A and B of q, k, v, o in two layers; embedding, head; projector
    assert all(gradient.abs().max() > 0 for gradient in row_gradients.values())
    assert_same_gradients(packed_gradients, row_gradients)


def test_families_equal_row_by_row(mllm: ToolLLM) -> None:
    """Questions whose prompts begin alike read that once; loss and gradients are those of separate rows."""
    questions = []
    for family in range(2):
        head = "\n".join(f"> {word}: to {word}. Input: {family}" for word in ("resize", "crop", "blur", "turn"))
        for number in range(3):
            turns = [
                Turn("assistant", f"Action: {number}"),
                Turn("observation", " done\n"),
                Turn("assistant", "AI: ok"),
            ]
            questions.append(encode_dialogue(mllm.tokenizer, f"{head}\nNew input: {number} please", turns))
    index = PlanIndex.from_questions(questions)
    assert len(np.unique(index.family)) == 2
    assert index.count_tokens(np.arange(6)) < 0.6 * index.n_tokens.sum()
    media = np.zeros((6, ENCODER_DIM), dtype=np.float32)
    rows = run_step(mllm, questions, media, "rows")
    row_gradients = gradients(mllm)
    packed = run_step(mllm, questions, media, "packed", pack_tokens=4096)
    assert packed[0] == pytest.approx(rows[0], rel=1e-5)
    assert packed[1:] == rows[1:]
    assert_same_gradients(gradients(mllm), row_gradients)


def test_a_shared_prompt_would_be_wrong_without_the_mask(mllm: ToolLLM) -> None:
    """The equality above has teeth: with plain causal attention the loss of the same pack is another."""
    questions = toy_questions(mllm, 4, seed=0)
    micro = build_micro_batch(questions, np.arange(4), np.arange(4))
    batch = to_tensors(micro, toy_media(4, 0)[micro.media_row], "cpu")
    right = mllm(batch).loss_sum.item()
    n_tokens = batch["input_ids"].shape[1]
    causal = mllm(batch | {"subtree_end": torch.full((1, n_tokens), n_tokens)}).loss_sum.item()
    straight = mllm(batch | {"position_ids": torch.arange(n_tokens)[None]}).loss_sum.item()
    assert causal != pytest.approx(right, rel=1e-3)
    assert straight != pytest.approx(right, rel=1e-3)


def test_gradient_checkpointing_changes_nothing(mllm: ToolLLM, backbone: Path) -> None:
    questions, media = toy_questions(mllm, 6, seed=1), toy_media(6, 1)
    plain = run_step(mllm, questions, media, "packed")
    plain_gradients = gradients(mllm)
    checkpointed = build_toy_mllm(backbone, gradient_checkpointing=True)
    assert run_step(checkpointed, questions, media, "packed") == pytest.approx(plain, rel=1e-6)
    assert_same_gradients(gradients(checkpointed), plain_gradients)


@pytest.mark.slow
def test_two_ranks_equal_the_full_batch(mllm: ToolLLM, backbone: Path, tmp_path: Path) -> None:
    loss_sum, weight_sum, n_correct = run_step(mllm, toy_questions(mllm, 9, seed=5), toy_media(9, 5), "rows")
    expected = {name: gradient / weight_sum for name, gradient in gradients(mllm).items()}
    script = Path(__file__).parents[1] / "data_parallel_rank.py"
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), "2", str(tmp_path), str(backbone)],
            cwd=script.parents[2],
            env={**os.environ, "PYTHONPATH": str(script.parents[2])},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=500) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    for layout in ("packed", "rows"):
        found = load_file(tmp_path / f"{layout}.safetensors")
        totals = found.pop("totals").tolist()
        assert totals[0] == pytest.approx(loss_sum, rel=1e-5)
        assert totals[1:] == [weight_sum, n_correct]
        assert_same_gradients(found, expected)


def test_text_and_empty_batches_give_every_trained_parameter_a_gradient(mllm: ToolLLM) -> None:
    """Otherwise ranks would disagree on what to reduce and hang."""
    run_step(mllm, toy_questions(mllm, 3, seed=2, text_only=True), toy_media(3, 2), "packed")
    found = gradients(mllm)
    assert found["projector.weight"].abs().max() == 0
    assert found["projector.bias"].abs().max() == 0
    assert found["llm.base_model.model.lm_head.modules_to_save.default.weight"].abs().max() > 0

    output = mllm(to_tensors(collate([pack_questions([], [], [])]), None, "cpu"))
    output.loss_sum.backward()
    assert [value.item() for value in output] == [0] * 7
    assert all(gradient.abs().max() == 0 for gradient in gradients(mllm).values())


def test_loss_and_accuracy_equal_the_reference(shared_dir: Path) -> None:
    folder = shared_dir / "oracle/prompt"
    cases = json.loads((folder / "loss_cases.json").read_text())
    arrays = np.load(folder / "loss_cases.npz")
    assert len(cases) == 2
    for case in cases:
        logits = torch.from_numpy(arrays[f"case{case['case']}.logits"].astype(np.float32))  # [B, S, V]
        targets = torch.from_numpy(arrays[f"case{case['case']}.targets"])  # [B, S]
        rows, columns = (targets != -100).nonzero(as_tuple=True)
        assert columns.min() >= 2
        output = compute_loss(logits[rows, columns - 1], targets[rows, columns], torch.ones(len(rows)))
        assert output.weight_sum.item() == case["target_tokens"]
        assert (output.loss_sum / output.weight_sum).item() == pytest.approx(case["loss"], abs=1e-5)
        accuracy = output.n_correct.double() / output.weight_sum.double()
        assert accuracy.item() == pytest.approx(case["token_accuracy"], abs=1e-9)


def test_oracle_conversations_put_their_loss_where_the_reference_does(shared_dir: Path) -> None:
    """Our loss positions, on the oracle's logits, pick the same terms as the reference's targets."""
    folder = shared_dir / "oracle/prompt"
    arrays = np.load(folder / "loss_cases.npz")

    class CharacterTokenizer:
        bos_token_id = 1

        def __call__(self, texts: list[str], add_special_tokens: bool, split_special_tokens: bool) -> object:
            return {"input_ids": [[ord(character) + 3 for character in text] for text in texts]}

    for case in json.loads((folder / "loss_cases.json").read_text()):
        packs = [
            pack_row(encode_question(CharacterTokenizer(), human, case["modality"] != "text", [tool]), 0, row, row)
            for row, (human, tool) in enumerate(case["conversations"])
        ]
        micro = collate(packs, "rows", pad_id=2)
        batch = to_tensors(micro, np.zeros((len(micro.media_row), 1)), "cpu")
        logits = torch.from_numpy(arrays[f"case{case['case']}.logits"].astype(np.float32)).flatten(0, 1)
        assert list(batch["input_ids"].shape) == case["shape"][:2]
        output = compute_loss(logits[batch["loss_position"]], batch["loss_target"], batch["loss_weight"])
        assert (output.loss_sum / output.weight_sum).item() == pytest.approx(case["loss"], abs=1e-5)


def test_embed_prompt_puts_the_projected_medium_into_its_slot(mllm: ToolLLM) -> None:
    ids = torch.tensor([[5, MEDIA_SLOT_ID, 7], [5, 6, 7], [MEDIA_SLOT_ID, 6, 7]])
    media = torch.from_numpy(toy_media(3, 0))
    embeds = mllm.embed_prompt(ids, media)
    table = mllm.llm.get_base_model().get_input_embeddings()(torch.tensor([5, 6, 7]))
    projected = mllm.projector(media)
    expected = [[table[0], projected[0], table[2]], [table[0], table[1], table[2]], [projected[2], table[1], table[2]]]
    assert torch.equal(embeds, torch.stack([torch.stack(row) for row in expected]))
    assert torch.equal(mllm.embed_prompt(ids[1:2], None)[0], table)
    with pytest.raises(InputError, match="media slot but no media vector"):
        mllm.embed_prompt(ids, None)


@pytest.mark.parametrize("layout", ["packed", "rows"])
def test_loss_of_dialogues_is_that_of_labels_with_ignored_observations(layout: str, mllm: ToolLLM) -> None:
    """Dialogues and tool questions in one batch, against the masked cross entropy that Hugging Face computes."""
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


def labelled_loss(mllm: ToolLLM, ids: list[int], labels: list[int]) -> float:
    """Sum of the cross entropies as Hugging Face's own head computes them from labels."""
    with torch.no_grad():
        mean = mllm.llm(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
    return mean * sum(label != IGNORED for label in labels)


def test_trained_weights_go_out_and_in(mllm: ToolLLM, backbone: Path) -> None:
    state = mllm.trainable_state_dict()
    assert list(state) == mllm.trainable_names()
    assert sum("lora_" in name for name in state) == 16
    fresh = build_toy_mllm(backbone, seed=9)
    name = next(name for name in state if "lora_A" in name)
    assert not torch.equal(fresh.trainable_state_dict()[name], state[name])
    fresh.load_trainable_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in fresh.trainable_state_dict().items())
    with pytest.raises(InputError, match=r"missing \['projector.bias'\]"):
        fresh.load_trainable_state_dict({key: value for key, value in state.items() if key != "projector.bias"})
    with pytest.raises(InputError, match=r"projector\.bias has shape"):
        fresh.load_trainable_state_dict(state | {"projector.bias": torch.zeros(3)})
    assert not torch.equal(torch.zeros(3), fresh.projector.bias[:3])


def test_the_same_seed_builds_the_same_model_and_leaves_the_global_generator_alone(backbone: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = ToolLLM.build(ModelConfig(backbone=str(backbone), encoder_dim=4, seed=3)).trainable_state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second = ToolLLM.build(ModelConfig(backbone=str(backbone), encoder_dim=4, seed=3)).trainable_state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("tied", [True, False])
def test_opt_runs_packed_and_all_linear(backbone: Path, tmp_path: Path, tied: bool) -> None:
    """GPT4Tools' second backbone: learned positions, out_proj, a tied head."""
    config = OPTConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=16,
        max_position_embeddings=256, dropout=0.0, tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    OPTForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(backbone).save_pretrained(tmp_path)
    opt = build_toy_mllm(tmp_path, modules_to_save=[], lora_target="attention" if tied else "all-linear")
    names = opt.trainable_names()
    assert any("out_proj.lora_A" in name for name in names)
    assert any("fc1.lora_A" in name for name in names) != tied
    questions, media = toy_questions(opt, 6, seed=4), toy_media(6, 4)
    rows = run_step(opt, questions, media, "rows")
    expected = gradients(opt)
    assert run_step(opt, questions, media, "packed") == pytest.approx(rows, rel=1e-5)
    assert_same_gradients(gradients(opt), expected, rtol=2e-5)
    if tied:
        with pytest.raises(InputError, match="ties its embedding and its head"):
            build_toy_mllm(tmp_path, modules_to_save=["lm_head"])


def test_backbones_that_cannot_be_used_are_refused(backbone: Path, tmp_path: Path) -> None:
    for name in ("/nowhere/vicuna", "./no/such/folder", "tiny"):
        with pytest.raises(InputError, match=r"backbone (folder )?'"):
            ToolLLM.build(ModelConfig(backbone=name))
    with pytest.raises(InputError, match=r"has no config\.json"):
        ToolLLM.build(ModelConfig(backbone=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be loaded"):
        ToolLLM.build(ModelConfig(backbone=str(tmp_path)))
    with pytest.raises(InputError, match=r"modules_to_save names \['wte'\].*'embed_tokens', 'lm_head'"):
        build_toy_mllm(backbone, modules_to_save=["wte"])

    gpt2 = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2)).save_pretrained(gpt2)
    AutoTokenizer.from_pretrained(backbone).save_pretrained(gpt2)
    with pytest.raises(InputError, match=r"set model\.lora_target to all-linear"):
        build_toy_mllm(gpt2, modules_to_save=[])


def test_a_hub_id_is_not_sought_online_when_that_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot be loaded"):
        ToolLLM.build(ModelConfig(backbone="nobody/no-such-model"))


def test_a_backbone_without_positions_refuses_packs_only(mllm: ToolLLM, backbone: Path) -> None:
    other = build_toy_mllm(backbone)
    other._no_packs_because = "it takes no position_ids"
    questions, media = toy_questions(mllm, 3, seed=1), toy_media(3, 1)
    assert run_step(other, questions, media, "rows") == pytest.approx(run_step(mllm, questions, media, "rows"))
    mllm.zero_grad(set_to_none=True)
    with pytest.raises(
        InputError, match="cannot run packed sequences: it takes no position_ids; set the layout to rows"
    ):
        run_step(other, questions, media, "packed")


def test_a_missing_or_a_strange_media_vector_is_an_error(mllm: ToolLLM) -> None:
    question = encode_question(mllm.tokenizer, "what is this", True, ["t5"])
    batch = build_micro_batch([question], np.array([0]), np.array([0]))
    with pytest.raises(InputError, match="1 media slots but 0 media vectors"):
        to_tensors(batch, None, "cpu")
    with pytest.raises(InputError, match="1 media slots but 3 media vectors"):
        to_tensors(batch, toy_media(3, 0), "cpu")  # the corpus' matrix, not the batch's vectors


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(backbone: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(backbone, tmp_path / "grown")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    n_rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=f"has {n_rows + 1} tokens, but its embedding has {n_rows} rows"):
        ToolLLM.build(ModelConfig(backbone=str(folder), encoder_dim=ENCODER_DIM))
    llm = AutoModelForCausalLM.from_pretrained(folder)
    llm.resize_token_embeddings(n_rows + 1)
    llm.save_pretrained(folder)
    assert len(ToolLLM.build(ModelConfig(backbone=str(folder), encoder_dim=ENCODER_DIM)).tokenizer) == n_rows + 1


@pytest.mark.gpu
def test_flex_attention_equals_sdpa_on_cuda(backbone: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    results = []
    for attention in ("sdpa", "flex_attention"):
        mllm = build_toy_mllm(backbone, attention=attention).to("cuda")
        questions = toy_questions(mllm, 10, 0)
        batch = build_micro_batch(questions, np.arange(10), np.arange(10), pad_to_multiple=128)
        output = mllm(to_tensors(batch, toy_media(10, 0)[batch.media_row], "cuda"))
        output.loss_sum.backward()
        results.append((output.loss_sum.item(), gradients(mllm)))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-4)
    assert_same_gradients(results[1][1], results[0][1], rtol=1e-3)


def test_tiny_backbone_is_reproducible_and_rebuilt_only_when_needed(tmp_path: Path) -> None:
    first = build_toy_backbone(tmp_path / "a")
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert build_toy_backbone(tmp_path / "a") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    second = build_toy_backbone(tmp_path / "b")
    for name in ("model.safetensors", "tokenizer.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    sizes = {"vocab_size": 320, "hidden_size": 32, "n_layers": 1, "n_heads": 2, "intermediate_size": 48}
    build_tiny_backbone(tmp_path / "b", toy_texts(), seed=1, **sizes)
    assert (first / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name not in ("a", "b")]

    tokenizer = AutoTokenizer.from_pretrained(first)
    text = "  {'api_name': lab/dehaze}\n### 何か, ünusual\t"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    llm = AutoModelForCausalLM.from_pretrained(first)
    assert llm.config.architectures == ["LlamaForCausalLM"]
    assert llm.config.vocab_size == len(tokenizer) <= 320


def test_a_folder_that_is_no_tiny_backbone_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep")
    with pytest.raises(InputError, match="holds something else"):
        build_toy_backbone(tmp_path / "mine")
    assert (tmp_path / "mine" / "precious.txt").read_text() == "keep"
