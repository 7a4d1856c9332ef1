"""Typed questions about an input, answered with probabilities: OpenAI's decisions, carried by the ranking of tools.

What the model can weigh is which of some options suits words and a medium. So a choice is a ranking of the caller's
options, or of the whole catalogue; a score is the choice among its levels, and their mean; a predicate is the model's
decision whether its statement suits the input or none does. The last two need a model that reads descriptions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag, field_validator

from data_pipeline.errors import InputError, MediaError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool
from serve.chat.answer import ChatService
from serve.chat.decision_answers import (
    ChoiceAnswer,
    Decision,
    DecisionUsage,
    LevelProbability,
    OptionProbability,
    PredicateAnswer,
    RefusalAnswer,
    ScoreAnswer,
)
from serve.chat.items import UserInput, WordsContent, join_words, to_messages, told_as
from serve.chat.messages import RequestPart
from serve.chat.schemas import ChatRequest
from serve.engine.messages import EncodedMedium, Ranking
from serve.http.json_body import form, parse_body, told_by
from serve.http.schemas import RequestError

MAX_QUESTIONS, MAX_LEVELS = 400, 255  # as at OpenAI
MAX_OPTIONS = 10_000  # of a choice; OpenAI takes 255
MAX_ALL_OPTIONS = MAX_QUESTIONS * 255  # of all questions together
MAX_OPTION_CHARS = 1_000_000  # likewise
TOOK_TOO_LONG = "The request took too long; the options that were read are kept: send it again, or fewer options."
YES = "yes"  # what a predicate's statement is called as an option

_NOT_IN_AN_ID = str.maketrans(dict.fromkeys("{}[],'\"", "-"))


class _Question(RequestPart):
    model_config = ConfigDict(strict=True, extra="forbid")

    instructions: WordsContent = Field(default="", description='read before the input; "" = the input alone')
    name: str | None = Field(default=None, max_length=200)


class PredicateQuestion(_Question):
    """How likely it is that a statement, the instructions, suits the input."""

    type: Literal["predicate"]


class Option(RequestPart):
    model_config = ConfigDict(strict=True, extra="forbid")

    value: Annotated[
        Annotated[str, Tag(form("text"))] | Annotated[bool, Tag(form("bool"))],
        told_by(None, "a string, true or false"),
    ]
    description: str | None = None


class ChoiceQuestion(_Question):
    """Which of the options suits the input."""

    type: Literal["choice"]
    choices: list[Option] | None = Field(
        default=None, min_length=2, max_length=MAX_OPTIONS, description="default: the model's whole catalogue"
    )


class Level(RequestPart):
    model_config = ConfigDict(strict=True, extra="forbid")

    label: str
    description: str | None = None


class ScoreQuestion(_Question):
    """Which of the ordered levels suits the input."""

    type: Literal["score"]
    levels: list[Level] = Field(min_length=2, max_length=MAX_LEVELS)


Question = Annotated[
    Annotated[PredicateQuestion, Tag(form("predicate"))]
    | Annotated[ChoiceQuestion, Tag(form("choice"))]
    | Annotated[ScoreQuestion, Tag(form("score"))],
    told_by("type", "an object whose type is 'predicate', 'choice' or 'score'"),
]


class DecisionRequest(RequestPart):
    """Body of `POST /v1/decisions`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str = Field(min_length=1, max_length=200)
    input: UserInput
    questions: list[Question] = Field(min_length=1, max_length=MAX_QUESTIONS)
    prompt_cache_key: str | None = Field(default=None, description="of no effect")
    prompt_cache_options: dict[str, str | None] | None = Field(default=None, description="of no effect")
    safety_identifier: str | None = Field(default=None, description="of no effect")

    @field_validator("questions", mode="before")
    @classmethod
    def _check_number(cls, questions: Any) -> Any:
        """Before millions of options become objects."""
        asked = (
            [question for question in questions if isinstance(question, dict)] if isinstance(questions, list) else []
        )
        n = sum(len(_list(question.get(key))) for question in asked for key in ("choices", "levels"))
        if n > MAX_ALL_OPTIONS:
            raise ValueError(f"its questions have {n} options; at most {MAX_ALL_OPTIONS} are allowed in one request")
        return questions


def parse_decision_request(body: bytes) -> DecisionRequest:
    """Read a request's body; every fault is a `RequestError` that names the field."""
    request = parse_body(DecisionRequest, body)
    n_chars = sum(
        len(label) + len(description or "")
        for question in request.questions
        for label, description in _options(question)
    )
    if n_chars > MAX_OPTION_CHARS:
        raise RequestError(
            f"The questions' options have {n_chars} characters; at most {MAX_OPTION_CHARS} are allowed.",
            413,
            "schema_too_large",
            "questions",
        )
    return request


async def decide(chat: ChatService, request: DecisionRequest, caller: str) -> Decision:
    """Answer all of a caller's questions; the medium is encoded once, and the questions go to the model together.

    Raises:
        RequestError, MediaError: the request is at fault, or wants what a ranking cannot tell.
    """
    model = chat.models.find(request.model)
    reads_cards = model.finds_cards and UNKNOWN_TOOL_ID in model.catalog
    offered = [_offer(question, i, reads_cards) for i, question in enumerate(request.questions)]
    messages, places = to_messages(request.input)
    with told_as(places):
        asked = ChatRequest(model=request.model, messages=messages)
        conversation = await chat.read(asked, caller, needs_words=False)
        n_media = len([medium for turn in conversation.turns for medium in turn.media])
        if n_media > 1:
            raise RequestError(
                f"The input has {n_media} media; questions are answered about one: send one.",
                code="too_many_media",
                param="messages",
            )
        data, modality = await chat.open_medium(conversation, caller)
    words = "\n".join(turn.text for turn in conversation.turns if turn.text.strip())
    try:
        medium = None if data is None else await chat.selector.encode(data, modality)
    except MediaError as error:
        raise RequestError(str(error), 422, "bad_media", "input") from None
    n_catalog = len(model.catalog)

    async def ask(i: int) -> Ranking:
        return await _rank(chat, request, i, words, medium, offered[i], n_catalog)

    rankings = await asyncio.gather(*map(ask, range(len(offered))))
    usage = DecisionUsage.of(
        sum(ranking.n_prompt_tokens for ranking in rankings), sum(ranking.n_answer_tokens for ranking in rankings)
    )
    chat.telemetry.count_tokens(usage.input_tokens, usage.output_tokens)
    answers = [
        _answer(question, tools, ranking)
        for question, tools, ranking in zip(request.questions, offered, rankings, strict=True)
    ]
    return Decision(answers=answers, model=request.model, usage=usage)


async def _rank(
    chat: ChatService,
    request: DecisionRequest,
    i: int,
    words: str,
    medium: EncodedMedium | None,
    tools: tuple[Tool, ...] | None,
    n_catalog: int,
) -> Ranking:
    """A predicate's statement is an option, so it is no part of what the option is to suit."""
    question = request.questions[i]
    asked = "" if isinstance(question, PredicateQuestion) else join_words(question.instructions)
    text = "\n".join(part for part in (asked, words) if part.strip())
    k = n_catalog if tools is None else len(tools) + 1
    try:
        return await chat.selector.rank(request.model, text, k, medium, tools)
    except RequestError as error:
        param = f"questions.{i}.instructions" if asked.strip() else "input"
        raise RequestError(error.message, error.status, error.code, param) from None
    except InputError as error:  # two options that the model cannot tell apart
        raise RequestError(str(error), code="bad_field", param=f"questions.{i}") from None


def _options(question: Question) -> list[tuple[str, str | None]]:
    """(what it is called, description) of each."""
    if isinstance(question, ChoiceQuestion):
        return [(_label(option.value), option.description) for option in question.choices or ()]
    if isinstance(question, ScoreQuestion):
        return [(level.label, level.description) for level in question.levels]
    return [(YES, join_words(question.instructions))]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _label(value: str | bool) -> str:
    return value if isinstance(value, str) else str(value).lower()


def _offer(question: Question, i: int, reads_cards: bool) -> tuple[Tool, ...] | None:
    """The options of a question as tools; None for the catalogue.

    Raises:
        RequestError: the model cannot tell it, or two of its options are one to it.
    """
    if isinstance(question, ChoiceQuestion) and question.choices is None:
        return None
    if not isinstance(question, ChoiceQuestion) and not reads_cards:
        raise RequestError(
            f"This model cannot answer a {question.type}: it tells options by their names, and knows no statement from "
            "its opposite; ask a choice, or a model that was trained to read descriptions (train.loss.retrieval).",
            code="question_not_supported",
            param=f"questions.{i}.type",
        )
    param = f"questions.{i}." + {"predicate": "instructions", "choice": "choices", "score": "levels"}[question.type]
    tools: dict[str, Tool] = {}
    for j, (label, description) in enumerate(_options(question)):
        tool_id = "-".join(label.split()).translate(_NOT_IN_AN_ID)
        about = " ".join((description or "").split())
        fault = _fault(tool_id, tools)
        if isinstance(question, PredicateQuestion):
            fault = "" if about else "has no statement"
        if fault:
            at = param if isinstance(question, PredicateQuestion) else f"{param}.{j}"
            raise RequestError(f"The option {label[:80]!r} {fault}; change it.", code="bad_field", param=at)
        tools[tool_id] = Tool(tool_id, about)
    return tuple(tools.values())


def _fault(tool_id: str, others: Container[str]) -> str:
    """What keeps an option from being one; "" for nothing."""
    if tool_id == UNKNOWN_TOOL_ID:
        return "stands for none of them"
    if not tool_id:
        return "is empty"
    return "cannot be told from another one" if tool_id in others else ""


def _answer(
    question: Question, tools: Sequence[Tool] | None, ranking: Ranking
) -> PredicateAnswer | ChoiceAnswer | ScoreAnswer | RefusalAnswer:
    weights = {tool.tool_id: probability for tool, probability in ranking.tools}
    p_unknown = weights.get(UNKNOWN_TOOL_ID)
    if isinstance(question, PredicateQuestion):
        return PredicateAnswer(name=question.name, probability=weights[YES] / sum(weights.values()))
    ids = list(weights) if tools is None else [tool.tool_id for tool in tools]
    total = sum(weights[tool_id] for tool_id in ids)
    if total == 0:  # all of it is on "none of them"
        return RefusalAnswer(name=question.name)
    shares = [weights[tool_id] / total for tool_id in ids]
    if isinstance(question, ScoreQuestion):
        return ScoreAnswer(
            name=question.name,
            score=sum(i * share for i, share in enumerate(shares)),
            confidence=max(shares),
            probabilities=[
                LevelProbability(label=level.label, value=i, probability=share)
                for i, (level, share) in enumerate(zip(question.levels, shares, strict=True))
            ],
            p_unknown=p_unknown,
        )
    values = [option.value for option in question.choices] if question.choices else ids
    return ChoiceAnswer(
        name=question.name,
        choice=values[shares.index(max(shares))],
        confidence=max(shares),
        probabilities=[
            OptionProbability(value=value, probability=share) for value, share in zip(values, shares, strict=True)
        ],
        p_unknown=p_unknown,
    )
