"""A language model that nobody scripted as the teacher of `generate`, behind OpenAI's chat protocol: no test.

Our own service ranks and calls tools, and writes no free text; so this one answers with any causal model of
transformers, requests that wait together as one batch.

    make smollm2
    python tests/measurements/lm_teacher.py runs/backbones/smollm2_135m-* --port 8100
    T='generate.teacher={url: http://127.0.0.1:8100/v1, model: lm, api_key_env: "", timeout_s: 600, max_concurrency: 8}'
    python -m ray_jobs generate generate.captions=captions.jsonl generate.tools_per_prompt=2 generate.judge=true "$T"
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field
from transformers import AutoModelForCausalLM, AutoTokenizer


class Chat(BaseModel):
    """What is asked; other fields of the protocol are ignored."""

    model: str
    messages: list[dict[str, str]] = Field(min_length=1, max_length=20)
    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.7, ge=0, le=2)


class Writer:
    """The model: batches of chats to texts. Each batch is seeded, so equal ones are answered alike."""

    def __init__(self, folder: Path, most_tokens: int) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self._most_tokens = most_tokens

    @torch.inference_mode()
    def write(self, chats: list[Chat]) -> list[dict[str, Any]]:
        texts = [
            self._tokenizer.apply_chat_template(chat.messages, tokenize=False, add_generation_prompt=True)
            for chat in chats
        ]
        batch = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        torch.manual_seed(0)
        temperature = chats[0].temperature
        n_new = min(self._most_tokens, max(chat.max_tokens for chat in chats))
        sampling: dict[str, Any] = {"temperature": temperature} if temperature else {}
        written = self._model.generate(  # [chats, tokens]
            **batch,
            max_new_tokens=n_new,
            do_sample=temperature > 0,
            pad_token_id=self._tokenizer.pad_token_id,
            **sampling,
        )
        replies = []
        for number, row in enumerate(written[:, batch["input_ids"].shape[1] :]):
            n_tokens = int((row != self._tokenizer.pad_token_id).sum())
            text = self._tokenizer.decode(row, skip_special_tokens=True)
            n_prompt = int(batch["attention_mask"][number].sum())
            replies.append({"text": text, "n_prompt": n_prompt, "n_written": n_tokens, "is_cut": n_tokens >= n_new})
        return replies


def build_app(writer: Writer, batch_size: int) -> FastAPI:
    waiting: asyncio.Queue[tuple[Chat, asyncio.Future[dict[str, Any]]]] = asyncio.Queue()

    async def work() -> None:
        while True:
            taken = [await waiting.get()]
            await asyncio.sleep(0.05)  # others of the same moment
            while len(taken) < batch_size and not waiting.empty():
                taken.append(waiting.get_nowait())
            for temperature in {chat.temperature for chat, _ in taken}:  # one batch is sampled one way
                own = [pair for pair in taken if pair[0].temperature == temperature]
                try:
                    replies = await asyncio.to_thread(writer.write, [chat for chat, _ in own])
                except Exception as error:  # noqa: BLE001 - told to those who wait
                    for _, future in own:
                        future.set_exception(error)
                    continue
                for (_, future), reply in zip(own, replies, strict=True):
                    future.set_result(reply)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        worker = asyncio.create_task(work())
        yield
        worker.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/chat/completions")
    async def complete(chat: Chat) -> dict[str, Any]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        await waiting.put((chat, future))
        reply = await future
        message = {"role": "assistant", "content": reply["text"]}
        choice = {"index": 0, "message": message, "finish_reason": "length" if reply["is_cut"] else "stop"}
        usage = {"prompt_tokens": reply["n_prompt"], "completion_tokens": reply["n_written"]}
        total = {"total_tokens": sum(usage.values())}
        return {
            "id": "lm",
            "object": "chat.completion",
            "model": chat.model,
            "choices": [choice],
            "usage": usage | total,
        }

    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path, help="folder of a causal model with a chat template")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--most-tokens", type=int, default=96, help="that an answer may have, whatever is asked for")
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    app = build_app(Writer(options.model, options.most_tokens), options.batch_size)
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
