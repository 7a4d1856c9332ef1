"""Turns that one model writes together: they share its passes, and come and go between these.

Reference: iteration-level scheduling as in Orca (Yu et al. 2022), prompts in blocks as in Sarathi (Agrawal et al. 2023,
arXiv:2308.16369), here over one padded batch whose rows have lengths of their own (`model/decode/tree_cache.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from model.decode.answer_text import settled_answer
from model.decode.kept_prefixes import KeptPrefix, KeptPrefixes
from model.decode.next_token import Likeliest, LocalNextToken
from model.decode.tree_cache import CachedPath, DecodeStats, TreeCache, decoding
from model.decode.turn import EncodedTurn, TurnComposer
from model.decode.turn_row import Blocks, Read, TurnRow, Writing
from model.decode.turn_types import RunningTurn, TurnLimits, WrittenTurn

_NOTHING = np.empty(0, dtype=np.int32)
_NO_LIMIT = 1 << 30
_PADDING_SHARE = 4  # of a pass's tokens one in so many may be padding: a further pass costs about as much


class TurnWriter(TurnComposer):
    """Writes turns with one model."""

    def __init__(self, mllm: Any, limits: TurnLimits | None = None) -> None:
        self.mllm = mllm
        self.next_token = LocalNextToken(mllm)
        super().__init__(self.next_token, limits)

    def write(self, turns: Sequence[EncodedTurn], stats: DecodeStats | None = None) -> list[WrittenTurn]:
        """Write one turn for each request; all prompts are read in one pass."""
        batch = TurnBatch(self, stats=stats)
        running = [batch.begin(turn) for turn in turns]
        while len(batch):
            batch.step()
        return [turn.result() for turn in running]


@dataclass(eq=False)
class _Row(RunningTurn):
    """A turn and what it waits for.

    Attributes:
        writing: asks for what the model shall do next.
        blocks: what the model shall read.
        row: None while the prompt is read.
    """

    encoded: EncodedTurn
    writing: Writing[WrittenTurn] = field(init=False)
    blocks: Blocks = field(init=False)
    row: TurnRow | None = None

    @property
    def width(self) -> int:
        return sum(len(ids) for _, ids in self.blocks)


class TurnBatch:
    """Turns under way; `step` makes one pass, between two of which the model may do other work. For one thread."""

    def __init__(
        self,
        writer: TurnWriter,
        max_pass_tokens: int = _NO_LIMIT,
        kept: KeptPrefixes | None = None,
        owner: Hashable = None,
        stats: DecodeStats | None = None,
    ) -> None:
        """
        Args:
            writer: of the model.
            max_pass_tokens: that one pass reads, padding included, where others wait for the model; a turn's own
                alternatives are read in one pass, however many they are.
            kept: what was read before; what these turns read and write is kept there for the next ones.
            owner: stands in `kept` for the weights.
            stats: filled with what it cost.
        """
        self._writer = writer
        self._mllm = writer.mllm
        self._max_pass_tokens = max_pass_tokens
        self._kept = kept
        self._owner = owner
        self._stats = DecodeStats() if stats is None else stats
        self._rows: list[_Row] = []  # as those of the cache
        self._waiting: list[_Row] = []  # the same: who has waited longest for a pass comes first
        self._cache = self._open_cache()

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self, turn: EncodedTurn) -> RunningTurn:
        """Put a turn among those under way; nothing is read yet."""
        found = None if self._kept is None else self._kept.find(self._owner, turn.prompt_ids)
        with decoding(self._mllm):
            path = self._cache.add_row() if found is None else self._cache.add_row(found[0].columns, found[1])
        row = _Row(turn)
        row.writing = self._write(row, path)
        first = next(row.writing)
        assert not isinstance(first, Likeliest)  # the prompt's last token at least is read
        row.blocks = first
        self._rows.append(row)
        self._waiting.append(row)
        return row

    def leave(self, turn: RunningTurn) -> None:
        """End a turn that is under way, or was."""
        with self._failing_together():
            self._keep([row for row in self._rows if row is not turn])

    def step(self) -> None:
        """One pass for as many turns as fit into it; those that end with it, or fail in it, leave."""
        if not self._rows:
            return
        with self._failing_together(), decoding(self._mllm):
            self._advance(self._read(self._choose()))
            self._keep([row for row in self._rows if row.end is None])

    def _choose(self) -> list[_Row]:
        """Who has waited longest, and all others that fit beside it without much padding; prompts by themselves."""
        chosen, n_tokens, width = [], 0, 0
        for row in self._waiting:
            padded = (len(chosen) + 1) * max(width, row.width)
            padding = padded - n_tokens - row.width
            is_alike = not chosen or (row.row is None) == (chosen[0].row is None)
            fits = padded <= self._max_pass_tokens and padding <= self._max_pass_tokens // _PADDING_SHARE
            if not chosen or (is_alike and fits):
                chosen.append(row)
                n_tokens, width = n_tokens + row.width, max(width, row.width)
        self._waiting = [row for row in self._waiting if row not in chosen] + chosen
        return [row for row in self._rows if row in chosen]

    def _read(self, rows: list[_Row]) -> list[tuple[_Row, Any]]:
        """Read these rows' blocks in one pass; where that fails, each alone, so that a fault is one turn's only."""
        numbers = [self._rows.index(row) for row in rows]
        try:
            paths, hidden = self._cache.extend(
                [row.blocks for row in rows], numbers, is_prompt=any(row.row is None for row in rows)
            )
        except Exception as error:  # noqa: BLE001  (whatever it is, it goes to who waits)
            if len(rows) > 1:
                return [reply for row in rows for reply in self._read([row])]
            rows[0].end = error
            return []
        ends = hidden.split([len(row.blocks) for row in rows])
        return [(row, (path, end)) for row, path, end in zip(rows, paths, ends, strict=True)]

    def _advance(self, replies: Sequence[tuple[_Row, Read | int]]) -> None:
        """Let turns go on until each needs another pass or has ended; the head's products of all are one."""
        while replies:
            wishes: list[tuple[_Row, Likeliest]] = []
            for row, reply in replies:
                try:
                    wish = row.writing.send(reply)
                except StopIteration as end:
                    row.end = end.value
                except Exception as error:  # noqa: BLE001  (whatever it is, it goes to who waits)
                    row.end = error
                else:
                    if isinstance(wish, Likeliest):
                        wishes.append((row, wish))
                    else:
                        row.blocks = wish
                        row.text = "" if row.row is None else settled_answer(row.row.answer)
            tokens = self._writer.next_token.likeliest([wish for _, wish in wishes]) if wishes else []
            replies = [(row, token) for (row, _), token in zip(wishes, tokens, strict=True)]

    def _write(self, row: _Row, path: CachedPath) -> Writing[WrittenTurn]:
        """A turn from its prompt on, of which `path` was read before."""
        ids, n_cached, end = row.encoded.prompt_ids, path.length, None
        while path.length < len(ids):
            (path,), end = yield [(path, ids[path.length : path.length + self._max_pass_tokens])]
        row.row = self._writer.open_row(path, self._stats)
        written = yield from self._writer.compose(row.encoded, row.row, end)
        if self._kept is not None:
            written_ids, path = row.row.find(written.text)
            columns = self._cache.copy_path(self._rows.index(row), path)
            self._kept.put(self._owner, KeptPrefix(np.concatenate([ids, written_ids]), columns))
        return replace(written, cached_tokens=n_cached)

    def _keep(self, rows: list[_Row]) -> None:
        """These rows, in this order; the others' memory is given back."""
        if len(rows) == len(self._rows):
            return
        if rows:
            with decoding(self._mllm):
                self._cache.select_rows([self._rows.index(row) for row in rows])
        else:
            self._cache = self._open_cache()
        self._rows = rows
        self._waiting = [row for row in self._waiting if row in rows]

    @contextmanager
    def _failing_together(self) -> Iterator[None]:
        """What goes wrong within is every turn's end: the cache may be in any state."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  (whatever it is, it goes to who waits)
            for row in self._rows:
                row.end = row.end or error
            self._keep([])

    def _open_cache(self) -> TreeCache:
        return TreeCache(self._mllm, [], _NOTHING, self._stats)
