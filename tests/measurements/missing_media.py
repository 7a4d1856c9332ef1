"""Whether the served agent asks for the picture, sound or video that a request needs, and only then: no test.

    python tests/measurements/missing_media.py http://127.0.0.1:8000
    python tests/measurements/missing_media.py model/weights/agent_smollm2 --config agent_smollm2

The first asks a running service, by OpenAI's client, what is written below. The second puts the dialogues of a corpus
to a bundle's model, as `evaluate` does under constraints: all of them have their files or need none, so none may be
asked for. The corpus is that of `prepare` with the same config.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from openai import OpenAI

from data_pipeline.corpus.files import Corpus
from data_pipeline.records.dialogue import parse_turn, render_answer, render_file_wish
from data_pipeline.sources.toolmm_mini.media_files import MEDIA_KINDS, render_media, seeded_generator
from model.decode import turn as turn_module
from model.decode.dialogue import write_dialogues
from model.llm.bundle import load_bundle
from model.scoring.dialogues import score_dialogues
from ray_jobs.config import load_run_spec
from ray_jobs.evaluate.actors import TrainedModel
from ray_jobs.evaluate.dialogues import DialogueDecoder, DialogueJob, _build_request
from ray_jobs.progress import Progress
from tests.measurements.bundle_calibration import BATCH_SIZE, BundledModel

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


def ask_service(url: str) -> None:
    """Ask the agent each of the requests, and print what it answers where that is not what it should be."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=300)
    model = next(model.id for model in client.models.list() if model.id.endswith("-agent"))
    n_asked = n_lacking = n_wrong = 0
    for media, words, lacking in REQUESTS:
        messages: Any = [{"role": "user", "content": build_content(media, words)}]
        answer = client.chat.completions.create(model=model, messages=messages)
        text = answer.choices[0].message.content or ""
        asks = next((name for name in MEDIA if text == render_file_wish(name)), "")
        n_lacking += bool(lacking)
        n_asked += bool(lacking) and asks == lacking
        n_wrong += not lacking and bool(asks)
        tools = [step["tool_id"] for step in (answer.model_extra or {})["agent"]["steps"]]
        mark = "  " if asks == lacking else "! "
        print(f"{mark}{'+'.join(media) or 'nothing'}: {words} -> {' '.join([*tools, text])[:160]}")
    n_others = len(REQUESTS) - n_lacking
    print(f"asks for what is missing: {n_asked} of {n_lacking}; for what is not: {n_wrong} of {n_others}")


def read_dialogues(bundle_folder: str, config: str, overrides: Sequence[str]) -> None:
    """Write a corpus' test dialogues with and without the rule, and print where it speaks and what it changes."""
    torch.set_num_threads(2)
    spec = load_run_spec(config, overrides)
    corpus, bundle = Corpus.open(spec.corpus_dir), load_bundle(bundle_folder)
    records = sorted((r for r in corpus.records("test") if r.is_dialogue), key=lambda r: len(r.instruction))
    model: TrainedModel = BundledModel({}, bundle_folder, spec.evaluate, Path())
    decoder = DialogueDecoder(DialogueJob(model, {tool.call_name: tool for tool in corpus.catalog}, bundle.finds_cards))

    def write(chosen: Sequence[Any], unit: str) -> list[list[str]]:
        texts: list[list[str]] = []
        with Progress(unit) as progress:
            for start in range(0, len(chosen), BATCH_SIZE):
                batch = chosen[start : start + BATCH_SIZE]
                requests = [_build_request(record.instruction, decoder._job.tools) for record in batch]
                cards = list(map(decoder._find_cards, requests))
                texts += write_dialogues(decoder._writer, requests, [record.turns for record in batch], cards)
                progress.show(len(texts), len(chosen), "dialogues")
        return texts

    wishes = {render_answer(render_file_wish(name)) for name in MEDIA}
    found = write(records, "with the rule")
    speaks = [i for i, texts in enumerate(found) if wishes & set(texts)]
    with mock.patch.object(turn_module, "_find_lacking", return_value=None):
        without = dict(zip(speaks, write([records[i] for i in speaks], "without"), strict=True))
    for i in speaks:
        gold = [parse_turn(turn.text) for turn in records[i].turns[::2]]
        print(f"{records[i].source} {records[i].record_id}: {found[i]}\n  without: {without[i]}\n  right: {gold}")
    before = [without.get(i, texts) for i, texts in enumerate(found)]
    for name, texts in (("without", before), ("with", found)):
        group = score_dialogues(records, texts, ()).headline()
        print(f"{name} the rule: SR_act {group['sr_act']:.3f}, SR {group['sr']:.3f}")
    n_turns = sum(map(len, found))
    print(f"a file is asked for in {len(speaks)} of {len(records)} dialogues ({n_turns} turns)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("agent", help="a service's address, or a bundle")
    parser.add_argument("--config", help="of the corpus whose dialogues the bundle writes")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    if args.config:
        read_dialogues(args.agent, args.config, args.overrides)
    else:
        ask_service(args.agent)


if __name__ == "__main__":
    main()
