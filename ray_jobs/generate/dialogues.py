"""The recipe `dialogues`: what users of pictures may want of tools, as GPT4Tools makes its data."""

from __future__ import annotations

import json
from collections import Counter
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
from data_pipeline.instruct.samples import Sample, assign_splits, build_samples, count_kinds
from data_pipeline.instruct.talk import Talk, parse_talk, render_talk_prompt
from data_pipeline.locations import Location
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool, ToolCatalog
from data_pipeline.records.schema import SPLITS
from data_pipeline.records.text import words_key
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS, UNSEEN_TOOL_IDS
from data_pipeline.teacher.client import Teacher
from data_pipeline.teacher.requests import TeacherRequest
from ray_jobs.config import RunSpec
from ray_jobs.generate.asking import CACHE, EXAMPLES, FOLDER, ask, describe_usage, estimate, render_lines
from ray_jobs.generate.media import find_file
from ray_jobs.generate.report import render_report
from ray_jobs.generate.trials import Chain, build_chain
from ray_jobs.generate.verification import Medium, Verification, describe_review
from ray_jobs.generate_options import GenerateOptions

_TOKENS_PER_INSTRUCTION = 40


@dataclass(frozen=True)
class Plan:
    """What is asked: the pictures with their splits and the tools that instructions are wanted for.

    Attributes:
        images: in order.
        splits: of each.
        left_out: rows of captions that could not be used, by reason.
        seen, unseen: tools by where they may be asked for.
        requests: every request, by picture.
    """

    images: list[CaptionedImage]
    splits: list[str]
    left_out: dict[str, int]
    seen: list[Tool]
    unseen: list[Tool]
    requests: list[_Asked]


@dataclass(frozen=True)
class _Asked:
    """One request: for which picture, with which tools; () asks for talk."""

    image: int
    tools: tuple[Tool, ...]
    request: TeacherRequest


@dataclass
class _Found:
    """What came of one picture."""

    instructions: list[Instruction] = field(default_factory=list)
    talks: list[Talk] = field(default_factory=list)


def run(spec: RunSpec, teacher: Teacher) -> dict[str, Any]:
    """The recipe: see `ray_jobs.generate.job.run`."""
    plan = make_plan(spec.generate, spec.seed)
    verification = Verification(spec)
    found: dict[int, _Found] = {}
    noise: dict[int, list[Noise]] = {}
    errors: list[str] = []
    known = [*plan.seen, *plan.unseen]

    def take(number: int, text: str) -> int:
        asked = plan.requests[number]
        own = found.setdefault(asked.image, _Found())
        if not asked.tools:
            kept, n_left_out = parse_talk(text)
            own.talks += kept
            return n_left_out
        lines = parse_reply(text, asked.tools, known)
        own.instructions += [line for line in lines if isinstance(line, Instruction)]
        noise[number] = [line for line in lines if isinstance(line, Noise)]
        return len(noise[number])

    ask(teacher, [asked.request for asked in plan.requests], "requests", take, errors)
    left_out = [line for number in sorted(noise) for line in noise[number]]
    samples, n_repeated = _build(plan, found, spec.seed)
    if not samples:
        reasons = dict(Counter(each.reason for each in left_out)) or errors[:1]
        raise InputError(f"nothing of the teacher's answers can be used ({reasons}); look at {spec.work_dir / CACHE}.")
    rows = _verify(verification, spec.generate, plan, samples, teacher, errors)
    review = verification.write()
    counts: dict[str, Any] = {
        "images": len(plan.images),
        "captions_left_out": plan.left_out,
        **describe_usage(teacher),
        "kept": sum(len(each.instructions) for each in found.values()),
        "rejected": dict(Counter(each.reason for each in left_out)),
        "repeated": n_repeated,
        "samples": count_kinds(samples),
        "checks": verification.counts,
    }
    folder = _write(spec, samples, rows, left_out, sorted(errors), counts)
    print(render_report(counts, samples[:EXAMPLES], left_out[:EXAMPLES]))
    print(f"written to {folder}; read it with prepare.source=gpt4tools prepare.path={folder}")
    print(describe_review(verification, review))
    return {"generated": str(folder), **counts}


def run_dry(spec: RunSpec) -> dict[str, Any]:
    """See `ray_jobs.generate.job.run_dry`."""
    plan = make_plan(spec.generate, spec.seed)
    splits = Counter(plan.splits)
    print(f"pictures         {len(plan.images):,} ({', '.join(f'{split} {splits[split]:,}' for split in SPLITS)})")
    print(f"tools            {len(plan.seen)} asked for in training, {len(plan.unseen)} in the test split alone")
    tokens = _TOKENS_PER_INSTRUCTION * sum(max(4, len(asked.tools)) for asked in plan.requests)
    requests = [asked.request for asked in plan.requests]
    n_judgements = 2 * sum(max(4, len(asked.tools)) for asked in plan.requests) if spec.generate.judge else 0
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
    splits = assign_splits(len(images), bool(unseen), seed)
    requests: list[_Asked] = []
    for number, (image, split) in enumerate(zip(images, splits, strict=True)):
        rng = np.random.default_rng([seed, number])
        pool = unseen if split == "test" else seen
        tools = tuple(pool[i] for i in rng.permutation(len(pool))[: options.tools_per_prompt])
        prompt = render_teacher_prompt(image, tools)
        requests.append(_Asked(number, tools, TeacherRequest((("user", prompt),))))
        if split != "test" and rng.random() < options.talk_frac:
            requests.append(_Asked(number, (), TeacherRequest((("user", render_talk_prompt(image)),))))
    return Plan(images, splits, left_out, seen, unseen, requests)


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


def _build(plan: Plan, found: dict[int, _Found], seed: int) -> tuple[list[Sample], int]:
    """All samples in the order of the pictures; an instruction whose words were there before is left out."""
    samples: list[Sample] = []
    said: set[str] = set()
    n_repeated = 0
    everything = [*plan.seen, *plan.unseen]
    for number in sorted(found):
        own = found[number]
        fresh = [each for each in own.instructions if words_key(each.words) not in said]
        n_repeated += len(own.instructions) - len(fresh)
        said.update(words_key(each.words) for each in fresh)
        split = plan.splits[number]
        offered = everything if split == "test" else plan.seen
        samples += build_samples(plan.images[number], number, split, fresh, own.talks, offered, seed)
    return samples, n_repeated


def _verify(
    verification: Verification,
    options: GenerateOptions,
    plan: Plan,
    samples: list[Sample],
    teacher: Teacher,
    errors: list[str],
) -> list[dict[str, Any]]:
    """The samples' rows with the columns of `data_pipeline.records.checks`."""
    tools = [*plan.seen, *plan.unseen]
    tool_ids = {tool.call_name: tool.tool_id for tool in tools}
    root = options.media_root or (options.captions.parent if options.captions else None)
    names = [plan.images[sample.image].image for sample in samples]
    media = [Medium(name, find_file(root, name)) for name in names]

    def chain(row: dict[str, Any], case: Case, picture: Path) -> list[Chain]:
        return build_chain(case, tool_ids, picture)

    rows = [sample.to_row() for sample in samples]
    return verification.check(rows, DialogueForm(tools), media, teacher, chain, errors)


def _write(
    spec: RunSpec,
    samples: list[Sample],
    rows: list[dict[str, Any]],
    noise: list[Noise],
    errors: list[str],
    counts: dict[str, Any],
) -> Location:
    folder = spec.run_dir / FOLDER
    with storage.replacing_folder(folder) as new:
        for split in SPLITS:
            own = (row for sample, row in zip(samples, rows, strict=True) if sample.split == split)
            if text := ",\n".join(json.dumps(row, ensure_ascii=False) for row in own):
                storage.write_file(new / f"{split}.json", f"[\n{text}\n]\n")
        lines = [*(vars(each) for each in noise), *({"reason": "no answer", "why": error} for error in errors)]
        storage.write_file(new / "rejected.jsonl", render_lines(lines))
        storage.write_file(new / "report.md", render_report(counts, samples[:EXAMPLES], noise[:EXAMPLES]) + "\n")
    return folder
