"""The recipe `dialogues`: what users of pictures may want of tools, as GPT4Tools makes its data."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.instruct.captions import CaptionedImage, read_captions
from data_pipeline.instruct.cases import Case, DialogueForm
from data_pipeline.instruct.instructions import (
    IMAGE_ARGUMENT,
    Instruction,
    Noise,
    parse_reply,
    render_teacher_prompt,
)
from data_pipeline.instruct.samples import Sample, assign_splits, build_samples
from data_pipeline.instruct.structured import INSTRUCTIONS, to_instruction_lines
from data_pipeline.instruct.talk import Talk, parse_talk, render_talk_prompt
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool, ToolCatalog
from data_pipeline.records.schema import SPLITS
from data_pipeline.records.text import words_key
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS, UNSEEN_TOOL_IDS
from data_pipeline.teacher.client import Teacher
from data_pipeline.teacher.requests import TeacherRequest
from ray_jobs.config import RunSpec
from ray_jobs.generate.asking import CACHE, FOLDER, ask, describe_usage, estimate
from ray_jobs.generate.media import find_file
from ray_jobs.generate.report import render_report
from ray_jobs.generate.row_files import RowFiles
from ray_jobs.generate.trials import Chain, build_chain
from ray_jobs.generate.verification import Medium, Verification, describe_review
from ray_jobs.generate_options import GenerateOptions

PICTURES_AT_ONCE = 2000  # asked about, checked and written before the next: memory does not grow with the pictures
_TOKENS_PER_INSTRUCTION = 40


@dataclass(frozen=True)
class Asked:
    """One request: for which picture, with which tools; () asks for talk."""

    image: int
    tools: tuple[Tool, ...]


@dataclass(frozen=True)
class Plan:
    """What is asked: the pictures with their splits and the tools that instructions are wanted for.

    Attributes:
        images: in order.
        splits: of each.
        left_out: rows of captions that could not be used, by reason.
        seen, unseen: tools by where they may be asked for.
        options: of the run.
        seed: of what is drawn.
    """

    images: list[CaptionedImage]
    splits: list[str]
    left_out: dict[str, int]
    seen: list[Tool]
    unseen: list[Tool]
    options: GenerateOptions
    seed: int

    @property
    def tools(self) -> list[Tool]:
        return [*self.seen, *self.unseen]

    def ask(self, first: int = 0, end: int | None = None) -> Iterator[Asked]:
        """The requests about the pictures first .. end - 1, drawn anew whenever they are asked for."""
        for number, split in enumerate(self.splits[first:end], first):
            rng = np.random.default_rng([self.seed, number])
            pool = self.unseen if split == "test" else self.seen
            yield Asked(number, tuple(pool[i] for i in rng.permutation(len(pool))[: self.options.tools_per_prompt]))
            if split != "test" and rng.random() < self.options.talk_frac:
                yield Asked(number, ())

    def parts(self) -> Iterator[list[Asked]]:
        """The requests about `PICTURES_AT_ONCE` pictures after the other."""
        for first in range(0, len(self.images), PICTURES_AT_ONCE):
            yield list(self.ask(first, first + PICTURES_AT_ONCE))

    def render(self, asked: Asked) -> TeacherRequest:
        """What is sent for one request."""
        image = self.images[asked.image]
        if not asked.tools:
            return TeacherRequest((("user", render_talk_prompt(image)),))
        prompt = render_teacher_prompt(image, asked.tools)
        return TeacherRequest((("user", prompt),), schema=INSTRUCTIONS if self.options.is_structured else None)


@dataclass
class _Found:
    """What came of one picture."""

    instructions: list[Instruction] = field(default_factory=list)
    talks: list[Talk] = field(default_factory=list)


@dataclass
class _Taken:
    """What came of one part's requests."""

    found: dict[int, _Found] = field(default_factory=dict)  # by picture
    noise: dict[int, list[Noise]] = field(default_factory=dict)  # by request


def run(spec: RunSpec, teacher: Teacher) -> dict[str, Any]:
    """The recipe: see `ray_jobs.generate.job.run`."""
    plan = make_plan(spec.generate, spec.seed)
    verification = Verification(spec)
    errors: list[str] = []
    n_requests = sum(1 for _ in plan.ask())
    said = np.zeros(0, dtype=np.uint64)  # hashes of all instructions so far, sorted
    folder = spec.run_dir / FOLDER
    with storage.replacing_folder(folder) as new, storage.staged_locally(new) as local:
        with RowFiles(local) as files:
            n_asked = 0

            rejected: Counter[str] = Counter()

            def make(part: list[Asked], said: np.ndarray) -> np.ndarray:
                """One part's samples; a function, so that nothing of it is left when the next one's are made."""
                taken = _ask(teacher, plan, part, n_asked, n_requests, errors, rejected)
                samples, said = _build(plan, taken.found, files, said)
                rows = _verify(verification, spec.generate, plan, samples, teacher, errors)
                files.add(samples, rows, [line for number in sorted(taken.noise) for line in taken.noise[number]])
                return said

            for part in plan.parts():
                said = make(part, said)
                n_asked += len(part)
                if teacher.is_budget_spent:
                    break
            files.add_errors(sorted(errors))
        if not files.samples:
            reasons = dict(files.rejected) or errors[:1]
            raise InputError(
                f"nothing of the teacher's answers can be used ({reasons}); look at {spec.work_dir / CACHE}."
            )
        counts: dict[str, Any] = {
            "images": len(plan.images),
            "captions_left_out": plan.left_out,
            **describe_usage(teacher),
            "kept": files.n_kept,
            "rejected": dict(files.rejected),
            "repeated": files.n_repeated,
            "samples": {split: dict(kinds) for split, kinds in files.kinds.items()},
            "checks": verification.counts,
        }
        report = render_report(counts, files.samples, files.noise)
        storage.write_file(local / "report.md", report + "\n")
        review = verification.write()
    print(report)
    print(f"written to {folder}; read it with prepare.source=gpt4tools prepare.path={folder}")
    print(describe_review(verification, review))
    return {"generated": str(folder), **counts}


def run_dry(spec: RunSpec) -> dict[str, Any]:
    """See `ray_jobs.generate.job.run_dry`."""
    plan = make_plan(spec.generate, spec.seed)
    splits = Counter(plan.splits)
    print(f"pictures         {len(plan.images):,} ({', '.join(f'{split} {splits[split]:,}' for split in SPLITS)})")
    print(f"tools            {len(plan.seen)} asked for in training, {len(plan.unseen)} in the test split alone")
    n_lines = sum(max(4, len(asked.tools)) for asked in plan.ask())
    tokens = _TOKENS_PER_INSTRUCTION * n_lines
    requests = [plan.render(asked) for asked in plan.ask()]
    n_judgements = 2 * n_lines if spec.generate.judge else 0
    return estimate(spec, requests, n_judgements, tokens / max(1, len(requests) + n_judgements))


def make_plan(options: GenerateOptions, seed: int) -> Plan:
    """Which picture is asked for what; a function of the arguments alone.

    Raises:
        InputError: no captions, or tools that cannot be asked for.
    """
    if options.captions is None:
        raise InputError("generate.captions is not set; give a file with image and caption, or COCO's annotations.")
    images, left_out = read_captions(options.captions)
    images = images[: options.limit]
    seen, unseen = _load_tools(options)
    return Plan(images, assign_splits(len(images), bool(unseen), seed), left_out, seen, unseen, options, seed)


def _load_tools(options: GenerateOptions) -> tuple[list[Tool], list[Tool]]:
    if options.tools is None:
        tools = list(GPT4TOOLS_TOOLS)
        default = [tool.call_name for tool in tools if tool.tool_id in UNSEEN_TOOL_IDS]
    else:
        listed = [tool for tool in ToolCatalog.load_jsonl(options.tools) if tool.tool_id != UNKNOWN_TOOL_ID]
        tools = [_with_arguments(tool) for tool in listed if tool.input_modality not in ("audio", "video")]
        if len(tools) < len(listed):
            print(f"generate: {len(listed) - len(tools)} tools take a sound or a video and are not asked for")
        default = []
        for tool in tools:
            if not (tool.usage or tool.description):
                raise InputError(
                    f"tool {tool.tool_id!r} of {options.tools} says nothing of what it does; give it a description."
                )
    names = options.unseen_tools if options.unseen_tools is not None else default
    strangers = sorted(set(names) - {tool.call_name for tool in tools})
    if strangers:
        raise InputError(f"generate.unseen_tools names {', '.join(strangers)}, which the catalogue has not; drop them.")
    seen = [tool for tool in tools if tool.call_name not in names]
    if not seen:
        raise InputError("no tool is left to train on: generate.unseen_tools names all of them; leave some out.")
    return seen, [tool for tool in tools if tool.call_name in names]


def _with_arguments(tool: Tool) -> Tool:
    """A tool that does not say what it takes takes what it is for."""
    own = (IMAGE_ARGUMENT,) if tool.input_modality == "image" else ("text",)
    return replace(tool, arguments=tool.arguments or own)


def _ask(
    teacher: Teacher,
    plan: Plan,
    part: list[Asked],
    n_before: int,
    n_requests: int,
    errors: list[str],
    rejected: Counter[str],
) -> _Taken:
    taken = _Taken()

    def take(number: int, text: str) -> list[str]:
        asked = part[number]
        own = taken.found.setdefault(asked.image, _Found())
        if not asked.tools:
            kept, n_left_out = parse_talk(text)
            own.talks += kept
            return ["talk"] * n_left_out
        lines = parse_reply(to_instruction_lines(text), asked.tools, plan.tools)
        own.instructions += [line for line in lines if isinstance(line, Instruction)]
        taken.noise[number] = [line for line in lines if isinstance(line, Noise)]
        return [line.reason for line in taken.noise[number]]

    ask(teacher, [plan.render(asked) for asked in part], "requests", take, errors, n_before, n_requests, rejected)
    return taken


def _build(plan: Plan, found: dict[int, _Found], files: RowFiles, said: np.ndarray) -> tuple[list[Sample], np.ndarray]:
    """All samples in the order of the pictures, and the hashes of all words so far, these included; an instruction
    whose words were there before is left out."""
    samples: list[Sample] = []
    keys = {number: [_hash_words(each.words) for each in found[number].instructions] for number in sorted(found)}
    own = np.array([key for each in keys.values() for key in each], dtype=np.uint64)
    before = set(own[np.isin(own, said)].tolist())
    for number, own_keys in keys.items():
        instructions = found[number].instructions
        fresh = [each for each, key in zip(instructions, own_keys, strict=True) if key not in before]
        files.n_kept += len(instructions)
        files.n_repeated += len(instructions) - len(fresh)
        before.update(own_keys)
        split = plan.splits[number]
        offered = plan.tools if split == "test" else plan.seen
        samples += build_samples(plan.images[number], number, split, fresh, found[number].talks, offered, plan.seed)
    return samples, np.union1d(said, own)


def _hash_words(words: str) -> int:
    """64 bits: of a million instructions two are taken for alike with a probability of 3e-8."""
    return int.from_bytes(hashlib.blake2b(words_key(words).encode(), digest_size=8).digest(), "big")


def _verify(
    verification: Verification,
    options: GenerateOptions,
    plan: Plan,
    samples: list[Sample],
    teacher: Teacher,
    errors: list[str],
) -> list[dict[str, Any]]:
    """The samples' rows with the columns of `data_pipeline.records.checks`."""
    tool_ids = {tool.call_name: tool.tool_id for tool in plan.tools}
    root = options.media_root or (options.captions.parent if options.captions else None)
    names = {sample.image: plan.images[sample.image].image for sample in samples}
    known = {image: Medium(name, find_file(root, name)) for image, name in names.items()}
    media = [known[sample.image] for sample in samples]

    def chain(row: dict[str, Any], case: Case, picture: Path) -> list[Chain]:
        return build_chain(case, tool_ids, picture)

    rows = [sample.to_row() for sample in samples]
    return verification.check(rows, DialogueForm(plan.tools), media, teacher, chain, errors)
