"""Turns of dialogues whose next tokens a vLLM server tells: composed here, as those of the model in this process.

What is written freely is not asked for token by token: the server streams its likeliest tokens, and each that the rules
allow is the likeliest allowed one too. Where one is not allowed, the server is asked for the likeliest that is, and
streams on from there.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from model.decode.answer_text import settled_answer
from model.decode.next_token import Likeliest
from model.decode.tree_cache import CachedPath, DecodeStats
from model.decode.trie import ChoiceTrie
from model.decode.turn import TurnComposer
from model.decode.turn_row import Blocks, Read
from model.decode.turn_types import TurnRequest, WrittenTurn
from serve.engine.vllm_http import MAX_PROMPTS, VllmServer
from serve.engine.vllm_reader import score_children

MAX_AHEAD = 512  # tokens of one stream


class VllmTurns:
    """Writes turns with one of a server's models, any number at the same time."""

    def __init__(self, server: VllmServer, model: str, tokenizer: Any, max_positions: int, n_tokens: int) -> None:
        """`n_tokens`: rows of the head."""
        self._open = lambda: _NextToken(server, model, tokenizer, max_positions, n_tokens)
        self._composer = TurnComposer(self._open())

    def write(self, request: TurnRequest) -> Generator[str | WrittenTurn, None, None]:
        """Write one turn; each step waits for the server.

        Yields:
            after every step, what of the turn's answer is certain; at last the turn.

        Raises:
            PromptTooLongError: the dialogue leaves no room for it.
            EngineUnavailableError: the server does not answer.
        """
        turn = self._composer.encode(request)
        tokens, next_token = _ReadTokens(turn.prompt_ids), self._open()
        try:
            row = self._composer.open_row(tokens.prompt, DecodeStats(), next_token)
            composing = self._composer.compose(turn, row, [turn.prompt_ids])
            reply: Read | int | None = None
            while True:
                try:
                    wish = next(composing) if reply is None else composing.send(reply)
                except StopIteration as end:
                    written: WrittenTurn = end.value
                    break
                if isinstance(wish, Likeliest):
                    (reply,) = next_token.likeliest([wish])
                else:
                    reply = tokens.extend(wish)
                    yield settled_answer(row.answer)
            yield replace(written, cached_tokens=min(next_token.n_cached, len(turn.prompt_ids)))
        finally:
            next_token.close()


class _ReadTokens:
    """The tokens of a prompt and of what grows behind it, in columns as a `TreeCache` has them; nothing is computed."""

    def __init__(self, prompt_ids: np.ndarray) -> None:
        self._ids = prompt_ids.tolist()
        self.prompt = CachedPath(((0, len(self._ids)),))

    def extend(self, blocks: Blocks) -> Read:
        """Take note of blocks; their ends are the whole sequences, int32 [L]."""
        paths, ends = [], []
        for path, ids in blocks:
            start = len(self._ids)
            self._ids += ids.tolist()
            paths.append(path.extended(start, len(self._ids)))
            ends.append(np.concatenate([self._ids[first:end] for first, end in paths[-1].spans]).astype(np.int32))
        return paths, ends


class _NextToken:
    """`NextToken` for one turn; ends are sequences of tokens from the prompt's first on, int32 [L] each.

    Attributes:
        n_cached: tokens of the prompt that the server had read before.
    """

    def __init__(self, server: VllmServer, model: str, tokenizer: Any, max_positions: int, n_tokens: int) -> None:
        self._server = server
        self._model = model
        self.tokenizer = tokenizer
        self.max_positions = max_positions
        self.n_tokens = n_tokens
        self.n_cached = 0
        self._has_asked = False
        self._ahead: AbstractContextManager[Iterator[int]] | None = None
        self._coming: Iterator[int] = iter(())
        self._next_ids: list[int] = []  # behind which the open stream goes on

    def score_children(self, trie: ChoiceTrie, ends: Any, nodes: Sequence[int], stats: DecodeStats) -> list[np.ndarray]:
        self.close()
        stats.decisions += len(nodes)
        return score_children(self._score, trie, ends, nodes)

    def likeliest(self, wishes: Sequence[Likeliest]) -> list[int]:
        return [self._pick(wish) for wish in wishes]

    def _pick(self, wish: Likeliest) -> int:
        (ids,) = wish.end
        sequence: list[int] = ids.tolist()
        token = self._look_ahead(sequence)
        if wish.banned[token]:
            self.close()
            return self._server.pick(self._model, sequence, np.flatnonzero(~wish.banned).tolist())
        self._next_ids = [*sequence, token]
        return token

    def close(self) -> None:
        """End the open stream."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            ahead.__exit__(None, None, None)

    def _look_ahead(self, sequence: list[int]) -> int:
        """The likeliest token of all behind a sequence: the open stream's next, or the first of another one."""
        if self._ahead is not None and sequence == self._next_ids:
            token = next(self._coming, None)
            if token is not None:
                return token
        self.close()
        room = max(1, min(MAX_AHEAD, self.max_positions + 1 - len(sequence)))
        self._ahead = self._server.stream(self._model, sequence, room)
        self._coming = self._ahead.__enter__()
        token = next(self._coming, None)
        if token is None:
            raise self._server.strange("a stream ended without a token")
        return token

    def _score(self, sequences: Sequence[np.ndarray], token_ids: Sequence[int]) -> np.ndarray:
        rows = []
        for start in range(0, len(sequences), MAX_PROMPTS):
            part = [sequence.tolist() for sequence in sequences[start : start + MAX_PROMPTS]]
            scores, n_cached = self._server.score(self._model, {"prompt": part}, len(part), token_ids)
            if not self._has_asked:
                self._has_asked, self.n_cached = True, n_cached
            rows.append(scores)
        return np.concatenate(rows)
