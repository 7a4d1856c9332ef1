"""Token sequences and label masks against the reference's, with its stub tokenizer: one id per character."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_kinds import KINDS, train_tokenizer
from transformers import AddedToken, PreTrainedTokenizerFast

from data_pipeline.batches.encoding import (
    MEDIA_SLOT_ID,
    EncodedQuestion,
    encode_dialogue,
    encode_question,
    encode_text,
    encode_texts,
    longest_answer,
)
from data_pipeline.batches.packing import collate, pack_questions, pack_row
from data_pipeline.errors import InputError
from data_pipeline.records.prompts import render_target
from data_pipeline.records.schema import Turn

NO_LABEL = -100


class CharacterTokenizer:
    """The oracle's stub: bos 1, eos = pad = 2, character c -> ord(c) + 3."""

    bos_token_id: int | None = 1
    eos_token_id: int | None = 2

    def __call__(self, texts: list[str], add_special_tokens: bool, split_special_tokens: bool) -> Any:
        assert split_special_tokens
        assert not add_special_tokens
        return {"input_ids": [[ord(character) + 3 for character in text] for text in texts]}


def decode(ids: np.ndarray) -> str:
    names = {1: "<bos>", 2: "<eos>", MEDIA_SLOT_ID: "<media>"}
    return "".join(names.get(i) or chr(i - 3) for i in ids.tolist())


def oracle_batches(shared_dir: Path) -> list[dict[str, Any]]:
    return json.loads((shared_dir / "oracle/prompt/batches.json").read_text())["batches"]


def labels_of(question: EncodedQuestion, answer: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(sequence, target at each position or NO_LABEL) of one row."""
    batch = collate([pack_row(question, answer, 0, 0)], "rows")
    targets = np.full(batch.input_ids.shape, NO_LABEL)
    targets.reshape(-1)[batch.loss_position + 1] = batch.loss_target
    return batch.input_ids[0], targets[0]


def test_sequences_equal_the_reference_for_every_record(shared_dir: Path) -> None:
    records = json.loads((shared_dir / "oracle/prompt/prompts.json").read_text())
    assert len(records) == 24
    tokenizer = CharacterTokenizer()
    for record in records:
        question = encode_question(
            tokenizer, record["human"], record["modality"] != "text", [record["api_name"]], max_target_tokens=4096
        )
        sequence, targets = labels_of(question)
        pieces = {"bos": "<bos>", "media": "<media>"}
        expected = "".join(piece[1] if piece[0] == "text" else pieces[piece[0]] for piece in record["train"]["pieces"])
        assert decode(sequence) == expected
        assert decode(targets[targets != NO_LABEL]) == record["train"]["target"]
        n_masked = record["train"]["masked_characters_and_slots"]
        assert (targets[:n_masked] == NO_LABEL).all()
        assert (targets[n_masked:] == sequence[n_masked:]).all()


@pytest.mark.parametrize("number", [0, 2])
def test_batches_equal_the_reference(shared_dir: Path, number: int) -> None:
    case = oracle_batches(shared_dir)[number]
    assert case["name"].endswith("nothing cut")
    tokenizer = CharacterTokenizer()
    packs = []
    for row, (human, api_name) in enumerate(case["conversations"]):
        has_media = case["modality"] != "text"
        question = encode_question(tokenizer, human, has_media, [api_name], case["max_tgt_len"])
        packs.append(pack_row(question, 0, row, row))
    batch = collate(packs, "rows", pad_id=2)

    sequence = np.where(batch.input_ids == MEDIA_SLOT_ID, -7, batch.input_ids)
    targets = np.full(sequence.shape, NO_LABEL)
    targets.reshape(-1)[batch.loss_position + 1] = batch.loss_target
    attention = (np.arange(sequence.shape[1]) < batch.lengths[:, None]).astype(int)
    assert sequence.tolist() == case["sequence"]
    assert targets.tolist() == case["targets"]
    assert attention.tolist() == case["attention_mask"]
    assert batch.media_row.tolist() == ([0, 1, 2] if case["modality"] != "text" else [])


@pytest.mark.parametrize("number", [1, 3])
def test_over_long_questions_are_cut_and_targets_stay_whole(shared_dir: Path, number: int) -> None:
    """Where the reference cuts inside the targets, this project does not follow it."""
    case = oracle_batches(shared_dir)[number]
    has_media = case["modality"] != "text"
    n_cut = 0
    for (human, api_name), reference in zip(case["conversations"], case["targets"], strict=True):
        target = render_target(api_name)
        question = encode_question(CharacterTokenizer(), human, has_media, [api_name], case["max_tgt_len"])
        sequence, targets = labels_of(question)
        prefix = "<bos>### Human: <Img><media></Img> " if has_media else "<bos>### Human: "
        text = decode(sequence)
        assert decode(targets[targets != NO_LABEL]) == target
        assert text.startswith(prefix)
        assert text.endswith("\n### Assistant: " + target)
        kept = text.removeprefix(prefix).removesuffix("\n### Assistant: " + target)
        assert kept
        assert human.startswith(kept)
        counted = len(sequence) - (18 if has_media else 12)
        assert counted == min(case["max_tgt_len"], len("</Img> " * has_media + human + "\n### Assistant: " + target))
        n_cut += kept != human
        assert sum(label != NO_LABEL for label in reference) < len(target)
    assert n_cut >= 2


def test_label_mask_token_by_token() -> None:
    """No loss on bos, prompt, media slot or padding; loss on the whole answer, its end marker included."""
    tokenizer = CharacterTokenizer()
    short = encode_question(tokenizer, " Hi?\n", True, ["a/b"])
    long = encode_question(tokenizer, "Which one of them is it now", True, ["cc/dd-e"])
    batch = collate([pack_row(short, 0, 0, 0), pack_row(long, 0, 1, 1)], "rows", pad_id=2)
    labelled = np.zeros(batch.input_ids.shape, dtype=bool)
    labelled.reshape(-1)[batch.loss_position + 1] = True

    answer = "{'api_name': a/b}\n###"
    prompt = "<bos>### Human: <Img><media></Img>  Hi?\n\n### Assistant: "
    n_prompt = 1 + len("### Human: <Img>") + 1 + len("</Img>  Hi?\n\n### Assistant: ")
    n_padding = batch.input_ids.shape[1] - n_prompt - len(answer)
    assert n_padding > 0
    assert decode(batch.input_ids[0, :n_prompt]) == prompt
    assert labelled[0].tolist() == [False] * n_prompt + [True] * len(answer) + [False] * n_padding
    assert batch.input_ids[0, -n_padding:].tolist() == [2] * n_padding
    assert decode(batch.input_ids[0][labelled[0]]) == answer
    assert batch.loss_weight.tolist() == [1.0] * len(batch.loss_target)
    slots = np.flatnonzero(batch.input_ids == MEDIA_SLOT_ID)
    assert slots.tolist() == batch.media_position.tolist()
    assert not labelled.reshape(-1)[slots].any()


def test_a_tokenizer_without_bos_gives_sequences_without_it() -> None:
    tokenizer = CharacterTokenizer()
    tokenizer.bos_token_id = None
    question = encode_question(tokenizer, "x", False, [])
    assert decode(question.prompt_ids) == "### Human: x\n### Assistant: "
    assert question.answers == []


def test_training_and_serving_cut_alike_with_the_same_reserve() -> None:
    tokenizer = CharacterTokenizer()
    catalog = ["a/b", "much/longer-than-that"]
    reserve = longest_answer(tokenizer, catalog)
    assert reserve == len(render_target(catalog[1]))
    human = "word " * 60
    trained = encode_question(tokenizer, human, True, ["a/b"], 150, reserve)
    served = encode_question(tokenizer, human, True, [], 150, reserve)
    assert trained.prompt_ids.tolist() == served.prompt_ids.tolist()
    assert len(encode_question(tokenizer, human, True, [], 150).prompt_ids) > len(served.prompt_ids)


def test_no_room_for_the_question_is_an_error() -> None:
    with pytest.raises(InputError, match="raise max_target_tokens"):
        encode_question(CharacterTokenizer(), "a question", True, ["a/b"], max_target_tokens=44)


CALL = "Thought: Do I need to use a tool? Yes\nAction: Find It\nAction Input: image/a.png\nObservation:"
DIALOGUE = (
    Turn("assistant", CALL),
    Turn("observation", " image/b.png\n"),
    Turn("assistant", CALL.replace("a.png", "b.png")),
    Turn("observation", " Action: 7\n"),
    Turn("assistant", "Thought: Do I need to use a tool? No\nAI: Seven."),
)


def test_dialogues_bear_loss_on_the_assistants_words_token_by_token() -> None:
    """The call and its "Observation:" are to be written, what is observed is not; the end token is, the prompt not."""
    prompt = "Tools:\n> Find It: it finds.\nNew input: where?\n"
    question = encode_dialogue(CharacterTokenizer(), prompt, DIALOGUE)
    sequence, targets = labels_of(question)
    assert decode(sequence) == "<bos>" + prompt + "".join(turn.text for turn in DIALOGUE) + "<eos>"
    expected = [False] * (1 + len(prompt))
    for turn in DIALOGUE:
        expected += [turn.role == "assistant"] * len(turn.text)
    expected.append(True)
    assert (targets != NO_LABEL).tolist() == expected
    assert (targets[expected] == sequence[expected]).all()
    assert question.n_loss_tokens == [sum(expected)]

    pack = pack_questions([question], [0], [-1])
    assert pack.input_ids.tolist() == sequence[:-1].tolist()
    assert (pack.loss_position + 1).tolist() == np.flatnonzero(expected).tolist()
    assert pack.loss_weight.tolist() == [1.0] * sum(expected)


def test_dialogue_turns_are_tokenised_one_by_one() -> None:
    class WordTokenizer(CharacterTokenizer):
        """Joins ":" with a blank behind it, so that a turn's border shows."""

        def __call__(self, texts: list[str], **settings: bool) -> Any:
            return super().__call__([text.replace(": ", "\u00a6") for text in texts], **settings)

    question = encode_dialogue(WordTokenizer(), "x", DIALOGUE[:3])
    assert "Observation: image/b.png" in decode(question.answers[0])
    assert "Action Input\u00a6image/a.png" in decode(question.answers[0])


def test_a_dialogue_to_be_answered_is_its_prompt() -> None:
    question = encode_dialogue(CharacterTokenizer(), "x", ())
    assert (decode(question.prompt_ids), question.answers) == ("<bos>x", [])


@pytest.mark.parametrize("turns", [DIALOGUE[:2], DIALOGUE[1:2], (DIALOGUE[0],) * 3, (Turn("user", "x"),)])
def test_turns_that_do_not_alternate_are_refused(turns: tuple[Turn, ...]) -> None:
    with pytest.raises(InputError, match="do not go assistant, observation"):
        encode_dialogue(CharacterTokenizer(), "x", turns)


def test_a_dialogue_needs_an_end_token() -> None:
    tokenizer = CharacterTokenizer()
    tokenizer.eos_token_id = None
    with pytest.raises(InputError, match="no end token"):
        encode_dialogue(tokenizer, "x", DIALOGUE[:1])


SPELT = ("make a page titled </s> in html <pad>", "<s>old</s>", "</s>", " <unk><s> ", "no special token", "")


@pytest.fixture(scope="module", params=KINDS)
def real_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """One that has met its special tokens as text in training, and got words added to it."""
    tokenizer = train_tokenizer(request.param, [*SPELT, render_target("lab/edges")] * 20, 400)
    tokenizer.add_tokens([AddedToken("<media>", special=True), AddedToken("<word>", special=False)])
    return tokenizer


def test_text_that_spells_special_tokens_stays_text(real_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = real_tokenizer
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    texts = [*SPELT, "a <media> b", "a <word> b"]
    for text, ids in zip(texts, encode_texts(tokenizer, texts), strict=True):
        assert not special & set(ids.tolist()), text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert encode_text(tokenizer, text).tolist() == ids.tolist()
    assert tokenizer.convert_tokens_to_ids("<word>") in encode_text(tokenizer, "a <word> b"), "a word, not a control"

    question = encode_question(tokenizer, SPELT[0], True, ["a</s>b", "unknown"])
    assert special & set(question.prompt_ids.tolist()) == {tokenizer.bos_token_id}
    for tool_id, answer in zip(("a</s>b", "unknown"), question.answers, strict=True):
        assert tokenizer.decode(answer, skip_special_tokens=True) == render_target(tool_id)
    short = encode_question(tokenizer, SPELT[0] * 30, True, ["a</s>b"], 120, longest_answer(tokenizer, ["a</s>b"]))
    assert special & set(short.prompt_ids.tolist()) == {tokenizer.bos_token_id}


def test_a_dialogue_ends_once_whatever_is_said_in_it(real_tokenizer: PreTrainedTokenizerFast) -> None:
    turns = (
        Turn("assistant", CALL.replace("a.png", "<pad>.png")),
        Turn("observation", " <s>old</s>\n"),
        Turn("assistant", "Thought: Do I need to use a tool? No\nAI: It was <s>old</s>, now it is new."),
    )
    question = encode_dialogue(real_tokenizer, SPELT[0], turns)
    (answer,), eos = question.answers, real_tokenizer.eos_token_id
    assert (answer == eos).nonzero()[0].tolist() == [len(answer) - 1]
    assert set(real_tokenizer.all_special_ids) & set(question.prompt_ids.tolist()) == {real_tokenizer.bos_token_id}
