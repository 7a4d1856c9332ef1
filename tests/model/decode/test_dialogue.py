"""Dialogues turn by turn: what was learnt comes out exactly, and each turn reads what training would show it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_pipeline.batches.encoding import EncodedQuestion, encode_dialogue, encode_text
from data_pipeline.batches.packing import build_micro_batch
from data_pipeline.errors import InputError
from data_pipeline.records.dialogue import TURN_STOP, render_answer, render_call, render_observation
from data_pipeline.records.schema import Turn
from model.decode.dialogue import _advance, _Dialogue, generate_dialogue, write_dialogues
from model.decode.free import is_finished
from model.decode.tree_cache import CachedPath, DecodeStats
from model.decode.turn_types import TurnArgument, TurnLimits, TurnRequest, TurnTool
from model.decode.turn_writer import TurnWriter
from model.llm.tool_llm import ToolLLM, to_tensors
from model.tiny.backbone import build_tiny_backbone

sys.path.insert(0, str(Path(__file__).parents[1]))
from tokenizer_kinds import KINDS, put_llama_tokenizer
from toy_batches import build_toy_mllm

CHAIN = (
    Turn("assistant", render_call("Find It", "image/a.png, the dog")),
    Turn("observation", render_observation("image/b.png")),
    Turn("assistant", render_call("Blur It", "image/b.png")),
    Turn("observation", render_observation("image/c.png")),
    Turn("assistant", render_answer("The dog is blurred in image/c.png.")),
)
OTHER_CHAIN = (  # differs from the first by what is observed alone
    CHAIN[0],
    Turn("observation", render_observation("image/d.png")),
    Turn("assistant", render_call("Blur It", "image/d.png")),
    Turn("observation", render_observation("no image")),
    Turn("assistant", render_answer("The dog is lost.")),
)
NO_TOOL = (Turn("assistant", render_answer("A dog\nis an animal.")),)
SINGLE = (Turn("assistant", render_call("Blur It", "image/a.png")),)
MALFORMED = (Turn("assistant", "Thought: the dog"), *CHAIN[1:3])
TURNS = [CHAIN, OTHER_CHAIN, NO_TOOL, SINGLE, MALFORMED]
WORDS = ("blur the dog", "blur the dog", "what is a dog?", "blur it all", "the dog the dog")
PROMPTS = [f"Tools:\n> Find It: it finds\n> Blur It: it blurs\nNew input: {words}\n" for words in WORDS]


def assistant_texts(turns: tuple[Turn, ...]) -> list[str]:
    return [turn.text for turn in turns if turn.role == "assistant"]


@pytest.fixture(scope="module", params=KINDS)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ToolLLM, list[EncodedQuestion]]:
    """A tiny model that knows five dialogues by heart; of the malformed one only the first turn, and then the end."""
    texts = [text for prompt, turns in zip(PROMPTS, TURNS, strict=True) for text in (prompt, *assistant_texts(turns))]
    backbone = build_tiny_backbone(
        tmp_path_factory.mktemp("backbone") / "tiny",
        texts * 2,
        vocab_size=340,
        hidden_size=48,
        n_layers=2,
        n_heads=4,
        intermediate_size=64,
        max_positions=512,
    )
    if request.param == "llama":
        put_llama_tokenizer(backbone, texts, 400)
    mllm = build_toy_mllm(backbone)
    questions = [
        encode_dialogue(mllm.tokenizer, prompt, turns[:1] if turns is MALFORMED else turns)
        for prompt, turns in zip(PROMPTS, TURNS, strict=True)
    ]
    batch = to_tensors(build_micro_batch(questions, np.arange(5), np.full(5, -1)), None, "cpu")
    optimizer = torch.optim.AdamW([p for p in mllm.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(200):
        output = mllm(batch)
        (output.loss_sum / output.weight_sum).backward()
        optimizer.step()
        optimizer.zero_grad()
        if output.n_correct == output.weight_sum and output.loss_sum < 0.05 * output.weight_sum:
            break
    return mllm, questions


def test_what_was_learnt_comes_out_exactly(trained: tuple[ToolLLM, list[EncodedQuestion]]) -> None:
    mllm, questions = trained
    prompts = [question.prompt_ids for question in questions]
    stats = DecodeStats()
    found = generate_dialogue(mllm, prompts, TURNS, 120, stats=stats)
    assert found == [*(assistant_texts(turns) for turns in TURNS[:4]), ["Thought: the dog"]]
    assert mllm.training, "decoding must leave the mode as it was"
    assert stats.prompt_tokens == sum(len(prompt) for prompt in prompts)
    # each row steps on its own: no pass waits for another dialogue's turn, and observations come in with the turn
    lengths = [sum(len(encode_text(mllm.tokenizer, text)) for text in assistant_texts(turns)) for turns in TURNS[:2]]
    assert stats.forward_passes == max(lengths) + 1
    assert generate_dialogue(mllm, [], [], 8) == []


def test_turns_equal_those_of_generate_on_the_training_tokens(
    trained: tuple[ToolLLM, list[EncodedQuestion]],
) -> None:
    """Other observations than the learnt ones: the model is unsure, so a wrong token or position would show."""
    mllm, questions = trained
    tokenizer = mllm.tokenizer
    strange = tuple(
        Turn(turn.role, " 7 blurs of the dog\n" if turn.role == "observation" else turn.text) for turn in CHAIN
    )
    prompts = [questions[0].prompt_ids, questions[2].prompt_ids]
    found = generate_dialogue(mllm, prompts, [strange, NO_TOOL], 40)
    ids = prompts[0].tolist()
    mllm.eval()
    for number, text in enumerate(found[0]):
        with torch.inference_mode():
            written = mllm.llm.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=40,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )[0, len(ids) :]
        words, stop, _ = tokenizer.decode(written, skip_special_tokens=True).partition(TURN_STOP)
        assert text == words + stop
        if number < len(found[0]) - 1:
            ids = encode_dialogue(tokenizer, PROMPTS[0], strange[: 2 * number + 1])
            ids = [*ids.prompt_ids.tolist(), *ids.answers[0][:-1].tolist()]
            ids += encode_text(tokenizer, strange[2 * number + 1].text).tolist()
    mllm.train()
    assert len(found[0]) > 1


def test_a_turn_ends_at_its_limit(trained: tuple[ToolLLM, list[EncodedQuestion]]) -> None:
    mllm, questions = trained
    (texts,) = generate_dialogue(mllm, [questions[0].prompt_ids], [CHAIN], 4)
    assert texts == [mllm.tokenizer.decode(questions[0].answers[0][:4])]
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        generate_dialogue(mllm, [questions[0].prompt_ids], [CHAIN], 0)


@pytest.mark.parametrize("n_smiles", range(12))
def test_the_end_of_a_turn_is_seen_behind_any_characters(
    trained: tuple[ToolLLM, list[EncodedQuestion]], n_smiles: int
) -> None:
    tokenizer = trained[0].tokenizer
    ids = encode_text(tokenizer, render_call("Find It", "\U0001f642" * n_smiles)).tolist()
    ends = [is_finished(tokenizer, ids[: n + 1], TURN_STOP) for n in range(len(ids))]
    assert ends == [False] * (len(ids) - 1) + [True]


def test_a_turn_in_other_tokens_is_read_as_training_spells_it(
    trained: tuple[ToolLLM, list[EncodedQuestion]],
) -> None:
    tokenizer = trained[0].tokenizer
    call = render_call("Find It", "image/a.png")
    n_before = len(encode_text(tokenizer, "\n"))  # with what a tokenizer puts in front of a text
    spelt = [token for letter in call for token in encode_text(tokenizer, "\n" + letter).tolist()[n_before:]]
    expected = [*encode_text(tokenizer, call).tolist(), *encode_text(tokenizer, " x\n").tolist()]
    assert len(spelt) > len(encode_text(tokenizer, call))
    start, path = CachedPath(((0, 10),)), CachedPath(((0, 10), (20, 20 + len(spelt) - 1)))

    def read_next(max_positions: int) -> tuple[CachedPath, np.ndarray] | None:
        dialogue = _Dialogue([" x\n"], start, path, produced=spelt[:-1])
        fake = SimpleNamespace(tokenizer=tokenizer, max_positions=max_positions)
        block = _advance(fake, dialogue, spelt[-1], 400)
        assert dialogue.texts == [call]
        return block

    block = read_next(512)
    assert block is not None
    assert (block[0], block[1].tolist()) == (start, expected)
    assert read_next(10 + len(expected)) is not None
    assert read_next(10 + len(expected) - 1) is None, "no position is left for the observation"


def test_turns_under_constraints_read_the_records_observations(trained: tuple[ToolLLM, list[EncodedQuestion]]) -> None:
    """What was learnt comes out too, and a file that is observed may be called on."""
    mllm, _ = trained
    image = TurnArgument("image")
    tools = (TurnTool("Find It", (image, TurnArgument("text"))), TurnTool("Blur It", (image,)))
    requests = [TurnRequest(prompt, tools=tools, files=("image/a.png",)) for prompt in PROMPTS[:4]]
    writer = TurnWriter(mllm, TurnLimits(max_answer_tokens=60))
    # the second dialogue's last observation is no file, and the third's answer goes over two lines
    found = write_dialogues(writer, requests, TURNS[:4], [None] * 4)
    assert found == [assistant_texts(turns) for turns in TURNS[:4]]
    no_room = TurnRequest(PROMPTS[0] + "the dog " * 600, tools=tools)
    short = [None, None]
    assert write_dialogues(writer, [no_room, requests[2]], [CHAIN, NO_TOOL], short) == [[""], found[2]]
