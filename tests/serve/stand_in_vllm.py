"""A server that answers as vLLM 0.32's completions do, as far as the engine asks it, from any causal language model."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

API_KEY = "stand-in-key"


class StandIn:
    """
    Attributes:
        url: where it listens.
        n_requests: completions that it was asked for.
        spoil: what is answered in the place of every completion, as (status, body), where it is set.
    """

    def __init__(self, models: Mapping[str, Any], max_model_len: int) -> None:
        self.url = ""
        self.n_requests = 0
        self.spoil: tuple[int, bytes] | None = None
        self._models = models
        self._max_model_len = max_model_len
        self._free = threading.Lock()

    def list_models(self) -> dict[str, Any]:
        first = next(iter(self._models))
        return {
            "data": [
                {"id": name, "parent": None if name == first else first, "max_model_len": self._length_of(name, first)}
                for name in self._models
            ]
        }

    def complete(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Choices, one after the other; of a stream one per token."""
        assert body["temperature"] == 0
        llm = self._models[body["model"]]
        assert len(body.get("logprob_token_ids") or ()) <= 128
        embed = llm.get_input_embeddings()
        if "prompt_embeds" in body:
            files = [io.BytesIO(base64.b64decode(text)) for text in body["prompt_embeds"]]
            prompts = [torch.load(file, weights_only=True) for file in files]
        else:
            rows = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
            prompts = [embed(torch.tensor(row)) for row in rows]
        for i, prompt in enumerate(prompts):
            assert len(prompt) + body["max_tokens"] <= self._max_model_len
            for _ in range(body["max_tokens"]):
                logits = llm(inputs_embeds=prompt[None]).logits[0, -1].float()
                allowed = logits
                if body.get("allowed_token_ids"):
                    allowed = torch.full_like(logits, -torch.inf)
                    allowed[body["allowed_token_ids"]] = logits[body["allowed_token_ids"]]
                token = int(allowed.argmax())
                choice: dict[str, Any] = {"index": i, "token_ids": [token]}
                if body.get("logprob_token_ids"):
                    log_p = logits.log_softmax(-1)
                    asked = [token, *body["logprob_token_ids"]]
                    choice["logprobs"] = {"top_logprobs": [{f"token_id:{t}": float(log_p[t]) for t in asked}]}
                yield choice
                prompt = torch.cat([prompt, embed(torch.tensor([token]))])
                if token == llm.config.eos_token_id:
                    break

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.n_requests += 1
        if self.spoil is not None:
            _send(handler, *self.spoil)
            return
        with self._free, torch.inference_mode():
            if not body.get("stream"):
                choices = list(self.complete(body))
                usage = {"prompt_tokens_details": {"cached_tokens": 16}}
                _send(handler, 200, json.dumps({"choices": choices, "usage": usage}).encode())
                return
            handler.send_response(200)
            handler.end_headers()
            for choice in self.complete(body):
                handler.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
            handler.wfile.write(b"data: [DONE]\n\n")

    def _length_of(self, name: str, first: str) -> int | None:
        return self._max_model_len if name == first else None


def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def standing_in(models: Mapping[str, Any], max_model_len: int) -> Iterator[StandIn]:
    """Serve models by their names, each a causal language model, the first one being the others' base."""
    stand_in = StandIn(models, max_model_len)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _send(self, 200, json.dumps(stand_in.list_models()).encode())

        def do_POST(self) -> None:
            if self.headers["Authorization"] != f"Bearer {API_KEY}":
                _send(self, 401, b'{"error": {"message": "Unauthorized"}}')
                return
            with suppress(BrokenPipeError, ConnectionResetError):  # a stream that was left
                stand_in.answer(self)

        def log_message(self, *args: Any) -> None:
            del args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield stand_in
    server.shutdown()
    server.server_close()
