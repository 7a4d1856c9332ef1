"""One row of a batch that writes turns: weighing closed alternatives, and writing open text under a stop.

What writes is a generator: it yields the blocks of tokens that the model shall read next and gets back their paths in
the cache and their ends (the hidden states there, or what stands for them), or it asks for the likeliest token behind
an end; so rows at different places of their turns share every pass and the head's product behind it. No token is read
twice behind the same ones: what was weighed is the beginning of what is written, and of the next turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import numpy as np

from data_pipeline.batches.encoding import encode_text
from data_pipeline.records.dialogue import FILE_NAME, TURN_STOP, Answer, parse_turn, render_answer
from model.decode.free import decode_text
from model.decode.next_token import Likeliest, NextToken
from model.decode.tree_cache import CachedPath, DecodeStats
from model.decode.trie import ChoiceTrie

Blocks = list[tuple[CachedPath, np.ndarray]]
Read = tuple[list[CachedPath], Any]  # the N ends, one per block: hidden states [N, D] of a model in this process
_T = TypeVar("_T")
Writing = Generator[Blocks | Likeliest, Any, _T]  # is sent `Read` for blocks, and a token's id for `Likeliest`

CIRCLING_CHARS = 120  # of an answer that end it where they are one piece again and again

_NUMBER_TOKEN = re.compile(r"\s*[-+.\d]*")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # of vocabularies that spell rare characters so


class TokenKinds:
    """What each token of a vocabulary looks like on its own: bool [V] each.

    Attributes:
        special: never part of a text (the end token too, and those that only `added_tokens_decoder` knows), or beyond
            the tokenizer's vocabulary.
        end: the end token.
        newline: holds a line break.
        blank: nothing visible.
        comma: its first visible character is a comma.
        number: digits, signs and points, or blank.
        byte: a byte by itself; what its text is, the bytes beside it decide.
    """

    def __init__(self, tokenizer: Any, n_tokens: int) -> None:
        """`n_tokens` is V, of the backbone's head."""
        n_known = len(tokenizer)
        texts: list[str] = tokenizer.batch_decode([[i] for i in range(n_known)], clean_up_tokenization_spaces=False)
        texts += [""] * (n_tokens - n_known)
        pieces = [*tokenizer.convert_ids_to_tokens(range(n_known)), *[""] * (n_tokens - n_known)]
        self.byte = np.array([_BYTE_TOKEN.fullmatch(piece or "") is not None for piece in pieces])
        self.special = np.arange(n_tokens) >= n_known
        self.special[tokenizer.all_special_ids] = True
        self.special[[i for i, token in tokenizer.added_tokens_decoder.items() if token.special]] = True
        self.end = np.arange(n_tokens) == tokenizer.eos_token_id
        self.newline = np.array(["\n" in text for text in texts])
        self.blank = np.array([not text.strip() for text in texts])
        self.comma = np.array([text.strip().startswith(",") for text in texts])
        self.number = np.array([_NUMBER_TOKEN.fullmatch(text) is not None for text in texts])


class _ReadToken:
    """A token that was read, or the prompt: where the sequence up to it is cached, and what was read behind it."""

    __slots__ = ("following", "path")

    def __init__(self, path: CachedPath) -> None:
        self.path = path
        self.following: dict[int, _ReadToken] = {}

    def follow(self, ids: np.ndarray) -> tuple[_ReadToken, int]:
        """The end of as many of these tokens as were read, and how many that are."""
        node = self
        for n, token in enumerate(ids.tolist()):
            if token not in node.following:
                return node, n
            node = node.following[token]
        return node, len(ids)

    def add(self, ids: np.ndarray, end: CachedPath) -> _ReadToken:
        """Take note of tokens that were read behind this one, in the last columns of `end`."""
        node, start = self, end.spans[-1][1] - len(ids)
        for n, token in enumerate(ids.tolist(), 1):
            node = node.following.setdefault(token, _ReadToken(self.path.extended(start, start + n)))
        return node


class TurnRow:
    """The turn that is being written behind one prompt.

    Attributes:
        start: the cached prompt.
        answer: of an answer, what is written so far, without bytes that those to come may change; its end may be taken
            back (`settled_answer`).
    """

    def __init__(self, next_token: NextToken, kinds: TokenKinds, start: CachedPath, stats: DecodeStats) -> None:
        """`start` is the cached prompt."""
        self.start = start
        self.answer = ""
        self._n_sure = 0  # characters of the text that is being written, up to its last bytes
        self._prompt = _ReadToken(start)
        self._next_token = next_token
        self._tokenizer = next_token.tokenizer
        self._kinds = kinds
        self._stats = stats

    def score(self, prefix: str, candidates: Sequence[str]) -> Writing[np.ndarray]:
        """Log probabilities float64 [candidates] of what may follow `prefix` in this turn; exact, they sum to 1.

        Every branching node of the candidates' trie is expanded, level by level.
        """
        result = np.zeros(len(candidates))
        if len(candidates) == 1:
            return result
        trie = ChoiceTrie(candidates, self._tokenizer, render=lambda candidate: prefix + candidate)
        nodes, totals = [0], [0.0]
        tokens, ends = yield from self._read([(self._prompt, trie.edge(0))])
        while True:
            choices = self._next_token.score_children(trie, ends, nodes, self._stats)
            below: list[tuple[int, float, _ReadToken]] = []
            for node, total, last, choice in zip(nodes, totals, tokens, choices, strict=True):
                for child, log_probability in zip(trie.children(node), choice.tolist(), strict=True):
                    candidate = int(trie.leaf_choice[child])
                    if candidate >= 0:
                        result[candidate] = total + log_probability
                    else:
                        below.append((child, total + log_probability, last))
            if not below:
                return result
            nodes, totals = [node for node, _, _ in below], [total for _, total, _ in below]
            tokens, ends = yield from self._read([(last, trie.edge(node)) for node, _, last in below])

    def find(self, text: str) -> tuple[np.ndarray, CachedPath]:
        """Of a text behind the prompt, as training tokenises it: the first tokens, int32, that were read, and where."""
        ids = encode_text(self._tokenizer, text)
        end, n_read = self._prompt.follow(ids)
        return ids[:n_read], end.path

    def _read(self, blocks: Sequence[tuple[_ReadToken, np.ndarray]]) -> Writing[tuple[list[_ReadToken], Any]]:
        """Read blocks of tokens behind earlier ones, without what was read there before; but always the last token.

        Returns:
            the blocks' last tokens, and the N ends there.
        """
        new: list[tuple[_ReadToken, np.ndarray]] = []
        for before, ids in blocks:
            known, n_known = before.follow(ids[:-1])
            new.append((known, ids[n_known:]))
        paths, ends = yield [(before.path, ids) for before, ids in new]
        return [before.add(ids, path) for (before, ids), path in zip(new, paths, strict=True)], ends

    def write_text(self, prefix: str, max_tokens: int, stops: str, is_number: bool = False) -> Writing[str]:
        """Write what follows `prefix` up to the first of the characters `stops` (a line break, a comma), on one line.

        Returns:
            the text, white space around it gone; "" where no whole character came.
        """
        kinds = self._kinds
        is_stop = kinds.newline | kinds.comma if "," in stops else kinds.newline
        strange = ~(kinds.number | is_stop) if is_number else np.zeros_like(is_stop)
        text = yield from self._write(
            prefix,
            max_tokens,
            lambda text: any(stop in text for stop in stops),
            kinds.special | is_stop | strange,
            kinds.special | strange,
        )
        text = min((text.partition(stop)[0] for stop in stops), key=len)
        return " ".join(text.replace("\ufffd", " ").split())

    def write_answer(
        self, prefix: str, text: str, max_tokens: int, files: Sequence[str]
    ) -> Writing[tuple[str, str | None]]:
        """Go on with an answer whose beginning is `prefix` and `text`, up to the end token or a file that is none, or
        until it says the same over and over again.

        Returns:
            the answer so far, and None, or the modality of a file whose name the model was about to make up: the text
            then ends before that name.
        """

        def is_done(more: str) -> bool:
            answer, self.answer = text + more, text + more[: self._n_sure]
            is_foreign = bool(answer.strip()) and not isinstance(parse_turn(render_answer(answer)), Answer)
            return is_foreign or goes_in_circles(answer) or _find_made_up(answer, files, is_whole=False) is not None

        special = self._kinds.special
        first_ban = special if not text.strip() else special & ~self._kinds.end
        more = yield from self._write(prefix + text, max_tokens, is_done, first_ban, special)
        self.answer = answer = text + more
        name = _find_made_up(answer, files, is_whole=True)
        if name is None:
            return answer, None
        self.answer = answer[: name.start()]
        return self.answer, name["modality"]

    def write_freely(self, end: Any, max_tokens: int) -> Writing[str]:
        """Write a whole turn without constraints from the prompt's end, as `generate_dialogue`."""
        nothing = np.zeros_like(self._kinds.special)
        text = yield from self._write("", max_tokens, lambda text: TURN_STOP in text, nothing, nothing, end)
        words, stop, _ = text.partition(TURN_STOP)
        return words + stop

    def _write(
        self,
        prefix: str,
        max_tokens: int,
        is_done: Callable[[str], bool],
        first_ban: np.ndarray,
        ban: np.ndarray,
        end: Any = None,
    ) -> Writing[str]:
        """The likeliest tokens behind `prefix`, to the end token, until `is_done` of their text, or to the limit.

        Args:
            first_ban: bool [V], tokens that are not taken while nothing visible is written; nor is a second blank one.
            ban: bool [V], tokens that are never taken later; the end token is never among them.
            end: of the prefix where that has been read already.
        """
        ids = encode_text(self._tokenizer, prefix)
        n_before = len(decode_text(self._tokenizer, ids.tolist()))
        last, produced, text = self._prompt, [], ""
        self._n_sure = 0
        if end is None:
            (last,), end = yield from self._read([(last, ids)])
        while True:
            banned = (
                ban & ~self._kinds.end if text.strip() else first_ban | self._kinds.blank if produced else first_ban
            )
            token: int = yield Likeliest(end, banned)
            self._stats.decisions += 1
            if token == self._tokenizer.eos_token_id:
                return text
            produced.append(token)
            text = decode_text(self._tokenizer, [*ids.tolist(), *produced])[n_before:]
            if not self._kinds.byte[token]:
                self._n_sure = len(text)
            if is_done(text) or len(produced) >= max_tokens:
                return text
            (last,), end = yield from self._read([(last, np.array([token]))])


def goes_in_circles(text: str) -> bool:
    """Whether the last `CIRCLING_CHARS` characters are one piece of at most a third of them, again and again."""
    tail = text[-CIRCLING_CHARS:]
    longest = CIRCLING_CHARS // 3
    return len(tail) == CIRCLING_CHARS and any(tail[n:] == tail[:-n] for n in range(1, longest + 1))


def _find_made_up(answer: str, files: Sequence[str], is_whole: bool) -> re.Match[str] | None:
    """The first file name in an answer that is none of the known ones, nor, unless it is whole, may become one."""

    def is_known(rest: str, file: str) -> bool:
        if rest.startswith(file):
            return not re.match(r"\w", rest[len(file) :])  # scan.tiff is not scan.tif
        return not is_whole and file.startswith(rest)

    names = FILE_NAME.finditer(answer)
    return next((name for name in names if not any(is_known(answer[name.start() :], file) for file in files)), None)
