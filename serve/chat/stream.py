"""Answers to a chat: built from a ranking of tools or from words, whole or as the data of server-sent events.

A ranking is shown in OpenAI's form of log-probabilities: the chosen tool's id is one token, the ranked tools' are its
alternatives.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID
from serve.agent.events import AgentResult, AgentStep, AnswerText
from serve.artifacts import Artifact
from serve.chat.arguments import build_arguments
from serve.chat.content import Conversation
from serve.chat.events import AnswerEvents, SentWords, find_stop
from serve.chat.schemas import (
    AnsweredCall,
    AnswerMessage,
    ChatCompletion,
    ChatRequest,
    Choice,
    ChoiceLogprobs,
    FinishReason,
    FunctionCall,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from serve.chat.tools import ToolChoice
from serve.http.schemas import RequestError

DONE = "[DONE]"
NO_TOOL_FITS = "None of the tools fits this."
NO_CALL_WANTED = "This model answers by choosing tools, and tool_choice is none; use the agent for words."

_LOWEST_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity, which JSON lacks


def choose(choice: ToolChoice, ranking: Sequence[tuple[str, float]]) -> str:
    """The tool's name, or `unknown`; arguments as of `answer_with_tool`."""
    must_call = choice.mode in ("required", "named")
    ranked = [name for name, _ in ranking if not (must_call and name == UNKNOWN_TOOL_ID)]
    return choice.named or (ranked[0] if ranked else choice.tools[0].name)


def answer_with_tool(
    request: ChatRequest,
    choice: ToolChoice,
    ranking: Sequence[tuple[str, float]],
    words: str,
    artifacts: Sequence[Artifact],
    usage: Usage,
    texts: Sequence[str] = (),
) -> ChatCompletion:
    """Choose from a ranking.

    Args:
        request: the chat.
        choice: its tools and what it wants of them; mode "none" needs no ranking: see `answer_with_words`.
        ranking: (tool name, probability), likeliest first; it may hold `unknown`, which stands for no tool. Where a
            call is required it needs a tool beside that.
        words: the user's.
        artifacts: as `build_arguments` takes them.
        usage: tokens.
        texts: values of the call's texts, as `build_arguments` takes them.

    Returns:
        the call; or words, where no tool fits, or the user's words do not give what the tool's schema wants.

    Raises:
        RequestError: a call is required, and the schema wants what the words do not give.
    """
    must_call, chosen = choice.mode in ("required", "named"), choose(choice, ranking)
    logprobs = _build_logprobs(chosen, ranking, request.top_logprobs or 0) if request.logprobs else None
    if chosen == UNKNOWN_TOOL_ID:
        return answer_with_words(request, NO_TOOL_FITS, usage, ranking=ranking)
    tool = choice[chosen]
    try:
        arguments = build_arguments(tool.parameters, tool.media, words, artifacts, texts)
    except InputError as error:
        raise RequestError(f"The tool {chosen[:80]!r}: {error}", code="schema_too_large", param="tools") from None
    if arguments.fault and must_call:
        raise RequestError(
            f"The tool {chosen[:80]!r} cannot be called: {arguments.fault}; say it, or let the model answer in words.",
            code="arguments_not_given",
            param="messages",
        )
    if arguments.fault:
        text = f"To call {chosen}, something is missing: {arguments.fault}."
        return answer_with_words(request, text, usage, ranking=ranking, chosen=chosen)
    function = FunctionCall(name=tool.client_name, arguments=arguments.text)
    call = AnsweredCall(id=f"call_{secrets.token_hex(12)}", function=function)
    return _complete(request, AnswerMessage(content=None, tool_calls=[call]), "tool_calls", usage, logprobs)


def answer_with_words(
    request: ChatRequest,
    text: str,
    usage: Usage,
    finish_reason: FinishReason = "stop",
    agent_trace: dict[str, Any] | None = None,
    ranking: Sequence[tuple[str, float]] = (),
    chosen: str = UNKNOWN_TOOL_ID,
) -> ChatCompletion:
    """An answer in words, with the agent's trace as JSON; `ranking` as in `answer_with_tool`, if there is one, and
    what was chosen of it. The words end before the first of the texts that the request wants to stop at."""
    end = find_stop(text, request.stops)
    if end is not None:
        text, finish_reason = text[:end], "stop"
    logprobs = None
    if request.logprobs and ranking:
        logprobs = _build_logprobs(chosen, ranking, request.top_logprobs or 0)
    return _complete(request, AnswerMessage(content=text), finish_reason, usage, logprobs, agent_trace)


def answer_of_agent(request: ChatRequest, result: AgentResult) -> ChatCompletion:
    """The end of the agent's loop, with its trace."""
    usage = Usage.of(result.prompt_tokens, result.completion_tokens, result.cached_tokens)
    return answer_with_words(request, result.text, usage, result.finish_reason, result.to_json())


def describe_tool_results(conversation: Conversation) -> str:
    """What the tools answered since the user's last words: the end of a chat with a model that only chooses tools."""
    return "\n".join(
        f"{conversation.call_name(turn.call_id)}: {turn.text.strip() or 'done, without a word'}"
        for turn in conversation.tool_results
    )


def _complete(
    request: ChatRequest,
    message: AnswerMessage,
    finish_reason: FinishReason,
    usage: Usage,
    logprobs: ChoiceLogprobs | None,
    agent_trace: dict[str, Any] | None = None,
) -> ChatCompletion:
    return ChatCompletion(
        id=f"chatcmpl-{secrets.token_hex(12)}",
        created=int(time.time()),
        model=request.model,
        choices=[Choice(message=message, finish_reason=finish_reason, logprobs=logprobs)],
        usage=usage,
        agent=agent_trace,
    )


def _build_logprobs(chosen: str, ranking: Sequence[tuple[str, float]], n_top: int) -> ChoiceLogprobs:
    top = [_logprob(name, probability) for name, probability in ranking[:n_top]]
    own = _logprob(chosen, dict(ranking).get(chosen, 0.0))
    return ChoiceLogprobs(content=[TokenLogprob(**own.model_dump(), top_logprobs=top)])


def _logprob(name: str, probability: float) -> TopLogprob:
    logprob = max(math.log(probability), _LOWEST_LOGPROB) if probability > 0 else _LOWEST_LOGPROB
    return TopLogprob(token=name, logprob=min(logprob, 0.0), bytes=list(name.encode()))


def stream_completion(answer: ChatCompletion, has_usage_chunk: bool) -> Iterator[str]:
    """A finished answer as the data of server-sent events, from the role's chunk to `[DONE]`."""
    chunks = ChunkWriter(answer.id, answer.created, answer.model, has_usage_chunk)
    yield chunks.begin()
    yield from chunks.finish(answer)


async def stream_answer(request: ChatRequest, events: AnswerEvents) -> AsyncGenerator[str, None]:
    """An answer that comes bit by bit as the data of events: the agent's steps as they end, words as they come."""
    chunks = ChunkWriter.start(request)
    yield chunks.begin()
    async with aclosing(events):
        async for event in events:
            if isinstance(event, AgentStep):
                yield chunks.agent_step(event.to_json())
            elif isinstance(event, AnswerText):
                for data in chunks.words(event.text):
                    yield data
            else:
                for data in chunks.finish(event):
                    yield data


async def complete_agent(
    request: ChatRequest, events: AsyncGenerator[AnswerText | AgentStep | AgentResult, None]
) -> AnswerEvents:
    """The agent's events, the last one as an answer."""
    async with aclosing(events):
        async for event in events:
            yield answer_of_agent(request, event) if isinstance(event, AgentResult) else event


class ChunkWriter:
    """Writes one streamed answer; every method returns the data of whole events, each one line of JSON."""

    def __init__(
        self, completion_id: str, created: int, model: str, has_usage_chunk: bool, stops: Sequence[str] = ()
    ) -> None:
        self._sent = SentWords(stops)
        self._head = {"id": completion_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._has_usage_chunk = has_usage_chunk

    @classmethod
    def start(cls, request: ChatRequest) -> ChunkWriter:
        """For an answer that is not there yet."""
        completion_id = f"chatcmpl-{secrets.token_hex(12)}"
        return cls(completion_id, int(time.time()), request.model, request.has_usage_chunk, request.stops)

    def begin(self) -> str:
        """The first chunk, which bears the role."""
        return self._event({"role": "assistant", "content": "", "refusal": None})

    def agent_step(self, step: dict[str, Any]) -> str:
        """A step of the agent's loop as it ends; ours: other clients see a chunk without words."""
        return self._event({}, agent={"step": step})

    def words(self, text: str) -> Iterator[str]:
        """What has come to an answer that begins so."""
        if new := self._sent.grow(text):
            yield self._event({"content": new})

    def finish(self, answer: ChatCompletion) -> Iterator[str]:
        """Calls, the rest of the content, the finishing chunk, usage where it is wanted (without choices), the end."""
        whole = answer.to_json()
        choice = whole["choices"][0]
        logprobs = choice["logprobs"]
        for i, call in enumerate(choice["message"].get("tool_calls", ())):
            function = call["function"]
            first = {**call, "function": {"name": function["name"], "arguments": ""}}
            yield self._event({"tool_calls": [{"index": i, **first}]}, logprobs=logprobs)
            for piece in split_text(function["arguments"]):
                yield self._event({"tool_calls": [{"index": i, "function": {"arguments": piece}}]})
            logprobs = None
        rest = self._sent.finish(choice["message"]["content"] or "")
        for piece in split_text(rest) or ([""] if logprobs else []):
            yield self._event({"content": piece}, logprobs=logprobs)
            logprobs = None
        extra = {"agent": whole["agent"]} if "agent" in whole else {}
        yield self._event({}, finish_reason=choice["finish_reason"], **extra)
        if self._has_usage_chunk:
            yield self._data({**self._head, "choices": [], "usage": whole["usage"]})
        yield DONE

    def _event(
        self,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        **extra: Any,
    ) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self._has_usage_chunk else {}
        return self._data({**self._head, "choices": [choice], **usage, **extra})

    @staticmethod
    def _data(value: dict[str, Any]) -> str:
        return json.dumps(value, allow_nan=False)


def split_text(text: str) -> list[str]:
    """A text in pieces of a few words."""
    return re.findall(r"(?s)(?:\s*\S+){1,4}\s*|\s+", text)
