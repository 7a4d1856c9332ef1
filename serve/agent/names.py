"""Short names for a dialogue's files: the model reads and writes names of a few tokens, as in training.

An artifact's own name holds 32 hexadecimal digits, some thirty tokens that no training showed: a model that chains two
tools on `image/bako3bam.png` gave up after the first on the long name. Everybody else sees the artifacts' own names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import numpy as np

from data_pipeline.records.schema import Turn
from data_pipeline.sources.toolmm_mini.dialogue_wordings import draw_file_name
from model.decode.turn_types import TurnRequest, WrittenTurn
from serve.agent.loop import WriteTurn
from serve.artifacts import DIALOGUE_NAME


def with_short_names(write_turn: WriteTurn) -> WriteTurn:
    """The same writer, which sees a short name wherever a dialogue names an artifact; for one dialogue."""
    names = _ShortNames()

    async def write(request: TurnRequest) -> AsyncGenerator[str | WrittenTurn, None]:
        async with aclosing(write_turn(names.shorten(request))) as news:
            async for event in news:
                if isinstance(event, WrittenTurn):
                    yield replace(event, text=names.restore(event.text))
                else:
                    yield names.restore(event)

    return write


class _ShortNames:
    def __init__(self) -> None:
        self._short: dict[str, str] = {}  # own name -> short one

    def shorten(self, request: TurnRequest) -> TurnRequest:
        texts = " ".join([request.prompt, *(turn.text for turn in request.turns)])
        for found in DIALOGUE_NAME.finditer(" ".join([texts, *request.files])):
            if found[0] not in self._short:
                self._short[found[0]] = self._draw(found[0], texts)
        return replace(
            request,
            prompt=self._replace(request.prompt),
            turns=tuple(Turn(turn.role, self._replace(turn.text)) for turn in request.turns),
            files=tuple(map(self._replace, request.files)),
            fallback_text=self._replace(request.fallback_text),
        )

    def restore(self, text: str) -> str:
        own = {short: name for name, short in self._short.items()}
        if not own:
            return text
        any_short = re.compile("|".join(map(re.escape, own)))
        return any_short.sub(lambda found: own[found[0]], text)

    def _replace(self, text: str) -> str:
        return DIALOGUE_NAME.sub(lambda found: self._short[found[0]], text)

    def _draw(self, name: str, texts: str) -> str:
        """A name that neither another file nor anybody's words have; the same for a file in every dialogue, mostly."""
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        rng = np.random.default_rng(seed)
        while True:
            short = draw_file_name(rng, name.partition("/")[0])
            if short not in self._short.values() and short not in texts:
                return short
