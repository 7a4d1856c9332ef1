"""`generate`: ask a teacher for what users may want of tools, and write dialogues that `prepare` reads (GPT4Tools)."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.instruct.captions import CaptionedImage, read_captions
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
from data_pipeline.teacher.cache import ReplyCache
from data_pipeline.teacher.client import Teacher
from data_pipeline.teacher.requests import TeacherRequest
from ray_jobs.config import RunSpec
from ray_jobs.generate.report import render_report
from ray_jobs.generate_options import GenerateOptions
from ray_jobs.progress import Progress

FOLDER = "generated"  # in the run's folder; the source that `prepare` reads
CACHE = "teacher"  # beside it: every answer that was paid for
EXAMPLES = 20  # that are printed
_CHARS_PER_TOKEN = 4
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


def run(spec: RunSpec) -> dict[str, Any]:
    """Ask, filter, build, write `generated/` in the run's folder; print a report with examples.

    Raises:
        InputError: no captions, no teacher, a teacher that refuses, or nothing of its answers can be used.
    """
    options = spec.generate
    if options.teacher is None:
        raise InputError(
            "generate.teacher is not set; name an OpenAI-compatible server, such as generate.teacher={url: "
            "http://127.0.0.1:8000/v1, model: NAME}, with its key in the environment (generate.teacher.api_key_env)."
        )
    plan = make_plan(options, spec.seed)
    teacher = Teacher(options.teacher, ReplyCache(spec.work_dir / CACHE))
    found, noise, errors = asyncio.run(_ask(teacher, plan))
    samples, n_repeated = _build(plan, found, spec.seed)
    if not samples:
        reasons = dict(Counter(each.reason for each in noise)) or errors[:1]
        raise InputError(
            f"nothing of the teacher's answers could be used ({reasons}); look at {spec.work_dir / CACHE}."
        )
    usage = teacher.usage
    counts: dict[str, Any] = {
        "images": len(plan.images),
        "captions_left_out": plan.left_out,
        "requests": {"sent": usage.sent, "from_cache": usage.from_cache, "failed": len(errors)},
        "tokens": {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens},
        "money": round(usage.money, 4),
        "is_budget_spent": usage.is_budget_spent,
        "kept": sum(len(each.instructions) for each in found.values()),
        "rejected": dict(Counter(each.reason for each in noise)),
        "repeated": n_repeated,
        "samples": count_kinds(samples),
    }
    folder = _write(spec, samples, noise, errors, counts)
    report = render_report(counts, samples[:EXAMPLES], noise[:EXAMPLES])
    print(report)
    print(f"written to {folder}; read it with prepare.source=gpt4tools prepare.path={folder}")
    return {"generated": str(folder), **counts}


def run_dry(spec: RunSpec) -> dict[str, Any]:
    """Say what it would take: requests, tokens, money. Nothing is sent."""
    plan = make_plan(spec.generate, spec.seed)
    prompt = sum(len(text) for asked in plan.requests for _, text in asked.request.messages) // _CHARS_PER_TOKEN
    completion = sum(_TOKENS_PER_INSTRUCTION * max(4, len(asked.tools)) for asked in plan.requests)
    teacher = spec.generate.teacher
    money = None if teacher is None else (prompt * teacher.input_price + completion * teacher.output_price) / 1e6
    splits = Counter(plan.splits)
    print(f"pictures         {len(plan.images):,} ({', '.join(f'{split} {splits[split]:,}' for split in SPLITS)})")
    print(f"tools            {len(plan.seen)} asked for in training, {len(plan.unseen)} in the test split alone")
    print(f"requests         {len(plan.requests):,}")
    print(f"tokens           about {prompt:,} to read and {completion:,} to write (estimated)")
    print(f"money            {'unknown: generate.teacher is not set' if money is None else f'about {money:,.2f}'}")
    return {"requests": len(plan.requests), "prompt_tokens": prompt, "completion_tokens": completion, "money": money}


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


async def _ask(teacher: Teacher, plan: Plan) -> tuple[dict[int, _Found], list[Noise], list[str]]:
    """What was kept by picture, what was not, and the requests that got no answer."""
    found: dict[int, _Found] = {}
    noise: dict[int, list[Noise]] = {}
    errors: list[str] = []
    known = [*plan.seen, *plan.unseen]
    with Progress("generate") as progress:
        progress.show(0, len(plan.requests), "requests")
        done = 0
        async for number, reply in teacher.ask_all(asked.request for asked in plan.requests):
            done += 1
            asked = plan.requests[number]
            own = found.setdefault(asked.image, _Found())
            if reply.error:
                errors.append(reply.error)
            elif asked.tools:
                lines = parse_reply(reply.text, asked.tools, known)
                own.instructions += [line for line in lines if isinstance(line, Instruction)]
                noise[number] = [line for line in lines if isinstance(line, Noise)]
            else:
                own.talks += parse_talk(reply.text)[0]
            n_noise, money = sum(map(len, noise.values())), teacher.usage.money
            progress.show(done, len(plan.requests), "requests", f"{n_noise} lines rejected, {money:.2f} spent")
    return found, [line for number in sorted(noise) for line in noise[number]], sorted(errors)


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


def _write(
    spec: RunSpec, samples: list[Sample], noise: list[Noise], errors: list[str], counts: dict[str, Any]
) -> Location:
    folder = spec.run_dir / FOLDER
    with storage.replacing_folder(folder) as new:
        for split in SPLITS:
            rows: Iterator[dict[str, str]] = (sample.to_row() for sample in samples if sample.split == split)
            if text := ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows):
                storage.write_file(new / f"{split}.json", f"[\n{text}\n]\n")
        lines = [*(vars(each) for each in noise), *({"reason": "no answer", "why": error} for error in errors)]
        storage.write_file(
            new / "rejected.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        )
        storage.write_file(new / "report.md", render_report(counts, samples[:EXAMPLES], noise[:EXAMPLES]) + "\n")
    return folder
