"""What is checked of generated rows, and what people decide about them: columns of the rows, never deletions."""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import InputError, MediaError
from data_pipeline.instruct.cases import Case, Form
from data_pipeline.instruct.judging import MAX_TOKENS, describe_judges, parse_verdict, render_judge_prompts
from data_pipeline.instruct.review import (
    REVIEW_FILE,
    Decision,
    Doubt,
    merge_review,
    read_review,
    write_review,
)
from data_pipeline.instruct.review_page import PAGE_FILE, render_page
from data_pipeline.locations import Location
from data_pipeline.media.image import open_image, to_rgb
from data_pipeline.media.limits import DEFAULT_LIMITS
from data_pipeline.records import checks
from data_pipeline.records.schema import ToolRecord
from data_pipeline.teacher.client import Teacher
from data_pipeline.teacher.requests import TeacherRequest
from ray_jobs.config import RunSpec
from ray_jobs.generate.asking import ask
from ray_jobs.generate.leak_check import find_leaks, read_test_questions
from ray_jobs.generate.media import render_stand_in
from ray_jobs.generate.trials import Chain, try_out

REVIEW_FOLDER = "review"  # in the run's folder, beside what is generated: it is never replaced as a whole
MAX_THUMBNAILS = 300  # that one page holds
_THUMBNAIL_PX = 240
_COUNTED = (
    checks.CHECK_FORMAT,
    checks.CHECK_CALL,
    checks.CHECK_STRICT,
    checks.CHECK_BROAD,
    checks.CHECK_LEAK,
    checks.REVIEW,
)


@dataclass(frozen=True)
class Medium:
    """What stands behind a row: its name, and its file where it is at hand."""

    name: str = ""
    file: Path | None = None


class Verification:
    """Opened before anything is asked, so that what a person mistyped costs nothing.

    Raises:
        InputError: the review or the test data cannot be read.
    """

    def __init__(self, spec: RunSpec) -> None:
        options = spec.generate
        self._options = options
        self._folder: Location = spec.run_dir / REVIEW_FOLDER
        self._known = read_review(self._folder / REVIEW_FILE)
        self._test: list[ToolRecord] = read_test_questions(options.leak_check) if options.leak_check else []
        self._doubts: list[Doubt] = []
        self._files: dict[str, Path] = {}
        self._kinds: dict[str, Counter[str]] = {column: Counter() for column in _COUNTED}
        self.n_open = 0  # rows that nobody has decided about

    def check(
        self,
        rows: Sequence[dict[str, Any]],
        form: Form,
        media: Sequence[Medium],
        teacher: Teacher,
        chain: Callable[[dict[str, Any], Case, Path], Sequence[Chain]],
        errors: list[str],
    ) -> list[dict[str, Any]]:
        """The rows, edited as people decided, with all of `checks.COLUMNS` but the licence's.

        Args:
            rows: what a recipe wrote, or a part of it.
            form: of these rows.
            media: of each row.
            teacher: who judges.
            chain: (row, case, file of its medium) -> what is tried out of it, where calls are.
            errors: gets a sentence for each judgement that had no answer.

        Raises:
            InputError: an edit that gives no row that can be read, or calls that cannot be tried.
        """
        written = [form.describe(row) for row in rows]
        decisions = [self._known.get(case.key) for case in written]
        edited = [_apply(row, form, decision) for row, decision in zip(rows, decisions, strict=True)]
        cases = [
            case if now is row else form.describe(now) for case, row, now in zip(written, rows, edited, strict=True)
        ]
        calls = self._try_out(edited, cases, media, chain) if self._options.try_calls else [""] * len(rows)
        judged = self._judge(teacher, cases, errors) if self._options.judge else [("", "")] * len(rows)
        leaks = self._find_leaks(edited, form, media)
        checked = []
        for number, row in enumerate(edited):
            decision = decisions[number]
            strict, broad = judged[number]
            columns = {
                checks.CHECK_FORMAT: cases[number].fault or "ok",
                checks.CHECK_CALL: calls[number],
                checks.CHECK_STRICT: strict,
                checks.CHECK_BROAD: broad,
                checks.CHECK_LEAK: leaks[number],
                checks.REVIEW: decision.decision if decision else "",
                checks.REVIEW_NOTE: decision.note if decision else "",
                checks.REVIEW_KEY: written[number].key,
            }
            checked.append({**row, **columns})
            self._doubt(cases[number], columns, media[number])
        for column, kinds in self._kinds.items():
            kinds.update(_kind(column, row[column]) for row in checked if row[column])
        return checked

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """column -> verdict (without what differs from row to row) -> rows so far; of columns that were asked for."""
        return {column: dict(sorted(kinds.items())) for column, kinds in self._kinds.items() if kinds}

    def write(self) -> Location:
        """Write the review's file and page; both hold every decision that was ever made. Returns the folder."""
        known = read_review(self._folder / REVIEW_FILE)  # again: somebody may have decided meanwhile
        lines = merge_review(known, self._doubts)
        self.n_open = sum(not line["decision"] for line in lines)
        if lines or known:
            shown = [name for line in lines if (name := line.get("medium")) in self._files][:MAX_THUMBNAILS]
            thumbnails = {name: data for name in shown if (data := _make_thumbnail(self._files[name]))}
            write_review(self._folder / REVIEW_FILE, lines)
            storage.write_file(self._folder / PAGE_FILE, render_page(lines, thumbnails))
        return self._folder

    def _try_out(
        self,
        rows: Sequence[dict[str, Any]],
        cases: Sequence[Case],
        media: Sequence[Medium],
        chain: Callable[[dict[str, Any], Case, Path], Sequence[Chain]],
    ) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            stand_in = render_stand_in(Path(folder))
            chains = [
                [] if case.fault else chain(row, case, medium.file or stand_in)
                for row, case, medium in zip(rows, cases, media, strict=True)
            ]
            return try_out(chains, self._options.tool_files, str(stand_in))

    def _judge(self, teacher: Teacher, cases: Sequence[Case], errors: list[str]) -> list[tuple[str, str]]:
        prompts = [prompt for case in cases for prompt in render_judge_prompts(case)]
        verdicts = [""] * len(prompts)

        def take(number: int, text: str) -> list[str]:
            verdicts[number] = parse_verdict(text)
            return []

        requests = [TeacherRequest((("user", prompt),), max_tokens=MAX_TOKENS, temperature=0.0) for prompt in prompts]
        ask(teacher, requests, "judgements", take, errors)
        return list(zip(verdicts[::2], verdicts[1::2], strict=True))

    def _find_leaks(self, rows: Sequence[dict[str, Any]], form: Form, media: Sequence[Medium]) -> list[str]:
        if not self._test:
            return [""] * len(rows)
        hashes = {file: storage.hash_file(file) for file in {medium.file for medium in media} if file is not None}
        return find_leaks(
            self._test,
            [
                form.to_record(row, str(number), hashes[medium.file] if medium.file else "")
                for number, (row, medium) in enumerate(zip(rows, media, strict=True))
            ],
        )

    def _doubt(self, case: Case, columns: Mapping[str, str], medium: Medium) -> None:
        """Put a row up for review where a check found something."""
        reasons = [
            describe_judges(columns[checks.CHECK_STRICT], columns[checks.CHECK_BROAD]),
            f"call {columns[checks.CHECK_CALL]}" if columns[checks.CHECK_CALL].startswith("failed") else "",
            f"form: {case.fault}" if case.fault else "",
            f"a test has the same {columns[checks.CHECK_LEAK]}"
            if columns[checks.CHECK_LEAK] not in ("", "none")
            else "",
        ]
        why = "; ".join(filter(None, reasons))
        if why and not columns[checks.REVIEW]:
            self._doubts.append(Doubt(case, why, medium.name))
        if medium.file is not None:
            self._files[medium.name] = medium.file


def _apply(row: dict[str, Any], form: Form, decision: Decision | None) -> dict[str, Any]:
    if decision is None or decision.decision != "edit":
        return row
    try:
        return form.edit(row, decision.line["words"], decision.line["answer"])
    except InputError as error:
        raise InputError(f"{decision.place}: the edit cannot be taken: {error}; mend it there.") from error


def _kind(column: str, verdict: str) -> str:
    if column == checks.CHECK_FORMAT:
        return "ok" if verdict == "ok" else "fault"
    return verdict.partition(":")[0]


def describe_review(verification: Verification, folder: Location) -> str:
    """Where a person goes on."""
    n_open = verification.n_open
    if not n_open:
        return "review: nothing is open"
    return f"review: {n_open} rows are open; decide in {folder / PAGE_FILE} or {folder / REVIEW_FILE}, and run again"


def _make_thumbnail(file: Path) -> bytes:
    """A small JPEG; b"" for what is no picture."""
    try:
        with open_image(file, file.name, DEFAULT_LIMITS) as image:
            small = to_rgb(image)
            small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=80)
    except MediaError:
        return b""
    return buffer.getvalue()
