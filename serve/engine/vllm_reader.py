"""What a vLLM server is to read of one prompt: token ids, or embeddings where it holds a medium; and what it says of
the nodes of a trie behind it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from model.decode.tools import Prompt
from model.decode.trie import ChoiceTrie
from model.llm.prompt_embedding import PromptEmbedding
from serve.engine.vllm_http import MAX_PROMPTS, Prompts, VllmServer

ScoreSequences = Callable[[Sequence[np.ndarray], Sequence[int]], np.ndarray]
"""(N sequences of tokens int [L], U tokens) -> float64 [N, U], the tokens' log probabilities behind each."""


class PromptReader:
    """One question's prompt on one of the server's models."""

    def __init__(self, server: VllmServer, model: str, embedding: PromptEmbedding, prompt: Prompt) -> None:
        self._server = server
        self._model = model
        self._embedding = embedding
        self._prompt = prompt
        self._before = None if prompt.media is None else embedding.embed(prompt.prompt_ids, prompt.media)  # [P, D]

    def score(self, sequences: Sequence[np.ndarray], token_ids: Sequence[int]) -> np.ndarray:
        """See `ScoreSequences`; the sequences stand behind the prompt."""
        rows = []
        for start in range(0, len(sequences), MAX_PROMPTS):
            part = sequences[start : start + MAX_PROMPTS]
            scores, _ = self._server.score(self._model, self._prompts(part), len(part), token_ids)
            rows.append(scores)
        return np.concatenate(rows)

    def _prompts(self, sequences: Sequence[np.ndarray]) -> Prompts:
        if self._before is None:
            return {"prompt": [[*self._prompt.prompt_ids.tolist(), *sequence.tolist()] for sequence in sequences]}
        behind = [self._embedding.embed_tokens(sequence) for sequence in sequences]
        return {"prompt_embeds": [to_base64(torch.cat([self._before, rows])) for rows in behind]}


def score_children(
    score: ScoreSequences,
    trie: ChoiceTrie,
    sequences: Sequence[np.ndarray],
    nodes: Sequence[int],
) -> list[np.ndarray]:
    """Log probabilities (float64) of each node's children among themselves, node i standing at the end of sequence i.

    What is asked for are the children of all these nodes: over the whole vocabulary, so a softmax over a node's own is
    the difference to their sum.
    """
    firsts = [trie.edge_tokens[trie.edge_start[list(trie.children(node))]] for node in nodes]  # first tokens of edges
    asked = np.unique(np.concatenate(firsts))
    result = []
    for row, tokens in zip(score(sequences, asked.tolist()), firsts, strict=True):
        log_p = row[np.searchsorted(asked, tokens)]
        result.append(log_p - np.logaddexp.reduce(log_p))
    return result


def to_base64(embeds: Tensor) -> str:
    """Embeddings [T, D] as vLLM takes them: torch's file format, which it loads with `weights_only`."""
    file = io.BytesIO()
    torch.save(embeds.contiguous().clone(), file)
    return base64.b64encode(file.getvalue()).decode()
