"""From instructions to dialogues: calls, conversations, chains, and talk that needs no tool (GPT4Tools, section 3).

Positive samples call one tool. Context samples are cut out of longer conversations: what was asked and done before
stands in the history, or two requests are made at once and the second works on what the first one gave. Negative
samples need no tool. Each picture belongs to one split; tools that are held out are asked for in the test
split alone, one call each.
"""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipeline.instruct.captions import CaptionedImage
from data_pipeline.instruct.instructions import IMAGE, Instruction
from data_pipeline.instruct.talk import Talk
from data_pipeline.records.catalog import Tool
from data_pipeline.records.dialogue import (
    render_answer,
    render_call,
    render_dialogue_prompt,
    render_exchange,
    render_image_note,
    render_observation,
)

Kind = Literal["positive", "context", "chain", "negative"]

OFFERED = (3, 8)  # smallest and largest number of tools in a prompt
VAL_FRAC = 0.033  # of the pictures; 1,170 of GPT4Tools' 35.7 thousand items with tools
TEST_FRAC = 0.02  # of the pictures, where tools are held out; 652 of them there
CONTEXT_FRAC = 0.3  # of the pictures with two instructions or more give a conversation, and as many a chain
_NO_IMAGE_FRAC = 0.5  # of the negative samples know no picture
_JOINS = ("{first} Then {second}", "{first} After that, {second}", "First: {first} Second: {second}")


@dataclass(frozen=True)
class Sample:
    """A row in GPT4Tools' form, and what it is.

    Attributes:
        sample_id: unique among those of one run.
        split: "train", "val" or "test".
        kind: how it was made.
        instruction: the whole prompt.
        output: the assistant's turns and what it read between them.
        tools: call names of the tools that it calls, in order.
        image: the place of its picture among all pictures.
    """

    sample_id: str
    split: str
    kind: Kind
    instruction: str
    output: str
    tools: tuple[str, ...]
    image: int

    def to_row(self) -> dict[str, str]:
        """As the released files have it."""
        return {"id": self.sample_id, "instruction": self.instruction, "input": "", "output": self.output}


def assign_splits(n_images: int, holds_out: bool, seed: int) -> list[str]:
    """The split of each picture; at least one is in each split, as far as there are three.

    Args:
        n_images: how many pictures there are.
        holds_out: whether some tools are for the test split alone; without any there is no test split.
        seed: of the draw.
    """
    order = np.random.default_rng([seed, n_images]).permutation(n_images).tolist()
    n_val = max(1, round(VAL_FRAC * n_images)) if n_images > 1 else 0
    n_test = max(1, round(TEST_FRAC * n_images)) if holds_out and n_images > 2 else 0
    splits = ["train"] * n_images
    for place in order[:n_val]:
        splits[place] = "val"
    for place in order[n_val : n_val + n_test]:
        splits[place] = "test"
    return splits


def build_samples(
    image: CaptionedImage,
    number: int,
    split: str,
    instructions: Sequence[Instruction],
    talks: Sequence[Talk],
    tools: Sequence[Tool],
    seed: int,
) -> Iterator[Sample]:
    """Yield the samples of one picture; the same arguments give the same ones.

    Args:
        image: the picture.
        number: its place among all pictures.
        split: its split; in the test split there are single calls alone.
        instructions: what was kept of the teacher's.
        talks: exchanges without a tool.
        tools: that may be offered in this split.
        seed: of everything that is drawn.
    """
    draw = _Draw(np.random.default_rng([seed, number]), number)
    for each in instructions:
        yield draw.single(image, each, tools, split)
    if split == "test":
        return
    for first, second in zip(instructions[::2], instructions[1::2], strict=False):
        if draw.happens(CONTEXT_FRAC):
            yield draw.conversation(image, first, second, tools, split)
        if draw.happens(CONTEXT_FRAC) and first.tool.output_modality == "image" and IMAGE in second.arguments:
            yield draw.chain(image, first, second, tools, split)
    for talk in talks:
        yield draw.negative(image, talk, tools, split)


class _Draw:
    """The samples of one picture."""

    def __init__(self, rng: np.random.Generator, number: int) -> None:
        self._rng = rng
        self._number = number
        self._n = 0

    def happens(self, frac: float) -> bool:
        return bool(self._rng.random() < frac)

    def single(self, image: CaptionedImage, asked: Instruction, tools: Sequence[Tool], split: str) -> Sample:
        name = self._name()
        return self._build(
            "positive",
            split,
            [asked.tool],
            tools,
            render_image_note(name, image.caption),
            asked.words.replace(IMAGE, name),
            _call(asked, name),
        )

    def conversation(
        self, image: CaptionedImage, first: Instruction, second: Instruction, tools: Sequence[Tool], split: str
    ) -> Sample:
        """The first request was met before; the second one is about the picture, or about what came out."""
        name = self._name()
        made = self._name() if first.tool.output_modality == "image" else ""
        reply = f"Here it is: {made}" if made else "It is done."
        current = made if made and self.happens(0.5) else name
        note = render_image_note(name, image.caption)
        before = render_exchange(first.words.replace(IMAGE, name), reply)
        words = second.words.replace(IMAGE, current)
        if current not in words:
            words = f"Take {current} now. {words}"
        history = f"{note}\n{before}"
        return self._build("context", split, [second.tool], tools, history, words, _call(second, current))

    def chain(
        self, image: CaptionedImage, first: Instruction, second: Instruction, tools: Sequence[Tool], split: str
    ) -> Sample:
        name, made = self._name(), self._name()
        join = _JOINS[int(self._rng.integers(len(_JOINS)))]
        words = join.format(first=_sentence(first.words), second=_sentence(second.words)).replace(IMAGE, name)
        output = _call(first, name) + render_observation(made) + _call(second, made)
        note = render_image_note(name, image.caption)
        return self._build("chain", split, [first.tool, second.tool], tools, note, words, output)

    def negative(self, image: CaptionedImage, talk: Talk, tools: Sequence[Tool], split: str) -> Sample:
        history = "" if self.happens(_NO_IMAGE_FRAC) else render_image_note(self._name(), image.caption)
        return self._build("negative", split, [], tools, history, talk.words, render_answer(talk.answer))

    def _build(
        self,
        kind: Kind,
        split: str,
        called: Sequence[Tool],
        tools: Sequence[Tool],
        history: str,
        words: str,
        output: str,
    ) -> Sample:
        others = [tool for tool in tools if tool not in called]
        count = max(int(self._rng.integers(OFFERED[0], OFFERED[1] + 1)) - len(set(called)), 1)
        offered = [*dict.fromkeys(called), *(others[i] for i in self._rng.permutation(len(others))[:count])]
        offered = [offered[i] for i in self._rng.permutation(len(offered))]
        prompt = render_dialogue_prompt(offered, history, " ".join(words.split()))
        self._n += 1
        names = tuple(tool.call_name for tool in called)
        return Sample(f"{self._number:06d}-{self._n:03d}", split, kind, prompt, output, names, self._number)

    def _name(self) -> str:
        """A file that nobody else speaks of."""
        letters = self._rng.integers(len(string.ascii_lowercase), size=8)
        return f"image/{''.join(string.ascii_lowercase[i] for i in letters)}.png"


def _call(asked: Instruction, image: str) -> str:
    return render_call(asked.tool.call_name, ", ".join(value.replace(IMAGE, image) for value in asked.arguments))


def _sentence(words: str) -> str:
    return words if words[-1:] in ".?!" else f"{words}."


def count_kinds(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """split -> kind -> how many."""
    counts: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for sample in samples:
        counts[sample.split][sample.kind] += 1
    return {split: dict(kinds) for split, kinds in counts.items()}
