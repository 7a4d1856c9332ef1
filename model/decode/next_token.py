"""What decoding asks of a language model: which token comes next behind what was read.

Whatever keeps what was read and answers these questions can decode here: the model in this process, or a server that is
asked over the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from model.decode.tools import score_children
from model.decode.tree_cache import DecodeStats, causal_lm_of, token_logits
from model.decode.trie import ChoiceTrie


@dataclass(frozen=True, eq=False)
class Likeliest:
    """Asks for the likeliest token behind an end among those that bool [V] does not ban; of equal ones the first."""

    end: Any
    banned: np.ndarray


class NextToken(Protocol):
    """The next token behind the ends of sequences; what an end is, the one who reads and the one who answers agree on.

    Attributes:
        tokenizer: of the backbone.
        max_positions: longest sequence that the backbone has positions for.
        n_tokens: V, of the vocabulary's head.
    """

    tokenizer: Any
    max_positions: int
    n_tokens: int

    def score_children(self, trie: ChoiceTrie, ends: Any, nodes: Sequence[int], stats: DecodeStats) -> list[np.ndarray]:
        """Log probabilities (float64) of each node's children among themselves, each node standing at one of N ends."""
        ...

    def likeliest(self, wishes: Sequence[Likeliest]) -> list[int]:
        """The token that each asks for."""
        ...


class LocalNextToken:
    """The model in this process; ends are its last hidden states [N, D]."""

    def __init__(self, mllm: Any) -> None:
        """`mllm` is a `ToolLLM`."""
        self._mllm = mllm
        self.tokenizer = mllm.tokenizer
        self.max_positions: int = mllm.max_positions
        self.n_tokens: int = causal_lm_of(mllm).get_output_embeddings().weight.shape[0]

    def score_children(self, trie: ChoiceTrie, ends: Any, nodes: Sequence[int], stats: DecodeStats) -> list[np.ndarray]:
        return score_children(self._mllm, trie, ends, nodes, stats)

    def likeliest(self, wishes: Sequence[Likeliest]) -> list[int]:
        logits = token_logits(self._mllm, torch.cat([wish.end for wish in wishes]))  # [N, V]
        banned = torch.from_numpy(np.stack([wish.banned for wish in wishes])).to(logits.device)
        return logits.masked_fill_(banned, -torch.inf).argmax(-1).tolist()
