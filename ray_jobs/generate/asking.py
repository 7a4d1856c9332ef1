"""Asking a teacher with progress, and what it took: what both recipes share."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from data_pipeline.teacher.cache import ReplyCache
from data_pipeline.teacher.client import Teacher
from data_pipeline.teacher.requests import TeacherReply, TeacherRequest
from ray_jobs.config import RunSpec
from ray_jobs.progress import Progress

FOLDER = "generated"  # in the run's folder; the source that `prepare` reads
CACHE = "teacher"  # beside it: every answer that was paid for
EXAMPLES = 20  # that a report shows
_CHARS_PER_TOKEN = 4


def render_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def ask(
    teacher: Teacher,
    requests: Sequence[TeacherRequest],
    unit: str,
    take: Callable[[int, str], Iterable[str]],
    errors: list[str],
    n_before: int = 0,
    n_total: int | None = None,
    rejected: Counter[str] | None = None,
) -> None:
    """Ask all requests, in the order in which answers come.

    Args:
        teacher: who answers.
        requests: what is asked.
        unit: what a request is, in the plural.
        take: gets (number of the request, answer) and says why it left out lines, a reason for each.
        errors: gets a sentence for each request that had no answer.
        n_before: requests that were asked before these, for who looks on.
        n_total: of so many in all; None = these.
        rejected: lines by reason, of what was asked before; these are added.
    """
    total = len(requests) if n_total is None else n_total
    reasons: Counter[str] = Counter() if rejected is None else rejected

    async def run() -> None:
        done = n_before
        with Progress("generate") as progress:
            progress.show(done, total, unit)
            async for number, reply in teacher.ask_all(requests):
                done += 1
                if reply.error:
                    errors.append(reply.error)
                else:
                    reasons.update(take(number, drop_cut_line(reply)))
                note = f"{describe_rejected(reasons)}, {teacher.usage.money:.2f} spent"
                progress.show(done, total, unit, note)

    if requests:
        asyncio.run(run())


def describe_rejected(rejected: Counter[str]) -> str:
    """How many lines were left out, and why, the most frequent reason first."""
    reasons = ", ".join(f"{reason} {n}" for reason, n in rejected.most_common())
    return f"{rejected.total()} lines left out{f' ({reasons})' if reasons else ''}"


def drop_cut_line(reply: TeacherReply) -> str:
    """An answer without its last line, where its tokens ended in the middle of that; one of a single line is whole."""
    lines = reply.text.rstrip().splitlines()
    is_cut = reply.finish_reason == "length" and len(lines) > 1
    return "\n".join(lines[:-1]) if is_cut else reply.text


def describe_usage(teacher: Teacher) -> dict[str, Any]:
    """What a run took, as its report and its last line have it."""
    usage = teacher.usage
    return {
        "requests": {"sent": usage.sent, "from_cache": usage.from_cache, "failed": usage.failed},
        "tokens": {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens},
        "money": round(usage.money, 4),
        "is_budget_spent": usage.is_budget_spent,
    }


def estimate(spec: RunSpec, requests: Sequence[TeacherRequest], n_more: int, tokens_each: float) -> dict[str, Any]:
    """Print and return what it would take; what has been answered before costs nothing.

    Args:
        spec: names the teacher's prices.
        requests: those that are known.
        n_more: those that depend on answers, about as long; whether they have been answered is not known.
        tokens_each: of an answer.
    """
    teacher = spec.generate.teacher
    lengths = [sum(len(text) for _, text in request.messages) for request in requests]
    is_answered = _find_answered(spec, requests)
    n = sum(not answered for answered in is_answered) + n_more
    chars = sum(length for length, answered in zip(lengths, is_answered, strict=True) if not answered)
    prompt = round((chars + n_more * sum(lengths) / max(1, len(lengths))) / _CHARS_PER_TOKEN)
    completion = round(n * tokens_each)
    money = None if teacher is None else (prompt * teacher.input_price + completion * teacher.output_price) / 1e6
    n_answered = sum(is_answered)
    print(f"requests         {len(requests) + n_more:,}, {n_answered:,} of them answered before, which cost nothing")
    if n_more:
        print(
            f"                 {n_more:,} of them depend on answers: about so many, and some may have been answered too"
        )
    print(f"tokens           about {prompt:,} to read and {completion:,} to write (estimated)")
    print(f"money            {'unknown: generate.teacher is not set' if money is None else f'about {money:,.2f}'}")
    return {
        "requests": len(requests) + n_more,
        "answered_before": n_answered,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "money": money,
    }


def _find_answered(spec: RunSpec, requests: Sequence[TeacherRequest]) -> list[bool]:
    """Of each request whether its answer has been paid for in an earlier run of this folder."""
    if spec.generate.teacher is None:
        return [False] * len(requests)
    with ReplyCache(spec.work_dir / CACHE) as cache:
        return [request.key(spec.generate.teacher.model) in cache for request in requests]
