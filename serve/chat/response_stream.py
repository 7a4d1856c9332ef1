"""A response as OpenAI's server-sent events: it begins, its output comes item by item, it ends."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

from serve.chat.events import SentWords
from serve.chat.response_schemas import FunctionCallItem, MessageItem, OutputTextPart, ResponseObject
from serve.chat.stream import split_text
from serve.http.schemas import ErrorBody


class EventWriter:
    """Writes the events of one response, numbered as they go out; each is an event's name and its data.

    Attributes:
        message_id: of the item that holds the words, where they go out before the response is whole.
    """

    def __init__(self, begun: ResponseObject) -> None:
        self.message_id = new_message_id()
        self._begun = begun
        self._sent = SentWords()
        self._number = 0

    def begin(self) -> Iterator[dict[str, str]]:
        """Before anything is known."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._begun.to_json())

    def agent_step(self, step: dict[str, Any]) -> dict[str, str]:
        """A step of the agent's loop as it ends; ours: other clients see that the response is in progress."""
        response = self._begun.model_copy(update={"agent": {"step": step}})
        return self._event("response.in_progress", response=response.to_json())

    def words(self, text: str) -> Iterator[dict[str, str]]:
        """What has come to an answer that begins so; it is the first item."""
        is_first, new = not self._sent.text, self._sent.grow(text)
        if not new:
            return
        part = OutputTextPart(text=self._sent.text, logprobs=[])
        where = {"item_id": self.message_id, "output_index": 0, "content_index": 0}
        if is_first:
            yield self._add(0, MessageItem(id=self.message_id, status="in_progress", content=[part]))
            yield self._begin_text(part, where)
        yield self._event("response.output_text.delta", **where, delta=new, logprobs=[])

    def finish(self, response: ResponseObject) -> Iterator[dict[str, str]]:
        """The output, as far as it has not gone out, and the end."""
        for i, item in enumerate(response.output):
            if item.id != self.message_id or not self._sent.text:
                yield self._add(i, item)
            where = {"item_id": item.id, "output_index": i}
            if isinstance(item, MessageItem):
                (part,) = item.content
                yield from self._write_text(part, {**where, "content_index": 0})
            else:
                for piece in split_text(item.arguments):
                    yield self._event("response.function_call_arguments.delta", **where, delta=piece)
                yield self._event(
                    "response.function_call_arguments.done", **where, name=item.name, arguments=item.arguments
                )
            yield self._event("response.output_item.done", output_index=i, item=item.model_dump(mode="json"))
        yield self._event(f"response.{response.status}", response=response.to_json())

    def _write_text(self, part: OutputTextPart, where: dict[str, Any]) -> Iterator[dict[str, str]]:
        if not self._sent.text:
            yield self._begin_text(part, where)
        logprobs = [entry.model_dump(mode="json") for entry in part.logprobs]
        for i, piece in enumerate(split_text(self._sent.finish(part.text))):
            yield self._event("response.output_text.delta", **where, delta=piece, logprobs=[] if i else logprobs)
        yield self._event("response.output_text.done", **where, text=part.text, logprobs=logprobs)
        yield self._event("response.content_part.done", **where, part=part.model_dump(mode="json"))

    def _add(self, index: int, item: MessageItem | FunctionCallItem) -> dict[str, str]:
        begun = {"arguments": ""} if isinstance(item, FunctionCallItem) else {"content": []}
        added = item.model_copy(update={"status": "in_progress", **begun})
        return self._event("response.output_item.added", output_index=index, item=added.model_dump(mode="json"))

    def _begin_text(self, part: OutputTextPart, where: dict[str, Any]) -> dict[str, str]:
        empty = part.model_copy(update={"text": "", "logprobs": []})
        return self._event("response.content_part.added", **where, part=empty.model_dump(mode="json"))

    def _event(self, kind: str, **fields: Any) -> dict[str, str]:
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return {"event": kind, "data": json.dumps(data, allow_nan=False)}


def new_message_id() -> str:
    return f"msg_{secrets.token_hex(16)}"


def write_failure(error: ErrorBody, number: int) -> dict[str, str]:
    """An error as the last event of those that went out before; OpenAI's client raises on the field `error`."""
    said = {"code": error.code, "message": error.message, "param": error.param}
    data = {"type": "error", "sequence_number": number, **said, "error": error.model_dump()}
    return {"event": "error", "data": json.dumps(data)}
