"""Tool cards beside a micro step's questions: what the retriever learns from (DESIGN, idea 10).

A card is a tool's name and description as tokens. The last token of a question's prompt and the last one of a card give
the two vectors that are compared; a question learns to be nearer to its right tools' cards than to the others at hand.
So does a dialogue in front of each of its calls: what it has read there comes nearest to the card of the next tool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.batches.encoding import EncodedQuestion, encode_bos, encode_text
from data_pipeline.records.prompts import render_card

MAX_CARD_TOKENS = 96
NAMELESS_SHARE = 0.5  # of the cards that training shows: what a tool does has to be told from its description


@dataclass(frozen=True, eq=False)
class CardForm:
    """The cards that training shows.

    Attributes:
        tools: int [n], the tools that some training question is answered with or some dialogue calls, by their numbers.
        named: the tokens of every tool's card, in the order of these numbers.
        nameless: likewise, without the tools' names; with them where there is no description.
        n_cards: cards of one micro step of a rank, unless its questions have more right tools.
        seed: chooses the others.
    """

    tools: np.ndarray
    named: tuple[np.ndarray, ...]
    nameless: tuple[np.ndarray, ...]
    n_cards: int
    seed: int

    def draw(self, right: Sequence[Sequence[int]], step: int, rank: int, micro: int) -> list[tuple[int, np.ndarray]]:
        """The cards of one micro step: those of its right tools, and others drawn at random; (tool, tokens) of each.

        Args:
            right: for everything that is asked its right tools, by number.
            step, rank, micro: which micro step it is.
        """
        generator = np.random.default_rng([self.seed, step, rank, micro])
        shown = dict.fromkeys(tool for tools in right for tool in tools)
        others = [tool for tool in generator.permutation(self.tools).tolist() if tool not in shown]
        drawn = [*shown, *others[: max(0, self.n_cards - len(shown))]]
        nameless = generator.random(len(drawn)) < NAMELESS_SHARE
        return [(t, (self.nameless if bare else self.named)[t]) for t, bare in zip(drawn, nameless, strict=True)]


@dataclass(frozen=True, eq=False)
class RetrievalTerms:
    """What a batch's questions are to be nearest to: Q questions, K cards; positions index the flattened tokens.

    Attributes:
        question: int32 [Q]; the last token of each question's prompt, or in front of a dialogue's call.
        card: int32 [K]; the last token of each card.
        is_right: uint8 [Q, K].
        weight: float32 [Q]; of each question's loss.
    """

    question: np.ndarray
    card: np.ndarray
    is_right: np.ndarray
    weight: np.ndarray

    @classmethod
    def empty(cls) -> RetrievalTerms:
        nothing = np.zeros(0, dtype=np.int32)
        return cls(nothing, nothing, np.zeros((0, 0), dtype=np.uint8), nothing.astype(np.float32))


def encode_card(tokenizer: Any, name: str, description: str, *, has_name: bool = True) -> np.ndarray:
    """A card as tokens: int32 [T], at most `MAX_CARD_TOKENS`, bos first; its description's end is what is cut.

    Args:
        tokenizer: as of `encode_question`.
        name: what the tool is called (`Tool.call_name`).
        description: of the catalogue's entry.
        has_name: False leaves the name out; one without a description keeps it.
    """
    bos = encode_bos(tokenizer)
    beginning, end = render_card(name if has_name or not description else "", description)
    end_ids = encode_text(tokenizer, end)
    kept = encode_text(tokenizer, beginning)[: MAX_CARD_TOKENS - len(end_ids) - len(bos)]
    return np.concatenate([bos, kept, end_ids])


def as_question(card: np.ndarray) -> EncodedQuestion:
    """A card as something to pack: a prompt that nothing answers."""
    return EncodedQuestion(card, [])
