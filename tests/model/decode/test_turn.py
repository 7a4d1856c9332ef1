"""Turns under constraints: they parse and name only what exists, whatever the weights; choices are exact."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AddedToken

from data_pipeline.batches.encoding import encode_dialogue
from data_pipeline.batches.packing import build_micro_batch
from data_pipeline.errors import InputError
from data_pipeline.records.dialogue import (
    Answer,
    ToolCall,
    parse_turn,
    render_answer,
    render_call,
    render_file_wish,
)
from data_pipeline.records.schema import Turn
from model.decode.dialogue import generate_dialogue
from model.decode.retrieval import compare_with_cards, encode_vectors
from model.decode.tools import score_all_tools
from model.decode.tree_cache import DecodeStats, Prompt
from model.decode.trie import ChoiceTrie
from model.decode.turn import MAX_ANSWER_WITHOUT_FILE, NO_ANSWER
from model.decode.turn_row import TokenKinds, goes_in_circles
from model.decode.turn_types import (
    ANSWER,
    MIN_LACKING_SHARE,
    PromptTooLongError,
    TurnLimits,
    TurnRequest,
    WrittenTurn,
)
from model.decode.turn_writer import TurnWriter
from model.llm.tool_llm import ToolLLM, to_tensors

sys.path.insert(0, str(Path(__file__).parents[1]))
from tokenizer_kinds import KINDS
from toy_batches import build_toy_mllm
from toy_turns import FILES, NOW, PROMPT, REQUEST, TOOLS, build_turn_backbone, shaken


@pytest.fixture(scope="module", params=KINDS)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_turn_backbone(tmp_path_factory.mktemp("backbone") / "tiny", request.param)


@pytest.fixture(scope="module")
def mllm(backbone: Path) -> ToolLLM:
    return build_toy_mllm(backbone)


def check(written: WrittenTurn, request: TurnRequest = REQUEST) -> ToolCall | Answer:
    """The promises that hold whatever the weights are."""
    step = parse_turn(written.text)
    assert step is not None, written.text
    assert written.completion_tokens > 0
    assert sum(np.exp(score) for _, score in written.choices) == pytest.approx(1)
    if isinstance(step, Answer):
        assert written.text == render_answer(step.text)
        return step
    assert written.text == render_call(step.name, step.arguments)
    tool = next(tool for tool in request.tools if tool.name == step.name)
    values = step.arguments.split(", ", len(tool.arguments) - 1) if tool.arguments else []
    assert len(values) == len(tool.arguments)
    for value, argument in zip(values, tool.arguments, strict=True):
        assert value.strip() == value != ""
        if argument.kind in ("image", "audio"):
            assert value in [name for name in request.files if name.startswith(argument.kind)]
        elif argument.kind == "choice":
            assert value in argument.choices
        elif argument.kind in ("integer", "number"):
            assert argument.minimum <= float(value) <= argument.maximum
            assert argument.kind == "number" or float(value) == int(value)
    return step


def test_no_result_of_a_tool_is_read_as_a_control_token(mllm: ToolLLM) -> None:
    tokenizer = mllm.tokenizer
    spelt = " ".join(tokenizer.all_special_tokens)
    turns = (Turn("assistant", render_call(TOOLS[0].name, spelt)), Turn("observation", f" {spelt}\n"))
    ids = TurnWriter(mllm).encode(replace(REQUEST, prompt=f"{PROMPT}{spelt}", turns=turns)).prompt_ids.tolist()
    assert [i for i in ids if i in tokenizer.all_special_ids] == [tokenizer.bos_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True).count(spelt) == 3, "it is read as the text that it is"


def test_every_turn_keeps_to_what_exists_whatever_the_weights(mllm: ToolLLM) -> None:
    """Each tool is forced in turn, for each of several random heads, together with a turn that is free to choose."""
    writer = TurnWriter(mllm, TurnLimits(max_text_tokens=12, max_answer_tokens=24))
    requests = [replace(REQUEST, tools=(tool,), may_answer=False) for tool in TOOLS]
    requests += [REQUEST, replace(REQUEST, turns=NOW), replace(REQUEST, may_call=False), replace(REQUEST, files=())]
    names = set()
    for seed in range(6):
        shaken(mllm, seed)
        written = writer.write([writer.encode(request) for request in requests])
        for tool, turn, request in zip(TOOLS, written, requests, strict=False):
            step = check(turn, request)
            assert isinstance(step, ToolCall)
            assert step.name == tool.name
        for turn, request in zip(written, requests, strict=True):
            step = check(turn, request)
            names.add(step.name if isinstance(step, ToolCall) else ANSWER)
        assert isinstance(parse_turn(written[-2].text), Answer)
        assert {name for name, _ in written[-1].choices} == {ANSWER, "Draw", "Tell Time"}, "the others need a file"
    assert len(names) > len(TOOLS), "answers occur too"


def test_choices_equal_brute_force(mllm: ToolLLM) -> None:
    shaken(mllm, 1)
    writer = TurnWriter(mllm)
    turn = writer.encode(replace(REQUEST, turns=NOW))
    stats = DecodeStats()
    (written,) = writer.write([turn], stats)
    heads = {ANSWER: render_answer("").rstrip()}
    heads |= {tool.name: render_call(tool.name, "").partition(" \nObservation:")[0] for tool in TOOLS}
    trie = ChoiceTrie(list(heads), mllm.tokenizer, render=lambda name: heads[name])
    expected = score_all_tools(mllm, [Prompt(turn.prompt_ids)], trie)[0]
    found = dict(written.choices)
    assert np.exp([found[name] for name in heads]) == pytest.approx(expected, rel=1e-3)
    assert [name for name, _ in written.choices] == sorted(heads, key=lambda name: -found[name])
    step = check(written)
    best = ANSWER if found[ANSWER] > np.log(0.5) else max(set(heads) - {ANSWER}, key=lambda name: found[name])
    assert (step.name if isinstance(step, ToolCall) else ANSWER) == best
    # a file is the likeliest of the known ones, too
    for seed in range(3):
        shaken(mllm, seed)
        turn = writer.encode(replace(REQUEST, tools=TOOLS[:1], may_answer=False))
        step = check(writer.write([turn])[0])
        calls = [render_call("Blur It", name) for name in FILES[:2]]
        trie = ChoiceTrie(calls, mllm.tokenizer, render=str)
        likeliest = score_all_tools(mllm, [Prompt(turn.prompt_ids)], trie)[0].argmax()
        assert isinstance(step, ToolCall)
        assert step.arguments == FILES[likeliest]


def test_neighbours_in_a_batch_change_nothing(mllm: ToolLLM) -> None:
    shaken(mllm, 3)
    writer = TurnWriter(mllm, TurnLimits(max_text_tokens=8, max_answer_tokens=16))
    turns = [writer.encode(replace(REQUEST, tools=TOOLS[i:], turns=NOW[: 2 * (i % 2)])) for i in range(5)]
    together = writer.write(turns)
    for turn, written in zip(turns, together, strict=True):
        (alone,) = writer.write([turn])
        assert alone.text == written.text
    assert writer.write([]) == []


def test_a_turn_reads_no_token_twice(mllm: ToolLLM) -> None:
    """Behind its prompt: what was weighed or written is the beginning of what is read next."""
    writer = TurnWriter(mllm, TurnLimits(max_text_tokens=6, max_answer_tokens=12))
    for seed in range(2):
        shaken(mllm, seed)
        stats = DecodeStats()
        turn = writer.encode(replace(REQUEST, tools=TOOLS[4:5], may_answer=False, files=FILES[:1]))
        (written,) = writer.write([turn], stats)
        check(written, turn.request)
        # nothing but the texts is open; their tokens as written, and the call's own, each once and a last one again
        assert stats.answer_tokens <= written.completion_tokens + 6 * 2 + 8


def test_limits_hold(mllm: ToolLLM) -> None:
    short = TurnWriter(mllm, TurnLimits(max_text_tokens=3, max_answer_tokens=5))
    tokenizer = mllm.tokenizer
    for seed in range(4):
        shaken(mllm, seed)
        draw, answer, shorter = short.write(
            [
                short.encode(replace(REQUEST, tools=TOOLS[3:4], may_answer=False)),
                short.encode(replace(REQUEST, may_call=False, files=())),
                short.encode(replace(REQUEST, may_call=False, files=(), max_answer_tokens=2)),
            ]
        )
        call, words = parse_turn(draw.text), parse_turn(answer.text)
        assert isinstance(call, ToolCall)
        assert isinstance(words, Answer)
        fewer = parse_turn(shorter.text)
        assert isinstance(fewer, Answer)
        # broken bytes are blanks, and where every byte is a token they take those beside them along
        assert words.text.startswith(fewer.text) or "  " in words.text or fewer.text == NO_ANSWER
        assert len(tokenizer(fewer.text).input_ids) <= 3 or fewer.text == NO_ANSWER
        assert len(tokenizer(call.arguments).input_ids) <= 4 or call.arguments == REQUEST.fallback_text
        assert len(tokenizer(words.text).input_ids) <= 6 or words.text == NO_ANSWER
    n_prompt = len(short.encode(REQUEST).prompt_ids)
    with pytest.raises(PromptTooLongError, match="shorten the dialogue"):
        short.encode(replace(REQUEST, prompt=PROMPT * (1 + 900 // n_prompt)))
    with pytest.raises(InputError, match="rename the file"):
        short.encode(replace(REQUEST, files=("image/a, b.png",)))
    with pytest.raises(InputError, match="at least 1 token"):
        TurnLimits(0)


def test_a_turn_that_just_fits_stays_within_the_positions(mllm: ToolLLM) -> None:
    writer = TurnWriter(mllm)
    filler = REQUEST
    while True:
        longer = replace(filler, prompt=filler.prompt + " dog")
        try:
            writer.encode(longer)
        except PromptTooLongError:
            break
        filler = longer
    for tool in TOOLS:
        turn = writer.encode(replace(filler, tools=(tool,), may_answer=False))
        (written,) = writer.write([turn])
        check(written, turn.request)
        assert len(turn.prompt_ids) + written.completion_tokens <= mllm.max_positions


def teach(mllm: ToolLLM, prompt: str, text: str) -> None:
    """Learn one answer by heart."""
    question = encode_dialogue(mllm.tokenizer, prompt, [Turn("assistant", text)])
    batch = to_tensors(build_micro_batch([question], np.arange(1), np.full(1, -1)), None, "cpu")
    optimizer = torch.optim.AdamW([p for p in mllm.parameters() if p.requires_grad], lr=5e-3)
    mllm.train()
    for _ in range(150):
        output = mllm(batch)
        (output.loss_sum / output.weight_sum).backward()
        optimizer.step()
        optimizer.zero_grad()
        if output.loss_sum < 0.02 * output.weight_sum:
            return
    raise AssertionError("the tiny model did not learn its answer")


def test_what_was_learnt_comes_out_and_made_up_names_do_not(backbone: Path) -> None:
    mllm = build_toy_mllm(backbone)
    learnt = render_answer("The dog is in image/ab.png, so it is.")
    teach(mllm, PROMPT, learnt)
    writer = TurnWriter(mllm)
    free = replace(REQUEST, is_constrained=False)
    mllm.eval()
    plain, constrained, lost, other = writer.write(
        [
            writer.encode(free),
            writer.encode(REQUEST),
            writer.encode(replace(REQUEST, files=())),
            writer.encode(replace(REQUEST, files=("image/z9.png",))),
        ]
    )
    assert plain.text == constrained.text == learnt
    assert plain.text == generate_dialogue(mllm, [writer.encode(free).prompt_ids], [()], 256)[0][0]
    assert constrained.completion_tokens == len(mllm.tokenizer(learnt).input_ids) + 1
    assert plain.choices == ()
    assert lost.text == render_answer("The dog is in"), "no file is known: the text ends before its name"
    assert other.text.startswith(render_answer("The dog is in image/z9.png"))
    assert "ab.png" not in other.text


def test_an_answer_that_goes_in_circles_ends(backbone: Path) -> None:
    mllm = build_toy_mllm(backbone)
    learnt = render_answer("It is a dog. " + "The dog is in the image. " * 8)
    teach(mllm, PROMPT, learnt)
    mllm.eval()
    writer = TurnWriter(mllm)
    (written,) = writer.write([writer.encode(replace(REQUEST, files=()))])
    assert len(written.text) < len(learnt) - 40
    assert learnt.startswith(written.text.rstrip("\n")), "as far as it goes it is what the model says"
    assert written.text.count("The dog is in the image.") >= 4
    (free,) = writer.write([writer.encode(replace(REQUEST, is_constrained=False))])
    assert free.text == learnt, "GPT4Tools' decoding knows no such end"


def test_what_goes_in_circles() -> None:
    assert goes_in_circles("So: " + "The tool says: " * 8)
    assert goes_in_circles("a" * 120)
    assert not goes_in_circles("The tool says: " * 7), "too short to tell"
    assert not goes_in_circles("The tool says: " * 8 + "yes"), "it goes on"
    assert not goes_in_circles("".join(f"Picture {number} shows a dog. " for number in range(20)))


@pytest.mark.parametrize("n_chars", [41, 60])
def test_a_long_piece_twice_is_no_circle(n_chars: int) -> None:
    assert not goes_in_circles("".join(chr(40 + number) for number in range(n_chars)) * 3)


def test_of_names_that_begin_alike_either_can_be_chosen(backbone: Path) -> None:
    mllm = build_toy_mllm(backbone)
    both = ("image/scan.tif", "image/scan.tiff")
    writer, chosen = TurnWriter(mllm), set()
    for seed in range(8):
        shaken(mllm, seed)
        for tool in (TOOLS[0], TOOLS[4]):  # a name at the end of a call, and one before a comma
            turn = writer.encode(replace(REQUEST, tools=(tool,), may_answer=False, files=both))
            step = check(writer.write([turn])[0], turn.request)
            assert isinstance(step, ToolCall)
            chosen.add((tool.name, step.arguments.split(",")[0]))
    assert len(chosen) == 4

    teach(mllm, PROMPT, render_answer("The dog is in image/scan.tif"))
    mllm.eval()
    known, other, strange, twice = writer.write(
        [
            writer.encode(replace(REQUEST, files=both[::-1])),
            writer.encode(replace(REQUEST, files=both[1:])),
            writer.encode(replace(REQUEST, files=("image/ab.tif", "image/ab.tiff"))),
            writer.encode(replace(REQUEST, files=("image/ab.tif",) * 2)),
        ]
    )
    assert known.text == render_answer("The dog is in image/scan.tif")
    assert other.text.startswith(render_answer("The dog is in image/scan.tiff")), "image/scan.tif does not exist"
    assert strange.text.startswith(render_answer("The dog is in image/ab.tif"))
    assert twice.text.startswith(render_answer("The dog is in image/ab.tif"))


def test_tokens_of_a_vocabulary_that_are_no_text_are_never_written(mllm: ToolLLM) -> None:
    """Also those that are special without being one of the named ones, such as Llama-3's reserved tokens."""
    tokenizer = copy.deepcopy(mllm.tokenizer)
    tokenizer.add_tokens([AddedToken("<|reserved|>", special=True), AddedToken("plainword", special=False)])
    reserved, plain = tokenizer.convert_tokens_to_ids(["<|reserved|>", "plainword"])
    assert reserved not in tokenizer.all_special_ids
    head = torch.nn.Linear(4, len(tokenizer))
    model = SimpleNamespace(get_output_embeddings=lambda: head)
    kinds = TokenKinds(tokenizer, model.get_output_embeddings().weight.shape[0])
    assert kinds.special[[reserved, plain, tokenizer.eos_token_id]].tolist() == [True, False, True]


def test_cards_weigh_the_tools_beside_what_the_model_would_write(mllm: ToolLLM) -> None:
    """The product of both; whether a tool is called at all, the cards do not say."""
    shaken(mllm, 3)
    writer = TurnWriter(mllm)
    by_words = dict(writer.write([writer.encode(REQUEST)])[0].choices)
    rng = np.random.default_rng(0)
    width = mllm.llm.config.hidden_size
    cards = rng.normal(size=(len(TOOLS), width)).astype(np.float32)
    cards /= np.linalg.norm(cards, axis=1, keepdims=True)
    offered = [number for number, tool in enumerate(TOOLS) if tool.name != "Pitch"]
    request = replace(REQUEST, files=FILES[:2])  # no sound, so nothing to track the pitch of
    written = writer.write([writer.encode(request, cards), writer.encode(request)])
    both, alone = (dict(turn.choices) for turn in written)
    prompt = encode_dialogue(mllm.tokenizer, PROMPT, ()).prompt_ids
    (by_card,) = compare_with_cards(encode_vectors(mllm, [Prompt(prompt)]), cards[offered])
    names = [TOOLS[number].name for number in offered]
    product = np.array([np.exp(alone[name]) * p for name, p in zip(names, by_card, strict=True)])
    product *= (1 - np.exp(alone[ANSWER])) / product.sum()
    assert [np.exp(both[name]) for name in names] == pytest.approx(product.tolist(), rel=1e-3)
    assert both[ANSWER] == pytest.approx(alone[ANSWER])
    assert set(by_words) == set(alone) | {"Pitch"}
    nearest = encode_vectors(mllm, [Prompt(prompt)])[0]  # one card is where the dialogue is: nothing else is called
    certain = np.where(np.arange(len(TOOLS))[:, None] == 3, nearest, -nearest).astype(np.float32)
    (chosen,) = writer.write([writer.encode(replace(request, may_answer=False), certain)])
    assert dict(chosen.choices)["Draw"] > dict(alone)["Draw"]
    assert check(chosen, request) == parse_turn(chosen.text)
    assert chosen.text.startswith("Thought: Do I need to use a tool? Yes\nAction: Draw\n")


def test_a_file_that_is_needed_and_not_there_is_asked_for(mllm: ToolLLM) -> None:
    """Where a call is likelier than an answer, and the nearest card is that of a tool which lacks its file."""
    writer = TurnWriter(mllm, TurnLimits(max_text_tokens=8, max_answer_tokens=8))
    prompt = encode_dialogue(mllm.tokenizer, PROMPT, ()).prompt_ids
    (here,) = encode_vectors(mllm, [Prompt(prompt)])

    def write(nearest: str, **more: Any) -> WrittenTurn:
        request = replace(REQUEST, **{"files": (), **more})
        cards = np.stack([here if tool.name == nearest else -here for tool in request.tools])
        (written,) = writer.write([writer.encode(request, cards)])
        return written

    found = set()
    need_files = tuple(tool for tool in TOOLS if tool.name in ("Blur It", "Pitch"))
    for seed in range(8):
        shaken(mllm, seed)
        for nearest, modality in (("Blur It", "image"), ("Pitch", "audio")):
            asks = render_answer(render_file_wish(modality))
            for tools in (TOOLS, need_files):
                written = write(nearest, tools=tools)
                found.add(is_asked := written.text == asks)
                assert is_asked == (np.exp(dict(written.choices)[ANSWER]) <= MAX_ANSWER_WITHOUT_FILE)
            assert write(nearest, tools=need_files, may_answer=False).text == asks
            calls = write(nearest, may_answer=False)
            assert isinstance(check(calls), ToolCall), "another tool can be called, and one must be"
            assert write(nearest, may_call=False).text != asks
            wish = write(nearest, tools=need_files, lacking_share=MIN_LACKING_SHARE)
            assert (wish.text == asks) == is_asked, "as if nobody had looked"
            instead = write(nearest, tools=need_files, lacking_share=MIN_LACKING_SHARE - 0.01)
            assert isinstance(check(instead), Answer), "other tools suit better, and none of these can be called"
            assert instead.text != asks
            assert write(nearest, files=("audio/c.wav", "image/a.png")).text != asks
        assert write("Draw").text not in {render_answer(render_file_wish(kind)) for kind in ("image", "audio")}
    assert found == {True, False}
