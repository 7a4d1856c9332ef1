"""Batches of questions to several models, over the catalogue and callers' own tools: each is answered as if alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_bundle import CATALOG, ENCODER_DIM, build_backbone, build_bundle
from random_head import make_head
from whole_turn import write_together, write_whole

from data_pipeline.batches.cards import encode_card
from data_pipeline.batches.encoding import encode_question, encode_whole_prompt, longest_answer
from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.prompts import VALUE_END
from model.decode.retrieval import compare_with_cards, encode_vectors
from model.decode.tools import Prompt, score_all_tools, top_k_tools
from model.decode.trie import ChoiceTrie
from model.decode.turn_types import PromptTooLongError, TurnRequest, WrittenTurn
from model.decode.turn_writer import TurnBatch
from model.scoring.calibration import Calibration
from serve.engine.answering import Engine
from serve.engine.choices import Question
from serve.engine.messages import PartQuery, Ranking


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("engine")
    backbone = build_backbone(folder / "tiny", "### Human: <Img></Img> Improve this\n")
    bundles = {name: build_bundle(folder / name, backbone, seed) for seed, name in enumerate(("a", "b"))}
    return Engine(bundles, "cpu", None)


def _ask(
    engine: Engine, model: str, words: str, k: int, tools: tuple[Tool, ...] | None = None, sees: bool = False
) -> Question:
    vector = np.linspace(-1, 1, ENCODER_DIM, dtype=np.float32) if sees else None
    return Question(
        model, Prompt(encode_question(engine.tokenizer, words, sees, ()).prompt_ids, vector, words), k, tools
    )


def _tools(answer: Ranking | InputError) -> list[tuple[str, float]]:
    assert isinstance(answer, Ranking), answer
    return [(tool.tool_id, round(probability, 4)) for tool, probability in answer.tools]


def test_a_mixed_batch_is_answered_as_each_question_alone(engine: Engine) -> None:
    own = (Tool("sharpen"), Tool("blur-faces", "Makes faces unknowable."))
    questions = [
        _ask(engine, "a", "Improve this", 1),
        _ask(engine, "b", "Improve this", 4, sees=True),
        _ask(engine, "a", "Take the haze out of this picture", 3, sees=True),
        _ask(engine, "b", "Improve this", 1, own),
        _ask(engine, "a", "Improve this", 2, own),
        _ask(engine, "a", "Improve this, please", 4),
    ]
    alone = [engine.rank([question])[0] for question in questions]
    assert _tools(alone[0]) != _tools(alone[1])[:1], "the models differ"
    for n_read in (0, 1, 4, 6):
        engine.read(questions[:n_read])
        together = engine.rank(questions[n_read:])
        assert [_tools(answer) for answer in together] == [_tools(answer) for answer in alone]
        assert [answer for answer in together if isinstance(answer, InputError)] == []
    for question, answer in zip(questions, alone, strict=True):
        assert isinstance(answer, Ranking)
        assert answer.n_prompt_tokens == len(question.prompt.prompt_ids)
        names = [tool.tool_id for tool, _ in answer.tools]
        offered = {*(tool.tool_id for tool in question.tools or CATALOG), "unknown"}
        assert set(names) <= offered
        assert "unknown" in names, "told whatever k is"
        assert len(names) == question.k + ("unknown" not in names[: question.k])
    assert engine.rank([]) == []


def test_a_wide_head_counts_among_the_tools_that_it_knows(tmp_path: Path) -> None:
    backbone = build_backbone(tmp_path / "tiny", "### Human: <Img></Img> Improve this\n")
    bundles = {name: build_bundle(tmp_path / name, backbone, 0) for name in ("plain", "pooled")}
    head = vars(bundles["pooled"])["wide"] = make_head(CATALOG.selection_tool_ids, ENCODER_DIM)
    engine = Engine(bundles, "cpu", None)
    asked = [_ask(engine, "pooled", "Improve this", 4), _ask(engine, "pooled", "Improve the other", 4, sees=True)]
    trie = ChoiceTrie(CATALOG.selection_tool_ids, engine.tokenizer)
    expected = top_k_tools(bundles["pooled"].build_mllm(), [question.prompt for question in asked], 4, trie, wide=head)
    for answer, ranking in zip(engine.rank(asked), expected, strict=True):
        assert _tools(answer) == [(tool.tool_id, round(tool.probability, 4)) for tool in ranking]
    plain = engine.rank([question._replace(model="plain") for question in asked])
    assert [_tools(answer) for answer in plain] != [_tools(answer) for answer in engine.rank(asked)]
    own = (Tool("sharpen"), Tool("blur-faces"))
    by_model = [_tools(engine.rank([_ask(engine, name, "Improve this", 2, own)])[0]) for name in bundles]
    assert by_model[0] == by_model[1], "of a caller's own tools it knows nothing"


def test_a_fault_belongs_to_its_question(engine: Engine) -> None:
    good = _ask(engine, "a", "Improve this", 2)
    bad = _ask(engine, "a", "Improve this", 0, (Tool("sharpen"),))
    misfit = good._replace(prompt=Prompt(_ask(engine, "a", "x", 1, sees=True).prompt.prompt_ids, np.zeros(3)))
    expected = _tools(engine.rank([good])[0])
    engine.read([good, bad])
    first, fault, second = engine.rank([good])
    assert (_tools(first), _tools(second)) == (expected, expected)
    assert isinstance(fault, InputError)
    with pytest.raises(RuntimeError):  # a width that no encoder of these models has: no question's fault
        engine.rank([good, misfit])
    assert _tools(engine.rank([good])[0]) == expected, "nothing is left of the batch before"


def test_parts_of_the_words_are_ranked_exactly(engine: Engine) -> None:
    parts = ("this", "this picture", "Improve this picture", "picture")
    query = PartQuery("Improve this picture\nValue: ", parts)
    ranked = engine.rank_part("b", query)
    prompt = Prompt(encode_whole_prompt(engine.tokenizer, query.prompt))
    trie = ChoiceTrie(parts, engine.tokenizer, lambda part: part + VALUE_END)
    (expected,) = score_all_tools(engine._shared.activate("b"), [prompt], trie)
    assert [part for part, _ in ranked.parts] == [parts[i] for i in np.argsort(-expected)]
    assert [p for _, p in ranked.parts] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert ranked.n_prompt_tokens == len(prompt.prompt_ids)
    alone = engine.rank_part("a", PartQuery("Improve", ("this",)))
    long = engine.rank_part("a", PartQuery("Improve " * 300, parts))
    assert alone.parts == [("this", 1.0)]
    assert long.parts == [], "there is no room for them"
    keeping = Engine(engine._shared.bundles, "cpu", None, prefix_cache_bytes=1 << 20)
    other = replace(query, prompt="Improve this picture\nValue, please: ")
    for asked, n_cached in ((query, 0), (query, ranked.n_prompt_tokens - 1), (other, 1)):
        alone, again = engine.rank_part("b", asked), keeping.rank_part("b", asked)
        assert [part for part, _ in again.parts] == [part for part, _ in alone.parts]
        assert [p for _, p in again.parts] == pytest.approx([p for _, p in alone.parts], abs=1e-5)
        assert n_cached <= again.n_cached_tokens < again.n_prompt_tokens == alone.n_prompt_tokens
        assert alone.n_cached_tokens == 0


def test_a_turn_that_has_no_room_is_told(engine: Engine) -> None:

    short = TurnRequest("Human: Improve this\n", may_call=False, max_answer_tokens=4)
    assert write_whole(engine, "a", short) == write_whole(engine, "a", short)
    with pytest.raises(PromptTooLongError):
        write_whole(engine, "b", TurnRequest("Improve this " * 400))


def test_turns_of_two_models_do_not_mix(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take passes in turn, each with its own adapter; questions to either come between."""
    words = ("Improve this\n", "Improve this, please, and that\n", "Take the haze out\n")
    asked = [(name, TurnRequest(text, may_call=False, max_answer_tokens=6)) for text in words for name in "ab"]
    alone = [write_whole(engine, name, request) for name, request in asked]
    question = _ask(engine, "a", "Improve this", 2)
    expected = _tools(engine.rank([question])[0])
    order, step = [], TurnBatch.step

    def step_noted(batch: TurnBatch) -> None:
        order.append((engine._shared._active, len(batch)))
        step(batch)
        assert _tools(engine.rank([question])[0]) == expected

    monkeypatch.setattr(TurnBatch, "step", step_noted)
    together = write_together(engine, asked)
    assert [turn.text for turn in together] == [turn.text for turn in alone]
    assert len({turn.text for turn in alone}) > 1
    assert order[:4] == [("a", 3), ("b", 3)] * 2
    monkeypatch.undo()
    left, stays = engine.begin(*asked[0]), engine.begin(*asked[1])
    engine.step()
    engine.leave(left)
    while stays.end is None:
        engine.step()
    assert left.end is None
    assert isinstance(stays.end, WrittenTurn)
    assert stays.end.text == alone[1].text
    assert not engine._batches, "nothing is held for turns that are no more"


def test_room_is_left_for_the_longest_answer_as_in_training(engine: Engine) -> None:
    assert engine.longest_answer("a") == longest_answer(engine.tokenizer, CATALOG.selection_tool_ids) > 5


def test_a_model_that_finds_cards_chooses_among_a_callers_tools_by_their_descriptions(engine: Engine) -> None:
    bundles = {
        name: replace(
            bundle, info=bundle.info.model_copy(update={"resolved_config": {"train": {"loss": {"retrieval": 1.0}}}})
        )
        for name, bundle in engine._shared.bundles.items()
    }
    finder = Engine(bundles, "cpu", None)
    tools = (Tool("f1", "Improve this"), Tool("f2", "Human Img"))
    swapped = (Tool("f1", "Human Img"), Tool("f2", "Improve this"))
    words = "Improve this picture"

    def probabilities(answer: Ranking | InputError) -> dict[str, float]:
        return dict(_tools(answer))

    first = probabilities(finder.rank([_ask(finder, "a", words, 3, tools)])[0])
    assert set(first) == {"f1", "f2", "unknown"}
    assert sum(first.values()) == pytest.approx(1, abs=1e-3)
    renamed = (Tool("f1", "Improve this"), Tool("g2", "Human Img"))
    other = probabilities(finder.rank([_ask(finder, "a", words, 3, renamed)])[0])
    assert other["g2"] != first["f2"], "a name is part of the card"
    assert first != probabilities(finder.rank([_ask(finder, "a", words, 3, swapped)])[0])
    # by hand, without the engine: the softmax over the cosines of three cards
    offered = [*tools, CATALOG["unknown"]]
    finder._shared.activate("a")
    card_ids = [encode_card(finder.tokenizer, tool.call_name, tool.description) for tool in offered]
    cards = encode_vectors(finder._shared.mllm, [Prompt(card) for card in card_ids])
    question = encode_vectors(finder._shared.mllm, [_ask(finder, "a", words, 1).prompt])
    expected = compare_with_cards(question, cards)[0]
    assert list(first.values()) == pytest.approx(sorted(expected, reverse=True), abs=1e-4)
    # over its own catalogue, and for the other model, each is asked in the same batch
    together = finder.rank(
        [_ask(finder, "b", words, 3, tools), _ask(finder, "a", words, 2), _ask(finder, "a", words, 3, tools)]
    )
    assert probabilities(together[2]) == first != probabilities(together[0])
    assert _tools(together[1]) == _tools(engine.rank([_ask(engine, "a", words, 2)])[0])


def test_probabilities_are_calibrated_as_the_bundle_says(tmp_path: Path) -> None:
    backbone = build_backbone(tmp_path / "tiny", "### Human: <Img></Img> Improve this\n")
    bundle = build_bundle(tmp_path / "a", backbone, 3)
    calibration = Calibration(0.5, 1.5)
    sure = replace(bundle, info=bundle.info.model_copy(update={"calibration": calibration}))
    engine = Engine({"plain": bundle, "sure": sure}, "cpu", None)
    questions = [_ask(engine, name, "Improve this", 9) for name in ("plain", "sure")]
    plain, calibrated = (dict(_tools(answer)) for answer in engine.rank(questions))
    trie = ChoiceTrie(bundle.catalog.selection_tool_ids, engine.tokenizer)
    (expected,) = score_all_tools(bundle.build_mllm(), [questions[0].prompt], trie)
    assert plain == pytest.approx(dict(zip(trie.choices, expected, strict=True)), abs=2e-4)
    wanted = dict(zip(plain, calibration.of_ranking([*plain.values()]), strict=True))
    assert calibrated == pytest.approx(wanted, abs=2e-4)
    assert max(abs(calibrated[tool] - plain[tool]) for tool in plain) > 0.01


def test_tools_that_cannot_take_the_medium_are_no_candidates(tmp_path: Path) -> None:
    """One that does not say what it takes, and `unknown`, stay; what is left shares the whole probability."""
    catalog = ToolCatalog([Tool("blur", "", "image"), Tool("hum", "", "audio"), Tool("any"), Tool("unknown")])
    backbone = build_backbone(tmp_path / "tiny", "### Human: <Img></Img> Improve this\n")
    engine = Engine({"a": build_bundle(tmp_path / "a", backbone, 3, catalog=catalog)}, "cpu", None)
    question = _ask(engine, "a", "Improve this", 4, sees=True)
    asked = [question._replace(takes=takes) for takes in ("", "image", "audio", "video")]
    answers = [dict(_tools(answer)) for answer in engine.rank(asked)]
    assert [set(answer) for answer in answers] == [
        {"blur", "hum", "any", "unknown"},
        {"blur", "any", "unknown"},
        {"hum", "any", "unknown"},
        {"any", "unknown"},
    ]
    assert [sum(answer.values()) for answer in answers] == pytest.approx([1] * 4, abs=1e-3)
    assert [engine.rank([each])[0] for each in asked] == engine.rank(asked)
