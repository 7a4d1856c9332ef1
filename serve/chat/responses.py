"""OpenAI's Responses API over the chat: a request becomes a chat, its answer a response, whole or as events."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from serve.agent.events import AgentStep, AnswerText
from serve.chat.answer import ChatService
from serve.chat.content import ARTIFACT_SCHEME
from serve.chat.decision_answers import DecisionUsage
from serve.chat.events import AnswerEvents
from serve.chat.items import to_messages, told_as
from serve.chat.messages import (
    AssistantMessage,
    AudioPart,
    ImagePart,
    MediumData,
    MediumUrl,
    Message,
    SystemMessage,
    TextPart,
    ToolCall,
    UserMessage,
    UserPart,
    VideoPart,
)
from serve.chat.response_memory import RememberedResponse, ResponseMemory
from serve.chat.response_schemas import (
    FunctionCallItem,
    IncompleteDetails,
    MessageItem,
    OutputTextPart,
    ResponseObject,
    ResponseRequest,
)
from serve.chat.response_stream import EventWriter, new_message_id
from serve.chat.schemas import ChatCompletion, ChatRequest
from serve.http.schemas import RequestError


@dataclass(frozen=True)
class _Asked:
    """A request as a chat.

    Attributes:
        request: as it came.
        chat: the same as a chat.
        places: where in the request each of the chat's messages stands.
        n_instructions: how many of the messages are the instructions, which are not remembered.
        caller: whose it is.
        is_stored: whether the response is remembered.
        begun: the response while it is in progress.
    """

    request: ResponseRequest
    chat: ChatRequest
    places: list[str]
    n_instructions: int
    caller: str
    is_stored: bool
    begun: ResponseObject


class ResponseService:
    """Behind `/v1/responses`."""

    def __init__(self, chat: ChatService) -> None:
        args = chat.args
        self._chat = chat
        self._memory = ResponseMemory(args.responses_kept, args.response_ttl_s)
        # with several ingress replicas the next request may reach another one, whose memory is empty
        self._remembers = args.ingress_replicas == 1 and args.responses_kept > 0

    async def create(self, request: ResponseRequest, caller: str) -> ResponseObject | AsyncIterator[dict[str, Any]]:
        """Answer: whole, or as server-sent events (event, data) where the request wants a stream.

        Raises:
            RequestError, MediaError: the request is at fault.
        """
        asked = self._read(request, caller)
        with told_as(asked.places):
            if asked.is_stored:
                conversation = await self._chat.read(asked.chat, caller)
                messages = [
                    _with_artifacts(*pair) for pair in zip(asked.chat.messages, conversation.turns, strict=True)
                ]
                asked = replace(asked, chat=asked.chat.model_copy(update={"messages": messages}))
            answer = await self._chat.answer(asked.chat, caller)
        if request.stream:
            return self._stream(asked, answer)
        assert isinstance(answer, ChatCompletion)
        return self._finish(asked, answer)

    def find(self, response_id: str, caller: str) -> ResponseObject:
        """A response that is remembered; `RequestError` (404) where it is not, or not the caller's."""
        remembered = self._memory.find(caller, response_id)
        if remembered is None:
            raise RequestError(
                f"There is no response {response_id[:80]!r} here.", 404, "response_not_found", "response_id"
            )
        return remembered.response

    def forget(self, response_id: str, caller: str) -> None:
        """Drop a response; errors as of `find`."""
        self.find(response_id, caller)
        self._memory.forget(caller, response_id)

    def _read(self, request: ResponseRequest, caller: str) -> _Asked:
        if request.store and not self._remembers:
            raise RequestError(
                "This service remembers no responses, as it has several ingress replicas or responses_kept is 0; set "
                "store to false, and send the whole input each time.",
                code="not_remembered",
                param="store",
            )
        instructions: list[Message] = []
        if request.instructions:
            instructions.append(SystemMessage(role="system", content=request.instructions))
        history = self._find_history(request, caller)
        new, places = to_messages(request.input)
        chat = ChatRequest(
            model=request.model,
            messages=[*instructions, *history, *new],
            tools=[tool.to_chat() for tool in request.tools] if request.tools else None,
            tool_choice=request.tool_choice
            if request.tool_choice is None or isinstance(request.tool_choice, str)
            else request.tool_choice.to_chat(),
            stream=request.stream,
            logprobs=request.wants_logprobs or None,
            top_logprobs=request.top_logprobs,
            max_completion_tokens=request.max_output_tokens,
            response_format=request.chat_format,
            agent=request.agent,
        )
        is_stored = self._remembers and request.store is not False
        return _Asked(
            request,
            chat,
            ["instructions"] * len(instructions) + ["previous_response_id"] * len(history) + places,
            len(instructions),
            caller,
            is_stored,
            _begin(request, is_stored),
        )

    def _find_history(self, request: ResponseRequest, caller: str) -> tuple[Message, ...]:
        if request.previous_response_id is None:
            return ()
        remembered = self._memory.find(caller, request.previous_response_id)
        if remembered is None:
            args = self._chat.args
            kept = f"this service keeps the last {args.responses_kept}, each for {args.response_ttl_s:g} s"
            if not self._remembers:
                kept = "this service remembers none, as it has several ingress replicas or responses_kept is 0"
            raise RequestError(
                f"There is no response {request.previous_response_id[:80]!r} to go on from: {kept}; send the whole "
                "input instead.",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        return remembered.messages

    def _finish(self, asked: _Asked, completion: ChatCompletion, message_id: str | None = None) -> ResponseObject:
        """The response; remembered before anyone hears of it. `message_id`: of its words, where they have begun."""
        response = _end(asked.begun, completion, message_id or new_message_id())
        if asked.is_stored:
            (choice,) = completion.choices
            calls = [
                ToolCall(id=call.id, type="function", function=call.function)
                for call in choice.message.tool_calls or ()
            ]
            said = AssistantMessage(role="assistant", content=choice.message.content, tool_calls=calls or None)
            messages = (*asked.chat.messages[asked.n_instructions :], said)
            self._memory.put(asked.caller, RememberedResponse(response, messages))
        return response

    async def _stream(self, asked: _Asked, answer: ChatCompletion | AnswerEvents) -> AsyncIterator[dict[str, Any]]:
        events = EventWriter(asked.begun)
        for event in events.begin():
            yield event
        if isinstance(answer, ChatCompletion):
            for event in events.finish(self._finish(asked, answer)):
                yield event
            return
        async with aclosing(answer):
            async for part in answer:
                if isinstance(part, AgentStep):
                    yield events.agent_step(part.to_json())
                    continue
                if isinstance(part, AnswerText):
                    new = events.words(part.text)
                else:
                    new = events.finish(self._finish(asked, part, events.message_id))
                for event in new:
                    yield event


def _begin(request: ResponseRequest, is_stored: bool) -> ResponseObject:
    choice = request.tool_choice
    return ResponseObject(
        id=f"resp_{secrets.token_hex(16)}",
        created_at=int(time.time()),
        status="in_progress",
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        model=request.model,
        output=[],
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        store=is_stored,
        temperature=request.temperature,
        text={"format": request.text.format.model_dump(by_alias=True, exclude_none=True)}
        if request.text is not None and request.text.format is not None
        else {"format": {"type": "text"}},
        tool_choice="auto" if choice is None else choice if isinstance(choice, str) else choice.model_dump(),
        tools=[tool.model_dump() for tool in request.tools or ()],
        top_logprobs=request.top_logprobs or 0,
        top_p=request.top_p,
    )


def _end(begun: ResponseObject, completion: ChatCompletion, message_id: str) -> ResponseObject:
    (choice,) = completion.choices
    is_whole = choice.finish_reason != "length"
    logprobs = [] if choice.logprobs is None else choice.logprobs.content
    status = "completed" if is_whole else "incomplete"
    output: list[MessageItem | FunctionCallItem] = [
        FunctionCallItem(
            id=f"fc_{secrets.token_hex(16)}",
            call_id=call.id,
            name=call.function.name,
            arguments=call.function.arguments,
            status=status,
            logprobs=logprobs,
        )
        for call in choice.message.tool_calls or ()
    ]
    if choice.message.content is not None:
        content = OutputTextPart(text=choice.message.content, logprobs=logprobs)
        output.append(MessageItem(id=message_id, status=status, content=[content]))
    return begun.model_copy(
        update={
            "status": status,
            "completed_at": int(time.time()) if is_whole else None,
            "incomplete_details": None if is_whole else IncompleteDetails(),
            "output": output,
            "usage": DecisionUsage.of(
                completion.usage.prompt_tokens,
                completion.usage.completion_tokens,
                completion.usage.prompt_tokens_details.cached_tokens,
            ),
            "agent": completion.agent,
        }
    )


def _with_artifacts(message: Message, turn: Any) -> Message:
    """The same message with its media as ids of artifacts, so that what is remembered is small."""
    if not isinstance(message, UserMessage) or isinstance(message.content, str):
        return message
    media = iter(turn.media)
    parts = [part if isinstance(part, TextPart) else _refer(part, next(media).artifact.id) for part in message.content]
    return UserMessage(role="user", content=parts)


def _refer(part: UserPart, artifact_id: str) -> UserPart:
    address = ARTIFACT_SCHEME + artifact_id
    if isinstance(part, ImagePart):
        return part.model_copy(update={"image_url": MediumUrl(url=address)})
    if isinstance(part, AudioPart):
        return part.model_copy(update={"input_audio": MediumData(data=address)})
    assert isinstance(part, VideoPart)
    return part.model_copy(update={"input_video": MediumData(data=address)})
