"""The language model on a vLLM server: continuous batching, tensor parallelism and many adapters are the server's.

What decides stays here: the search over the catalogue's trie, the choice between tools, what a turn may hold. It asks
the server for log probabilities of a node's children, and for the likeliest next tokens, and lets it read no more than
that: what a prompt shares with earlier ones is in the server's prefix cache.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch

from data_pipeline.errors import InputError
from model.decode.json_text import WrittenJson
from model.decode.pool import Opinion, ask_head
from model.decode.tools import LeafSearch, RankedTool, calibrate, default_width
from model.decode.trie import ChoiceTrie
from model.decode.turn_types import TurnRequest, WrittenTurn
from model.llm.backbone import load_tokenizer
from model.llm.bundle import Bundle
from model.llm.prompt_embedding import PromptEmbedding
from model.llm.shared_backbone import check_shareable
from serve.engine.choices import N_PARTS, Choices, Question, encode_parts, to_parts, to_ranking
from serve.engine.messages import JsonQuery, PartQuery, RankedParts, Ranking
from serve.engine.model_engine import EngineUnavailableError
from serve.engine.vllm_http import VllmServer
from serve.engine.vllm_reader import PromptReader, ScoreSequences, score_children, to_base64
from serve.engine.vllm_turns import VllmTurns

API_KEY_VARIABLE = "TOOLMM_VLLM_API_KEY"
_TOLERANCE = 0.1  # between a prompt's log probability by token ids and by embeddings: bfloat16's is some 0.02


class VllmEngine:
    """A `ModelEngine`; the server knows each bundle's model by the bundle's revision.

    Its weights are the operator's care: which bundle they are of, only the name says. That its input embeddings are the
    bundle's is tried out at the start.
    """

    def __init__(
        self,
        bundles: Mapping[str, Bundle],
        url: str,
        *,
        n_requests: int = 32,
        timeout_s: float = 60.0,
        dtype: str | None = None,
    ) -> None:
        """
        Args:
            bundles: name -> bundle, over one backbone and encoder.
            url: of the server; its key is in the environment, `TOOLMM_VLLM_API_KEY`.
            n_requests: questions, and as many turns, that are under way at the same time; further ones wait.
            timeout_s: without a sign of life from it.
            dtype: "float32" or "bfloat16", of embeddings that are sent; None: as trained.

        Raises:
            InputError: a bundle needs what vLLM does not give, or the server does not serve it, or does not answer.
        """
        check_shareable(bundles)
        for name, bundle in bundles.items():
            _check_bundle(name, bundle)
        self._bundles = dict(bundles)
        first = next(iter(bundles.values()))
        self._dtype = getattr(torch, dtype or str(first.info.llm_config["dtype"]))
        self.tokenizer = load_tokenizer(first.backbone_source())
        self._choices = Choices(bundles, self.tokenizer)
        self._choices_free = threading.Lock()
        self._server = VllmServer(url, os.environ.get(API_KEY_VARIABLE, ""), 2 * n_requests, timeout_s)
        self._threads = ThreadPoolExecutor(n_requests, thread_name_prefix="vllm")
        self._embeddings: dict[str, PromptEmbedding] = {}
        self._turns: dict[str, VllmTurns] = {}
        self._turns_left = asyncio.Semaphore(n_requests)  # a turn holds a connection from step to step
        self._n_running = 0
        self.largest_batch = 0
        for name, bundle in bundles.items():
            self._embeddings[name], self._turns[name] = self._open_model(name, bundle)

    def longest_answer(self, name: str) -> int:
        return self._choices.longest_answer(name)

    def warm_up(self, questions: Sequence[Question]) -> None:
        for question in questions:
            self.rank(question)

    async def answer(self, question: Question) -> Ranking:
        self._n_running += 1
        self.largest_batch = max(self.largest_batch, self._n_running)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self.rank, question)
        finally:
            self._n_running -= 1

    async def rank_parts(self, name: str, queries: Sequence[PartQuery]) -> list[RankedParts]:
        loop, rank = asyncio.get_running_loop(), partial(self._rank_part, name)
        return await asyncio.gather(*(loop.run_in_executor(self._threads, rank, query) for query in queries))

    async def write_json(self, query: JsonQuery) -> AsyncGenerator[str | WrittenJson, None]:
        raise InputError("this service's engine, vLLM, is not asked for JSON yet; leave response_format out.")
        yield  # a generator, as that of the protocol

    async def write(self, name: str, request: TurnRequest) -> AsyncGenerator[str | WrittenTurn, None]:
        loop, steps, shown = asyncio.get_running_loop(), _Steps(self.write_in_steps(name, request)), ""
        async with self._turns_left:
            try:
                while True:
                    text = await loop.run_in_executor(self._threads, steps.step)
                    if isinstance(text, WrittenTurn):
                        yield text
                        return
                    if text != shown:
                        shown = text
                        yield text
            finally:  # not waited for: a step may be under way still, whose caller has gone
                self._threads.submit(steps.close)

    def write_in_steps(self, name: str, request: TurnRequest) -> Generator[str | WrittenTurn, None, None]:
        """As `write`; each step blocks."""
        return self._turns[name].write(request)

    async def take_over(self, name: str, bundle: Bundle, adopt: Callable[[], Question]) -> None:
        others = {other: known for other, known in self._bundles.items() if other != name}
        check_shareable({**(others or self._bundles), f"{name} (new)": bundle})
        _check_bundle(name, bundle)
        trie = self._choices.build(bundle)
        opened = await asyncio.to_thread(self._open_model, name, bundle)
        with self._choices_free:
            self._choices.put(name, bundle, trie)
            self._bundles[name] = bundle
            self._embeddings[name], self._turns[name] = opened
        adopt()  # nothing to warm up: the server has just been asked

    def rank(self, question: Question) -> Ranking:
        """As `answer`; it blocks."""
        name = question.model
        with self._choices_free:
            bundle, embedding = self._bundles[name], self._embeddings[name]
            also, trie = self._choices.also(name), self._choices.find(name, question.tools, question.takes)
        if question.k < 1:
            raise InputError(f"k is {question.k}; it must be at least 1.")
        if trie.n_nodes == 1:
            found = [RankedTool(trie.choices[0], 1.0)]
        else:
            reader = PromptReader(self._server, bundle.revision, embedding, question.prompt)
            (opinion,) = ask_head(bundle.wide if question.tools is None else None, trie, [question.prompt])
            found = calibrate(search(reader.score, trie, question.k, also, opinion), bundle.info.calibration)
        return to_ranking(question, found, also, bundle, trie.count_tokens)

    def _rank_part(self, name: str, query: PartQuery) -> RankedParts:
        with self._choices_free:
            bundle, embedding = self._bundles[name], self._embeddings[name]
        encoded = encode_parts(self.tokenizer, query, embedding.max_positions)
        if encoded is None:
            return RankedParts([])
        trie, prompt = encoded
        if trie.n_nodes == 1:
            return to_parts(prompt, [RankedTool(trie.choices[0], 1.0)])
        reader = PromptReader(self._server, bundle.revision, embedding, prompt)
        return to_parts(prompt, search(reader.score, trie, N_PARTS, ()))

    def _open_model(self, name: str, bundle: Bundle) -> tuple[PromptEmbedding, VllmTurns]:
        """Look whether the server serves a bundle as it is needed.

        Raises:
            InputError: it does not.
        """
        try:
            served = self._server.list_models()
            if bundle.revision not in served:
                raise InputError(
                    f"the vLLM server does not serve model {name!r}: its bundle's revision, {bundle.revision}, is none "
                    f"of its models ({', '.join(served)[:300]}); start it with --lora-modules {bundle.revision}="
                    f"{bundle.adapter_folder} or with the merged model (docs/engines.md)."
                )
            parent, longest = served[bundle.revision]
            longest = longest or (served[parent][1] if parent in served else None) or 1 << 30
            embedding = PromptEmbedding.load(bundle, self._dtype)
            needed = min(bundle.info.max_target_tokens, embedding.max_positions)
            if longest < needed:
                raise InputError(
                    f"the vLLM server takes {longest} tokens, but model {name!r} was trained on prompts of up to "
                    f"{needed}; start it with a larger --max-model-len."
                )
            self._try_embeddings(name, bundle, embedding)
        except EngineUnavailableError as error:
            raise InputError(f"{error}; docs/engines.md says how the server is started.") from error
        # a turn needs room for one token behind the sequence
        longest = min(longest - 1, embedding.max_positions)
        return embedding, VllmTurns(self._server, bundle.revision, self.tokenizer, longest, embedding.n_tokens)

    def _try_embeddings(self, name: str, bundle: Bundle, embedding: PromptEmbedding) -> None:
        """A prompt's embeddings must mean to the server what its token ids do."""
        ids = self.tokenizer("Which tool does that?").input_ids
        probe = np.array([*ids, ids[-1]], dtype=np.int32)
        by_ids, _ = self._server.score(bundle.revision, {"prompt": [probe.tolist()]}, 1, ids)
        vectors = embedding.embed(probe, np.zeros(int(bundle.info.llm_config["encoder_dim"])))
        by_vectors, _ = self._server.score(bundle.revision, {"prompt_embeds": [to_base64(vectors)]}, 1, ids)
        if (gap := float(np.abs(by_ids - by_vectors).max())) > _TOLERANCE:
            raise InputError(
                f"the vLLM server answers otherwise to model {name!r}'s input embeddings than to their tokens (log "
                f"probabilities differ by {gap:.2g}), so it serves another backbone than the bundle's."
            )


def search(
    score: ScoreSequences, trie: ChoiceTrie, k: int, also: Sequence[str], opinion: Opinion | None = None
) -> list[RankedTool]:
    """The exact k likeliest leaves of a trie with at least two, best first, and those of `also`.

    Args:
        score: of sequences behind the prompt.
        trie: to search.
        k: at least 1.
        also, opinion: see `LeafSearch`.
    """
    leaves = LeafSearch(trie, min(k, len(trie)), also, default_width(k), opinion)
    taken: list[tuple[float, int, Any]] = [(0.0, 0, np.empty(0, dtype=np.int32))]
    while taken:
        sequences = [np.concatenate([before, trie.edge(node)]) for _, node, before in taken]
        choices = score_children(score, trie, sequences, [node for _, node, _ in taken])
        for (total, node, _), sequence, choice in zip(taken, sequences, choices, strict=True):
            leaves.add_children(node, total, sequence, choice)
        taken = leaves.next_nodes()
    return leaves.ranking()


def _check_bundle(name: str, bundle: Bundle) -> None:
    """Refuse what vLLM does not give."""
    if bundle.finds_cards:
        raise InputError(
            f"model {name!r} finds tools by their cards (train.loss.retrieval), for which the last hidden states are "
            "needed, and vLLM's completions do not give these; set engine=local, or train with train.loss.retrieval=0."
        )
    if bundle.info.llm_config.get("quantize", "none") != "none":
        raise InputError(
            f"model {name!r} was trained on a backbone in {bundle.info.llm_config['quantize']}, which vLLM quantises "
            "otherwise; set engine=local."
        )


class _Steps:
    """A turn that is being written, in whatever thread."""

    def __init__(self, steps: Generator[str | WrittenTurn, None, None]) -> None:
        self._steps = steps
        self._is_free = threading.Lock()

    def step(self) -> str | WrittenTurn:
        with self._is_free:
            return next(self._steps)

    def close(self) -> None:
        """Ends its stream, and with it the server's work."""
        with self._is_free:
            self._steps.close()
