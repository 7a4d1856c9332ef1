"""A vLLM server's completions over HTTP, by token ids: log probabilities of given tokens, and the likeliest next ones.

Written against vLLM 0.32 (`/v1/completions` with `logprob_token_ids`, `allowed_token_ids`, `prompt_embeds`,
`return_token_ids`). Nothing that comes back is believed in size or form, and nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx2
import numpy as np

from serve.engine.model_engine import EngineUnavailableError

MAX_SCORED_TOKENS = 128  # vLLM's bound on `logprob_token_ids`
MAX_PROMPTS = 64  # of one request
MAX_ANSWER_BYTES = 16 * 2**20
MAX_EVENT_BYTES = 2**20  # the first one of a stream repeats the prompt's ids
_GREEDY = {"temperature": 0, "n": 1, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_TOKEN = "token_id:"

Prompts = Mapping[str, Any]  # {"prompt": ids of each} or {"prompt_embeds": base64 of each}


class VllmServer:
    """One server, for any number of threads."""

    def __init__(self, url: str, api_key: str, n_connections: int, timeout_s: float) -> None:
        """
        Args:
            url: where its `/v1` is below; redirections are not followed, and the environment's proxies not used.
            api_key: "" where it wants none.
            n_connections: requests at the same time; further ones wait.
            timeout_s: between two signs of life.
        """
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        self._url = url.rstrip("/")
        self._client = httpx2.Client(
            base_url=self._url,
            headers=headers,
            timeout=httpx2.Timeout(timeout_s, pool=None),
            limits=httpx2.Limits(max_connections=n_connections, max_keepalive_connections=n_connections),
            trust_env=False,
        )

    def list_models(self) -> dict[str, tuple[str | None, int | None]]:
        """What it serves: name -> (name of the model whose adapter it is, longest sequence), each None if not told."""
        with self._open("GET", "/v1/models", None) as parts:
            answer = self._parse(b"".join(parts))
        try:
            return {str(model["id"]): (model.get("parent"), model.get("max_model_len")) for model in answer["data"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise self.strange("its list of models has another form") from error

    def score(self, model: str, prompts: Prompts, n_prompts: int, token_ids: Sequence[int]) -> tuple[np.ndarray, int]:
        """Log probabilities of tokens behind prompts, over the whole vocabulary.

        Returns:
            float64 [N, U], and how many tokens of the prompts were in the server's cache, 0 where it does not tell.
        """
        result = np.full((n_prompts, len(token_ids)), np.nan)
        n_cached = 0
        for start in range(0, len(token_ids), MAX_SCORED_TOKENS):
            part = [int(token) for token in token_ids[start : start + MAX_SCORED_TOKENS]]
            body = {**prompts, "max_tokens": 1, "logprobs": len(part), "logprob_token_ids": part}
            answer = self._complete(model, {**body, "return_tokens_as_token_ids": True})
            if start == 0:
                n_cached = _cached_tokens(answer)
            try:
                for choice in answer["choices"]:
                    (told,) = choice["logprobs"]["top_logprobs"]
                    row = [float(told[f"{_TOKEN}{token}"]) for token in part]
                    result[choice["index"], start : start + len(part)] = row
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise self.strange("a completion lacks the log probabilities that it was asked for") from error
        if not np.isfinite(result).all():
            raise self.strange("not every log probability that it was asked for is there and finite")
        return result, n_cached

    def pick(self, model: str, ids: Sequence[int], allowed: Sequence[int]) -> int:
        """The likeliest of the allowed tokens behind a prompt."""
        answer = self._complete(
            model, {"prompt": list(ids), "max_tokens": 1, "allowed_token_ids": list(allowed), "return_token_ids": True}
        )
        try:
            (choice,) = answer["choices"]
            (token,) = choice["token_ids"]
            return int(token)
        except (KeyError, TypeError, ValueError) as error:
            raise self.strange("a completion of one token has another number of them") from error

    @contextmanager
    def stream(self, model: str, ids: Sequence[int], max_tokens: int) -> Iterator[Iterator[int]]:
        """The likeliest tokens behind a prompt as they come, to the end token, which is among them, or the limit.

        Leaving the context ends the work there.
        """
        body = {"prompt": list(ids), "max_tokens": max_tokens, "stream": True, "return_token_ids": True}
        with self._open("POST", "/v1/completions", {"model": model, **_GREEDY, **body}) as parts:
            yield self._read_events(parts)

    def _read_events(self, parts: Iterator[bytes]) -> Iterator[int]:
        for line in _split_lines(parts):
            data = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or data == b"[DONE]":
                continue
            event = self._parse(data)
            try:
                tokens = [int(token) for choice in event["choices"] for token in choice["token_ids"] or ()]
            except (KeyError, TypeError, ValueError) as error:
                raise self.strange("an event of a stream has no tokens") from error
            yield from tokens

    def _complete(self, model: str, body: Mapping[str, Any]) -> dict[str, Any]:
        with self._open("POST", "/v1/completions", {"model": model, **_GREEDY, **body}) as parts:
            return self._parse(b"".join(parts))

    @contextmanager
    def _open(self, method: str, path: str, body: Mapping[str, Any] | None) -> Iterator[Iterator[bytes]]:
        """Send a request, and give the parts of the answer as they come.

        Raises:
            EngineUnavailableError: the server refuses it, cannot be reached, breaks off or answers too much.
        """
        try:
            with self._client.stream(method, path, json=body) as response:
                parts = _bounded(response, self._url)
                if response.status_code != 200:
                    raise EngineUnavailableError(
                        f"the vLLM server {self._url} answers {response.status_code}: {_reason(b''.join(parts))}"
                    )
                yield parts
        except httpx2.HTTPError as error:
            raise EngineUnavailableError(f"the vLLM server {self._url}: {type(error).__name__} ({error})") from error

    def _parse(self, raw: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(raw)
        except ValueError as error:
            raise self.strange("it is no JSON") from error
        if not isinstance(answer, dict) or "error" in answer:
            raise self.strange(_reason(raw))
        return answer

    def strange(self, what: str) -> EngineUnavailableError:
        """The error of an answer that cannot be used."""
        return EngineUnavailableError(f"an answer of the vLLM server {self._url} is not as expected: {what}")


def _bounded(response: httpx2.Response, url: str) -> Iterator[bytes]:
    n_bytes = 0
    for part in response.iter_raw():
        n_bytes += len(part)
        if n_bytes > MAX_ANSWER_BYTES:
            raise EngineUnavailableError(f"an answer of the vLLM server {url} is larger than {MAX_ANSWER_BYTES} bytes")
        yield part


def _split_lines(parts: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        yield from lines
        if len(rest) > MAX_EVENT_BYTES:
            raise EngineUnavailableError(f"an event of a vLLM server is larger than {MAX_EVENT_BYTES} bytes")
    yield rest


def _cached_tokens(answer: Mapping[str, Any]) -> int:
    """How many tokens of the prompts the server had read before; it tells with `--enable-prompt-tokens-details`."""
    details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
    n_cached = details.get("cached_tokens")
    return n_cached if isinstance(n_cached, int) else 0


def _reason(raw: bytes) -> str:
    """A server's words, short: they end in a log or in the message of a start that is refused."""
    try:
        answer = json.loads(raw)
        words = str(answer["error"]["message"])
    except (ValueError, KeyError, TypeError):
        words = raw.decode("utf-8", "replace")
    return " ".join(words.split())[:300]
