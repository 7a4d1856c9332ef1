"""Typed questions: options ranked as tools, probabilities that add up, and what a ranking cannot tell refused."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from openai.types import Decision
from random_bundle import build_backbone, build_bundle
from small_media import picture, sound
from stand_in_service import CATALOG, RANKING, Method, World

from data_pipeline.batches.encoding import encode_question
from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool, ToolCatalog
from model.decode.tools import Prompt
from model.llm.bundle import Bundle
from serve.chat import decisions
from serve.chat.decisions import MAX_OPTIONS
from serve.chat.served_models import ServedModels
from serve.engine.answering import Engine
from serve.engine.choices import Question
from serve.engine.messages import Ranking, SelectQuery, ServedModel

CATALOG_CHOICE = {"type": "choice", "instructions": ""}


class Questioned(World):
    """A service whose model likes options the better the earlier they come, and `unknown` a little."""

    p_unknown = 0.2

    def __init__(self, finds_cards: bool = True, **args: Any) -> None:
        super().__init__(max_upload_bytes=200_000, **args)
        models = ServedModels([ServedModel("toolmm", CATALOG, "rev", finds_cards=finds_cards)], self.predictor)
        self.chat.models = self.chat.selector.models = models
        self.queries: list[SelectQuery] = []
        predictor: Any = self.predictor
        predictor.select = Method(self._rank)

    def _rank(self, queries: Sequence[SelectQuery]) -> list[Ranking | InputError]:
        self.queries += queries
        return [self._rank_one(query) for query in queries]

    def _rank_one(self, query: SelectQuery) -> Ranking | InputError:
        if query.tools is None:
            tools = [(CATALOG[tool_id], p) for tool_id, p in RANKING]
        else:
            if query.tools[0].tool_id == "same":
                return InputError("one is the beginning of the other.")
            weights = [2.0**-i for i in range(len(query.tools))]
            left = 1 - self.p_unknown
            tools = [(tool, left * w / sum(weights)) for tool, w in zip(query.tools, weights, strict=True)]
            tools.append((Tool("unknown"), self.p_unknown))
        return Ranking(tools[: query.k], "rev", n_prompt_tokens=10, n_answer_tokens=2)

    def ask(self, *questions: dict[str, Any], given: Any = "Sharpen it", **more: Any) -> Any:
        body = {"model": "toolmm", "input": given, "questions": list(questions), **more}
        return self.client.post("/v1/decisions", json=body)


def choice(*values: Any, **more: Any) -> dict[str, Any]:
    return {"type": "choice", "instructions": "Which?", "choices": [{"value": value} for value in values], **more}


def test_all_kinds_are_answered_in_order() -> None:
    world = Questioned()
    levels = [{"label": "not at all"}, {"label": "somewhat", "description": "a little"}, {"label": "very"}]
    answer = world.ask(
        {"type": "predicate", "instructions": "The user wants\na sharper picture.", "name": "sharper"},
        choice("a b", True, "c"),
        {"type": "score", "instructions": [{"type": "input_text", "text": "How urgent?"}], "levels": levels},
        CATALOG_CHOICE,
        prompt_cache_key="x",
        safety_identifier="y",
    )
    assert answer.status_code == 200, answer.text
    decision = Decision.model_validate(answer.json(), strict=True)
    predicate, chosen, score, catalog = decision.answers
    assert (predicate.type, predicate.name, predicate.probability) == ("predicate", "sharper", pytest.approx(0.8))
    assert (chosen.type, chosen.choice, [p.value for p in chosen.probabilities]) == (
        "choice",
        "a b",
        ["a b", True, "c"],
    )
    assert [p.probability for p in chosen.probabilities] == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert answer.json()["answers"][1]["p_unknown"] == pytest.approx(0.2)
    assert (score.type, score.score) == ("score", pytest.approx(2 / 7 + 2 / 7))
    assert [(p.label, p.value) for p in score.probabilities] == [("not at all", 0), ("somewhat", 1), ("very", 2)]
    assert catalog.type == "choice"
    assert [p.value for p in catalog.probabilities] == [tool_id for tool_id, _ in RANKING]
    assert [p.probability for p in catalog.probabilities] == pytest.approx([p for _, p in RANKING], abs=1e-9)
    assert (decision.usage.input_tokens, decision.usage.output_tokens, decision.usage.total_tokens) == (40, 8, 48)
    texts = {(query.instruction, query.tools) for query in world.queries}
    assert texts == {
        ("Sharpen it", (Tool("yes", "The user wants a sharper picture."),)),
        ("Which?\nSharpen it", (Tool("a-b"), Tool("true"), Tool("c"))),
        ("How urgent?\nSharpen it", (Tool("not-at-all"), Tool("somewhat", "a little"), Tool("very"))),
        ("Sharpen it", None),
    }


def test_the_medium_is_encoded_once() -> None:
    world = Questioned()
    part = {"type": "input_image", "image_url": "data:image/png;base64," + base64.b64encode(picture()).decode()}
    given = [{"role": "user", "content": [part]}, {"type": "message", "role": "user", "content": "Sharpen it"}]
    assert world.ask(CATALOG_CHOICE, choice("a", "b"), given=given).status_code == 200
    assert len(world.encoder.asked) == 1
    assert all(query.vector is not None for query in world.queries)
    heard = {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound()).decode(), "format": "wav"}}
    assert world.ask(choice("a", "b"), given=[{"role": "user", "content": [heard]}]).status_code == 200
    assert world.encoder.asked[1][1] == "audio"
    assert world.queries[-1].instruction == "Which?"
    refused = world.ask(CATALOG_CHOICE, given=[{"role": "user", "content": [part, heard]}]).json()["error"]
    assert (refused["code"], refused["param"]) == ("too_many_media", "input")


def test_no_probability_at_all_is_a_refusal() -> None:
    world = Questioned()
    world.p_unknown = 1.0
    answer = Decision.model_validate(world.ask(choice("a", "b", name="x")).json(), strict=True).answers[0]
    assert (answer.type, answer.name) == ("refusal", "x")


@pytest.mark.parametrize(
    ("question", "given", "param"),
    [
        ({"type": "guess", "instructions": "a"}, "a", "questions.0"),
        ({"type": "predicate", "instructions": " "}, "a", "questions.0.instructions"),
        ({"type": "predicate", "instructions": "a", "choices": []}, "a", "questions.0.choices"),
        (choice("a"), "a", "questions.0.choices"),
        (choice("a", "a"), "a", "questions.0.choices.1"),
        (choice("true", True), "a", "questions.0.choices.1"),
        (choice("a", "unknown"), "a", "questions.0.choices.1"),
        (choice("a", " "), "a", "questions.0.choices.1"),
        (choice("a", 3), "a", "questions.0.choices.1.value"),
        (choice("same", "same2"), "a", "questions.0"),
        (choice("a", "b"), "a" * 51, "questions.0.instructions"),
        ({"type": "score", "instructions": "a", "levels": [{"label": "x"}]}, "a", "questions.0.levels"),
        (CATALOG_CHOICE, "", "input"),
        (CATALOG_CHOICE, "a" * 51, "input"),
        (CATALOG_CHOICE, [], "input"),
        (CATALOG_CHOICE, [{"role": "system", "content": "a"}], "input.0"),
        (CATALOG_CHOICE, [{"type": "function_call", "call_id": "c", "name": "a", "arguments": ""}], "input.0"),
        (CATALOG_CHOICE, [{"role": "user", "content": [{"type": "input_file"}]}], "input.0.content.0"),
        (
            CATALOG_CHOICE,
            [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}],
            "input.0.content.0.image_url",
        ),
        (
            CATALOG_CHOICE,
            [{"role": "user", "content": [{"type": "input_image", "image_url": "", "file_id": "f"}]}],
            "input.0.content.0.file_id",
        ),
    ],
)
def test_faults_name_the_field(question: dict[str, Any], given: Any, param: str) -> None:
    answer = Questioned().ask(question, given=given)
    assert answer.status_code in (400, 413), answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert "messages" not in error["message"]


def test_other_fields_and_too_many_questions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "MAX_OPTION_CHARS", 17)
    world = Questioned()
    for answer, param in (
        (world.ask(CATALOG_CHOICE, stream=True), "stream"),
        (world.ask(), "questions"),
        (world.ask(*[CATALOG_CHOICE] * 401), "questions"),
        (world.ask(*[choice("a" * 2, "b")] * 6), "questions"),
        (world.ask(CATALOG_CHOICE, model="toolmm-agent"), "model"),
    ):
        assert answer.status_code in (400, 404, 413)
        assert answer.json()["error"]["param"] == param


def test_ten_thousand_options_are_a_question_and_no_more_are() -> None:
    world = Questioned()
    values = [f"option {i}" for i in range(MAX_OPTIONS + 1)]
    answer = world.ask(choice(*values[:MAX_OPTIONS]))
    assert answer.status_code == 200, answer.text
    chosen = answer.json()["answers"][0]
    assert chosen["choice"] == "option 0"
    assert [p["value"] for p in chosen["probabilities"]] == values[:MAX_OPTIONS]
    assert sum(p["probability"] for p in chosen["probabilities"]) == pytest.approx(1, abs=1e-6)
    refused = world.ask(choice(*values)).json()["error"]
    assert refused["param"] == "questions.0.choices"
    assert "10000" in refused["message"]
    assert len(world.queries) == 1


def test_the_options_of_all_questions_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "MAX_ALL_OPTIONS", 5)
    world = Questioned()
    levels = {"type": "score", "instructions": "", "levels": [{"label": "a"}, {"label": "b"}, {"label": "c"}]}
    assert world.ask(choice("a", "b"), levels).status_code == 200
    refused = world.ask(choice("a", "b", "c"), CATALOG_CHOICE, levels).json()["error"]
    assert refused["param"] == "questions"
    assert "have 6 options; at most 5 are allowed" in refused["message"]


def test_options_that_take_too_long_may_be_sent_again() -> None:
    world = Questioned(request_timeout_s=0.05)
    predictor: Any = world.predictor
    predictor.select = Method(lambda queries: asyncio.sleep(10))
    answer = world.ask(choice("a", "b"))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (504, "timeout", "questions")
    assert "send it again" in error["message"]


def test_a_model_that_reads_no_descriptions_answers_choices_alone() -> None:
    world = Questioned(finds_cards=False)
    assert world.ask(choice("a", "b")).status_code == 200
    for question in (
        {"type": "predicate", "instructions": "It is blurred."},
        {"type": "score", "instructions": "", "levels": [{"label": "low"}, {"label": "high"}]},
    ):
        error = world.ask(CATALOG_CHOICE, question).json()["error"]
        assert (error["code"], error["param"]) == ("question_not_supported", "questions.1.type")


def answer_by(world: World, bundle: Bundle) -> None:
    """Let a model of its own answer, in this process."""
    engine = Engine({"toolmm": bundle}, "cpu", None)

    def rank(queries: Sequence[SelectQuery]) -> list[Ranking | InputError]:
        prompts = [
            Prompt(encode_question(engine.tokenizer, query.instruction, False, ()).prompt_ids) for query in queries
        ]
        return engine.rank(
            [
                Question(query.model, prompt, query.k, query.tools)
                for query, prompt in zip(queries, prompts, strict=True)
            ]
        )

    predictor: Any = world.predictor
    predictor.select = Method(rank)
    models = ServedModels([ServedModel.of("toolmm", bundle)], predictor)
    world.chat.models = world.chat.selector.models = world.service._models = models


def test_a_catalogue_of_932_tools_is_answered_as_it_is_ranked(tmp_path: Path) -> None:
    """As many as ToolMMBench has."""
    names = [f"lab-{i % 31}/{word}-{i}" for i, word in zip(range(931), cycle(("deblur", "dehaze", "edges")))]
    catalog = ToolCatalog([*map(Tool, names), Tool("unknown")])
    backbone = build_backbone(tmp_path / "tiny", "### Human: <Img></Img> Improve this\n")
    world = Questioned()
    answer_by(world, build_bundle(tmp_path / "a", backbone, 1, catalog=catalog))
    (answer,) = Decision.model_validate(world.ask(CATALOG_CHOICE, given="Improve this").json(), strict=True).answers
    assert answer.type == "choice"
    found = {entry.value: entry.probability for entry in answer.probabilities}
    assert found.keys() == set(catalog.selection_tool_ids)
    assert sum(found.values()) == pytest.approx(1, abs=1e-6)
    selected = world.client.post("/v1/tools/select", json={"instruction": "Improve this", "k": 932}).json()["tools"]
    assert found == pytest.approx({tool["tool_id"]: tool["probability"] for tool in selected}, abs=1e-6)
    assert list(found) == [tool["tool_id"] for tool in selected], "likeliest first"


def test_a_model_that_reads_descriptions_answers_all_kinds_by_them(tmp_path: Path) -> None:
    backbone = build_backbone(tmp_path / "tiny", "### Human: <Img></Img> Improve this\n")
    bundle = build_bundle(tmp_path / "a", backbone, 1)
    trained = {"train": {"loss": {"retrieval": 1.0}}}
    bundle = replace(bundle, info=bundle.info.model_copy(update={"resolved_config": trained}))
    world = Questioned()
    answer_by(world, bundle)
    levels = [{"label": str(i), "description": f"It is {word}."} for i, word in enumerate(("bad", "fair", "good"))]
    options = [{"value": value, "description": f"Makes it {value}."} for value in ("sharp", "light", "quiet")]
    answer = world.ask(
        {"type": "predicate", "instructions": "The picture is blurred."},
        {"type": "predicate", "instructions": "Nobody speaks."},
        {"type": "score", "instructions": "How good?", "levels": levels},
        {"type": "choice", "instructions": "", "choices": options},
        {"type": "choice", "instructions": "", "choices": [{**option, "description": ""} for option in options]},
        CATALOG_CHOICE,
    )
    assert answer.status_code == 200, answer.text
    one, other, score, chosen, nameless, catalog = Decision.model_validate(answer.json(), strict=True).answers
    assert one.type == other.type == "predicate"
    assert 0 < one.probability < 1
    assert one.probability != other.probability, "the statement is read"
    assert score.type == "score"
    assert score.score == pytest.approx(sum(entry.value * entry.probability for entry in score.probabilities))
    assert chosen.type == nameless.type == catalog.type == "choice"
    assert chosen.probabilities != nameless.probabilities, "descriptions are read"
    assert [entry.value for entry in chosen.probabilities] == ["sharp", "light", "quiet"]
    assert {entry.value for entry in catalog.probabilities} == set(bundle.catalog.selection_tool_ids)
    for entries in (score.probabilities, chosen.probabilities, nameless.probabilities, catalog.probabilities):
        assert sum(entry.probability for entry in entries) == pytest.approx(1, abs=1e-6)
