"""The service's routes over stand-ins for the model deployments, which the serving tests share."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from background_server import in_background
from fastapi.testclient import TestClient

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.dialogue import Answer, parse_turn
from model.decode.json_text import WrittenJson
from serve.chat.answer import ChatService
from serve.chat.selection import Selector
from serve.chat.served_models import ServedModels
from serve.config import ServeArgs
from serve.deployments.ingress import SelectionService, build_api
from serve.engine.messages import EncodedMedium, PartQuery, RankedParts, Ranking, SelectQuery, ServedModel
from serve.http.telemetry import Telemetry

CATALOG = ToolCatalog(
    [
        Tool("deblur", "Sharpens.", "image", "image", "local", fine_functionality="Image Deblurring"),
        Tool("dehaze"),
        Tool("unknown"),
    ]
)
RANKING = [("deblur", 0.7), ("unknown", 0.2), ("dehaze", 0.1)]
SELECT = "/v1/tools/select"


class Method:
    """Stands for `handle.method`: `.remote(...)` gives a response that can be awaited."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def remote(self, *args: Any) -> Any:
        return _Response(self._function, args)


class _Response:
    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._function, self._args = function, args

    def __await__(self) -> Any:
        return self._call().__await__()

    def cancel(self) -> None:
        """Nobody waits any more."""

    async def _call(self) -> Any:
        result = self._function(*self._args)
        return await result if asyncio.iscoroutine(result) else result

    async def __aiter__(self) -> Any:
        """What is written, and before it the beginnings of its answer, word by word."""
        written = await self._call()
        answer = written if isinstance(written, WrittenJson) else parse_turn(written.text)
        if isinstance(answer, WrittenJson | Answer):
            for end in re.finditer(r"(?=\s)", answer.text):
                yield answer.text[: end.start()]
        yield written


class WritingMethod(Method):
    """Stands for a method that writes something, whole or streamed."""

    def options(self, *, stream: bool) -> WritingMethod:
        assert stream
        return self


def let_write(predictor: Any, write: Callable[..., Any]) -> None:
    """Turns come from a function of a model's name and a request."""
    predictor.write_turn = predictor.stream_turn = WritingMethod(write)


class _Encoder:
    def __init__(self) -> None:
        self.asked: list[tuple[bytes, str | None]] = []
        self.encode = Method(self._encode)
        self.describe = Method(lambda: {})

    def _encode(self, data: bytes, modality: str | None) -> EncodedMedium:
        self.asked.append((data, modality))
        return EncodedMedium(modality or "image", np.ones(4, np.float32), cached=False)


class _Predictor:
    def __init__(self) -> None:
        self.asked: list[SelectQuery] = []
        self.ranking = RANKING
        self.revision = "rev"
        self.list_models = Method(lambda: [ServedModel("toolmm", CATALOG, self.revision)])
        self.select = Method(self._select)
        self.rank_parts = Method(self._rank_parts)
        self.json = "{}"
        self.write_json = self.stream_json = WritingMethod(lambda *_: WrittenJson(self.json, True, 20, 5, 9))
        self.describe = Method(lambda: {"largest_batch": 3, "revisions": {"toolmm": self.revision}})

    def _select(self, queries: Sequence[SelectQuery]) -> list[Ranking | InputError]:
        self.asked += queries
        return [Ranking([(CATALOG[tool_id], p) for tool_id, p in self.ranking], self.revision) for _ in queries]

    def _rank_parts(self, _: str, queries: Sequence[PartQuery]) -> list[RankedParts]:
        return [RankedParts([(max(query.parts, key=len), 1.0)]) for query in queries]  # all of the words


class World:
    """The client and what is behind it."""

    def __init__(self, tools: Any = None, **args: Any) -> None:
        """`tools` stands for the deployments that run tools; `args` are of the service."""
        self.args = ServeArgs.parse({"bundle": "b", "max_upload_bytes": 1000, "max_instruction_chars": 50, **args})
        self.encoder, self.predictor = _Encoder(), _Predictor()
        models = ServedModels([ServedModel("toolmm", CATALOG, "rev")], self.predictor)
        selector = Selector(self.args, models, self.predictor, self.encoder, Telemetry())
        self.chat = ChatService(self.args, selector, self.predictor, tools, tools)
        self.service = SelectionService(self.args, selector, self.predictor, self.encoder)
        self.api = build_api(self.service, self.chat)
        self.client = TestClient(
            self.api, base_url="http://127.0.0.1", client=("127.0.0.1", 50000), raise_server_exceptions=False
        )

    def select(self, **body: Any) -> Any:
        return self.client.post(SELECT, json=body)


@contextmanager
def serve(world: World) -> Iterator[str]:
    """The routes on a free port; gives the address."""
    with in_background(world.api) as url:
        yield url
