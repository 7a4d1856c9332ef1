"""Answers in JSON that fits a schema, for chats that want them (`response_format`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from data_pipeline.errors import InputError
from data_pipeline.records.prompts import render_json
from model.decode.json_text import WrittenJson, build_grammar
from serve.agent.events import AnswerText
from serve.chat.content import Conversation
from serve.chat.events import AnswerEvents
from serve.chat.schemas import ChatRequest, Usage
from serve.chat.stream import answer_with_words, describe_tool_results
from serve.chat.tools import MAX_SCHEMA_CHARS
from serve.engine.messages import JsonQuery
from serve.http.schemas import RequestError, check_instruction

_MAX_RESULT_CHARS = 2000  # of what tools answered
WriteJson = Callable[[JsonQuery], AsyncGenerator[str | WrittenJson, None]]


async def answer_in_json(
    write: WriteJson,
    request: ChatRequest,
    conversation: Conversation,
    max_chars: int,
    max_tokens: int,
    spent: Usage | None = None,
) -> AnswerEvents:
    """What the user's last words, and what tools answered since, say in a form.

    Args:
        write: asks the predictor.
        request: with a `json_schema`.
        conversation: the chat.
        max_chars: of the words.
        max_tokens: of the answer, if the request does not say fewer.
        spent: tokens that were read and written for the request before.

    Yields:
        the beginnings of the answer, if `write` gives them, and the answer.

    Raises:
        RequestError: the words are too long, or no JSON can be written by the schema.
    """
    assert request.json_schema is not None
    try:
        grammar = await asyncio.to_thread(build_grammar, request.json_schema)  # a large one takes a second
        words = check_instruction(conversation.words, max_chars)
        if conversation.tool_results:
            words = f"{words}\n{describe_tool_results(conversation)[:_MAX_RESULT_CHARS]}"
        n_tokens = min(request.max_answer_tokens or max_tokens, max_tokens)
        query = JsonQuery(render_json(words, request.schema_text), grammar, n_tokens)
        async with aclosing(write(query)) as news:
            async for event in news:
                if isinstance(event, str):
                    yield AnswerText(event)
                else:
                    spent = spent or Usage.of(0, 0)
                    usage = Usage.of(
                        spent.prompt_tokens + event.prompt_tokens,
                        spent.completion_tokens + event.completion_tokens,
                        spent.prompt_tokens_details.cached_tokens + event.cached_tokens,
                    )
                    yield answer_with_words(request, event.text, usage, "stop" if event.is_whole else "length")
    except RequestError as error:
        where = f"messages.{conversation.last_user}.content" if error.param == "instruction" else error.param
        raise RequestError(error.message, error.status, error.code, where) from None
    except InputError as error:
        raise RequestError(
            f"{str(error)[:1].upper()}{str(error)[1:]}", code="bad_schema", param="response_format"
        ) from None


def check_format(request: ChatRequest) -> None:
    """Refuse what cannot be answered in JSON.

    Raises:
        RequestError: the agent is asked, or the schema is too long.
    """
    if request.json_schema is None:
        return
    if request.is_agent:
        raise RequestError(
            f"The agent answers in its own words; ask {request.base_model[:80]!r} for JSON, or leave response_format "
            "out.",
            code="response_format_not_supported",
            param="response_format",
        )
    if len(request.schema_text) > MAX_SCHEMA_CHARS:
        raise RequestError(
            f"The schema has {len(request.schema_text)} characters; at most {MAX_SCHEMA_CHARS} are allowed.",
            413,
            "schema_too_large",
            "response_format",
        )
