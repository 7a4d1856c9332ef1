"""Whether the served agent asks for the picture, sound or video that a request needs, and only then: no test.

    python tests/measurements/missing_media.py http://127.0.0.1:8000
    python tests/measurements/missing_media.py model/weights/agent_smollm2 --config agent_smollm2

The first asks a running service, by OpenAI's client, what is written below and in manners.yaml, and counts by the kinds
of requests that stand there. The second puts the dialogues of a corpus
to a bundle's model, as an agent is served: as they are, when they have their files or need none, and without the file
that they are about. The corpus is that of `prepare` with the same config.
"""

from __future__ import annotations

import argparse
import base64
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from openai import OpenAI

from data_pipeline.batches.cards import encode_card
from data_pipeline.batches.encoding import encode_question
from data_pipeline.corpus.files import Corpus
from data_pipeline.records.catalog import Tool
from data_pipeline.records.dialogue import (
    ToolCall,
    find_files,
    parse_dialogue_prompt,
    parse_turn,
    render_answer,
    render_file_wish,
)
from data_pipeline.records.schema import ToolRecord
from data_pipeline.sources.toolmm_mini.media_files import MEDIA_KINDS, render_media, seeded_generator
from model.decode.retrieval import compare_with_cards, encode_vectors
from model.decode.tools import Prompt
from model.decode.turn import _find_lacking
from model.decode.turn_types import TurnRequest
from model.llm.bundle import load_bundle
from model.llm.tool_llm import ToolLLM
from ray_jobs.config import load_run_spec
from ray_jobs.evaluate.dialogues import DialogueDecoder, DialogueJob, _build_request
from ray_jobs.progress import Progress
from serve.agent.shortlist import weigh_inputs
from tests.measurements.bundle_calibration import BATCH_SIZE, BundledModel

_NOTES = re.compile(r"Human: Provide (?:an image|a sound|a video) named [^\n]*\nAI: Received\.\n+")
MEDIA = {modality.value: modality for modality in MEDIA_KINDS}
# the media that come with the words, the words, the medium that they lack
REQUESTS: list[tuple[tuple[str, ...], str, str]] = [
    ((), "Draw the edges of this picture", "image"),
    ((), "Draw the edges of this picture, then find its size.", "image"),
    ((), "Sharpen this photo, please.", "image"),
    ((), "How large is my picture in pixels?", "image"),
    ((), "Could you remove the haze from this photo?", "image"),
    ((), "Find all the faces in the photo.", "image"),
    ((), "What pitch does this sound have?", "audio"),
    ((), "Remove the background noise from my recording.", "audio"),
    ((), "How many beats per minute does this song have?", "audio"),
    ((), "Save the key frames of this video.", "video"),
    ((), "Cut my clip at its scene changes.", "video"),
    (("image",), "Remove the mains hum from this recording.", "audio"),
    (("audio",), "Draw the edges of this picture", "image"),
    ((), "hi", ""),
    ((), "What can you do?", ""),
    ((), "Thanks, that was all.", ""),
    ((), "Who are you?", ""),
    ((), "Tell me a joke.", ""),
    ((), "Good morning, how are you today?", ""),
    ((), "What is the capital of France?", ""),
    ((), "Can you work with videos too?", ""),
    ((), "I like it very much.", ""),
    ((), "What is the weather in Paris?", ""),
    ((), "Write a poem about the sea.", ""),
    ((), "Paint a picture of a castle at sunset.", ""),
    ((), "Help!", ""),
    (("image",), "Draw the edges of this picture", ""),
    (("image",), "Sharpen this photo, please.", ""),
    (("image",), "How large is my picture in pixels?", ""),
    (("image",), "Thank you!", ""),
    (("audio",), "What pitch does this sound have?", ""),
    (("audio",), "Remove the background noise from my recording.", ""),
    (("video",), "Save the key frames of this video.", ""),
    (("image", "audio"), "How many beats per minute does this song have?", ""),
]


def build_content(media: Sequence[str], words: str) -> list[dict[str, Any]]:
    """A user's message: media of ToolMM-mini, and words."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": words}]
    for name in media:
        modality = MEDIA[name]
        made = render_media(modality, MEDIA_KINDS[modality][0], seeded_generator("missing_media", 0))
        data = base64.b64encode(made).decode()
        if name == "image":
            parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
        else:
            parts.append({"type": f"input_{name}", f"input_{name}": {"data": data}})
    return parts


def list_requests() -> Iterator[tuple[str, tuple[str, ...], str, str]]:
    """Kind, media, words and the medium that they lack, of all requests."""
    yield from (("first list", *request) for request in REQUESTS)
    kinds = yaml.safe_load(Path(__file__).with_name("manners.yaml").read_text(encoding="utf-8"))
    for kind, rows in kinds.items():
        yield from ((kind, tuple(row.get("media", ())), row["words"], row.get("lacks", "")) for row in rows)


def ask_service(url: str, kinds: Sequence[str], *, is_agent: bool) -> None:
    """Ask the agent, or the model that chooses one tool, each of the requests, and print what it answers; those that it
    should not have are marked."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=300)
    model = next(model.id for model in client.models.list() if model.id.endswith("-agent") == is_agent)
    n_all: Counter[str] = Counter()
    n_right: Counter[str] = Counter()
    for kind, media, words, lacking in list_requests():
        if (kinds and kind not in kinds) or (len(media) > 1 and not is_agent):  # which a choice of one tool refuses
            continue
        messages: Any = [{"role": "user", "content": build_content(media, words)}]
        answer = client.chat.completions.create(model=model, messages=messages)
        message = answer.choices[0].message
        text = message.content or ""
        asks = next((name for name in MEDIA if text == render_file_wish(name)), "")
        n_all[kind] += 1
        n_right[kind] += asks == lacking
        tools = [step["tool_id"] for step in (answer.model_extra or {}).get("agent", {}).get("steps", ())]
        tools += [call.function.name for call in message.tool_calls or () if call.type == "function"]
        mark = "  " if asks == lacking else "! "
        print(f"{mark}{'+'.join(media) or 'nothing'}: {words} -> {' '.join([*tools, text])[:160]}")
    for kind, n in n_all.items():
        print(f"{kind}: {n_right[kind]} of {n} ask for what is missing, or for nothing where nothing is")


def list_turns(record: ToolRecord, tools: Mapping[str, Tool]) -> Iterator[TurnRequest]:
    """The turns of a dialogue at which some offered tool lacks its file, each behind the right ones."""
    request = replace(_build_request(record.instruction, tools), max_answer_tokens=1)
    for turn in range(0, len(record.turns), 2):
        before = record.turns[:turn]
        made = [name for each in before[1::2] for name in find_files(each.text)]
        now = replace(request, turns=before, files=tuple(dict.fromkeys((*reversed(made), *request.files))))
        if any(_find_lacking(now, tool.name) for tool in now.tools):
            yield now


def take_file_away(record: ToolRecord, tools: Mapping[str, Tool]) -> tuple[str, TurnRequest] | None:
    """The first turn of a dialogue about a file that its words do not name, without that file; before it the file's
    modality. None for another dialogue, or one that calls nothing."""
    files = _build_request(record.instruction, tools).files
    request = _build_request(_NOTES.sub("", record.instruction), tools)
    if not files or request.files or not isinstance(parse_turn(record.turns[0].text), ToolCall):
        return None
    return files[0].partition("/")[0], replace(request, max_answer_tokens=1)


class InputShares:
    """What the agent is told of a dialogue's words beside the prompt (`serve.chat.tool_offers`): how likely it is that
    they need a file of a modality of which there is none."""

    def __init__(self, mllm: ToolLLM, tools: Sequence[Tool], max_tokens: int) -> None:
        self._mllm = mllm
        self._max_tokens = max_tokens
        self._inputs = {tool.tool_id: tool.input_modality for tool in tools}
        self._tools = tools
        cards = [encode_card(mllm.tokenizer, tool.call_name, tool.description) for tool in tools]
        parts = [cards[start : start + BATCH_SIZE] for start in range(0, len(cards), BATCH_SIZE)]
        self._cards = np.concatenate([encode_vectors(mllm, [Prompt(card) for card in part]) for part in parts])
        self._found: dict[str, dict[str, float]] = {}

    def add_to(self, request: TurnRequest) -> TurnRequest:
        words = parse_dialogue_prompt(request.prompt).new_input
        if words not in self._found:
            encoded = encode_question(
                self._mllm.tokenizer, words, False, (), max_target_tokens=self._max_tokens, reserve_tokens=64
            )
            (by_card,) = compare_with_cards(encode_vectors(self._mllm, [Prompt(encoded.prompt_ids)]), self._cards)
            self._found[words] = weigh_inputs(zip(self._tools, by_card.tolist(), strict=True), self._inputs)
        there = {name.partition("/")[0] for name in request.files}
        share = sum(self._found[words].get(name, 0.0) for name in MEDIA if name not in there)
        return replace(request, lacking_share=share)


def read_dialogues(bundle_folder: str, split: str, config: str, overrides: Sequence[str]) -> None:
    """Write the turns at which a file could be asked for, of dialogues as they are and with their files taken away."""
    torch.set_num_threads(2)
    spec = load_run_spec(config, overrides)
    corpus, bundle = Corpus.open(spec.corpus_dir), load_bundle(bundle_folder)
    tools = {tool.call_name: tool for tool in corpus.catalog}
    decoder = DialogueDecoder(DialogueJob(BundledModel({}, bundle_folder, spec.evaluate, Path()), tools, True))
    assert bundle.finds_cards, "the bundle's model finds no cards, so it asks for no file"
    shares = InputShares(decoder._mllm, list(corpus.catalog), bundle.info.max_target_tokens)

    def write(requests: Sequence[TurnRequest], unit: str) -> list[str]:
        texts: list[str] = []
        with Progress(unit) as progress:
            for start in range(0, len(requests), BATCH_SIZE):
                batch = [shares.add_to(request) for request in requests[start : start + BATCH_SIZE]]
                turns = [decoder._writer.encode(request, decoder._find_cards(request)) for request in batch]
                texts += [written.text for written in decoder._writer.write(turns)]
                progress.show(len(texts), len(requests), "turns")
        return texts

    wishes = {render_answer(render_file_wish(name)): name for name in MEDIA}
    records = sorted((r for r in corpus.records(split) if r.is_dialogue), key=lambda record: len(record.instruction))
    turns = [(record, request) for record in records for request in list_turns(record, tools)]
    asked = set()
    for (record, _), text in zip(turns, write([request for _, request in turns], "as they are"), strict=True):
        if text in wishes:
            asked.add(record.record_id)
            print(f"{record.record_id}: {wishes[text]} for {parse_dialogue_prompt(record.instruction).new_input!r}")
    print(
        f"a file is asked for in {len(asked)} of {len(records)} dialogues that need none ({len(turns)} turns written)"
    )
    robbed = [found for record in records if (found := take_file_away(record, tools))]
    texts = write([request for _, request in robbed], "without files")
    n_right = sum(wishes.get(text) == modality for (modality, _), text in zip(robbed, texts, strict=True))
    n_asked = sum(text in wishes for text in texts)
    print(
        f"of {len(robbed)} whose file was taken away it is asked for in {n_right}, another one in {n_asked - n_right}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("agent", help="a service's address, or a bundle")
    parser.add_argument("--config", help="of the corpus whose dialogues the bundle writes")
    parser.add_argument("--split", default="test")
    parser.add_argument("--kinds", nargs="*", default=(), help="of the requests to a service; default: all")
    parser.add_argument("--plain", action="store_true", help="ask the model that chooses one tool, not the agent")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    if args.config:
        read_dialogues(args.agent, args.split, args.config, args.overrides)
    else:
        ask_service(args.agent, args.kinds, is_agent=not args.plain)


if __name__ == "__main__":
    main()
