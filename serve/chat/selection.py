"""The way of one question to its ranking, for `/v1/tools/select` and for chats: words checked, medium encoded, tools
ranked."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.records.catalog import Tool
from serve.chat.served_models import ServedModels
from serve.config import ServeArgs
from serve.engine.calls import ask
from serve.engine.messages import EncodedMedium, Ranking, SelectQuery
from serve.engine.questions import Questions
from serve.http.schemas import check_instruction
from serve.http.telemetry import Telemetry


@dataclass(frozen=True)
class Selection:
    """An answered question.

    Attributes:
        ranking: the predictor's answer.
        medium: what the encoder made of the medium; None without one.
        media_s, predict_s: seconds for the medium and for the ranking, waiting included.
    """

    ranking: Ranking
    medium: EncodedMedium | None
    media_s: float
    predict_s: float


class Selector:
    """Asks encoder and predictor, which are deployment handles; one for all of an ingress' questions."""

    def __init__(
        self, args: ServeArgs, models: ServedModels, predictor: Any, encoder: Any, telemetry: Telemetry
    ) -> None:
        self.models = models
        self.telemetry = telemetry
        self._max_chars = args.max_instruction_chars
        self._questions = Questions(predictor)
        self._encoder = encoder

    async def select(
        self,
        model: str,
        instruction: str,
        k: int,
        data: bytes | None = None,
        modality: str | None = None,
        tools: tuple[Tool, ...] | None = None,
        any_modality: bool = False,
    ) -> Selection:
        """Rank tools for one question.

        Args:
            model: a name of `ServedModels`.
            instruction: the user's words.
            k: how many tools are wanted.
            data: the medium's bytes, or None.
            modality: what the request calls the medium, or None.
            tools: a caller's own tools, to choose among; None = the model's catalogue, without those that cannot take
                the medium.
            any_modality: rank those too.

        Raises:
            RequestError, MediaError: the words or the medium are at fault.
        """
        instruction = check_instruction(instruction, self._max_chars)
        start = time.perf_counter()
        medium = None if data is None else await self.encode(data, modality)
        encoded = time.perf_counter()
        ranking = await self.rank(model, instruction, k, medium, tools, any_modality=any_modality)
        return Selection(ranking, medium, encoded - start if medium else 0.0, time.perf_counter() - encoded)

    async def encode(self, data: bytes, modality: str | None = None) -> EncodedMedium:
        """A medium's vector, for one or more questions.

        Raises:
            RequestError, MediaError: the medium is at fault.
        """
        with self.telemetry.waiting("MediaEncoder"):
            medium: EncodedMedium = await ask(self._encoder.encode, data, modality)
        return medium

    async def rank(
        self,
        model: str,
        instruction: str,
        k: int,
        medium: EncodedMedium | None,
        tools: tuple[Tool, ...] | None,
        *,
        any_modality: bool = False,
    ) -> Ranking:
        """Rank tools for words and a medium; the arguments are those of `select`.

        Raises:
            RequestError: the words are at fault.
            InputError: one of the caller's tools cannot be told from another's beginning.
        """
        instruction = check_instruction(instruction, self._max_chars)
        vector: np.ndarray | None = None if medium is None else medium.vector
        takes = "" if medium is None or any_modality else medium.modality
        with self.telemetry.waiting("Predictor"):
            ranking = await self._questions.ask(SelectQuery(model, instruction, vector, k, tools, takes))
        await self.models.learn(model, ranking.revision)
        return ranking
