"""The recipe `questions`: queries for a user's own tools, each with all right tools, as MLLM-Tool makes its data."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.instruct.captioned_media import CaptionedMedium
from data_pipeline.instruct.cases import Case, QuestionForm
from data_pipeline.instruct.matching import find_similar, parse_matches, render_match_prompt, share_answers
from data_pipeline.instruct.queries import (
    KEPT,
    N_EXAMPLES,
    Query,
    Refused,
    keep_best,
    list_prohibited,
    parse_queries,
    render_query_prompt,
)
from data_pipeline.instruct.structured import QUERIES, to_query_lines
from data_pipeline.markdown import render_table
from data_pipeline.records.catalog import CATALOG_FILE, UNKNOWN_TOOL_ID, Tool, ToolCatalog
from data_pipeline.records.checks import MEDIA_LICENCE
from data_pipeline.teacher.client import Teacher
from data_pipeline.teacher.requests import TeacherRequest
from ray_jobs.config import RunSpec
from ray_jobs.generate.asking import CACHE, EXAMPLES, FOLDER, ask, describe_usage, estimate, render_lines
from ray_jobs.generate.grouping import FILES_PER_TOOL, Grouping, complete_grouping, list_group_requests, read_grouping
from ray_jobs.generate.media import MediaLibrary, takes_medium
from ray_jobs.generate.report import describe_checks, describe_verdicts
from ray_jobs.generate.trials import Chain
from ray_jobs.generate.verification import Medium, Verification, describe_review

_TOKENS_PER_ANSWER = 450  # twenty queries


@dataclass(frozen=True)
class Plan:
    """What is asked first.

    Attributes:
        catalog: the user's, whole.
        tools: those that are asked for.
        grouping: how they belong together, and what is right for which file.
        asked: (tool, prohibited words, whether the words shall fit its whole group) of each request.
        requests: as many.
    """

    catalog: ToolCatalog
    tools: list[Tool]
    grouping: Grouping
    asked: list[tuple[Tool, tuple[str, ...], bool]]
    requests: list[TeacherRequest]


def read_tools(spec: RunSpec) -> tuple[ToolCatalog, list[Tool]]:
    """The user's catalogue, and those of its tools that questions are wanted for.

    Raises:
        InputError: no tools.
    """
    options = spec.generate
    if options.tools is None:
        raise InputError("generate.tools is not set; give the catalogue (tools.jsonl) that questions are wanted for.")
    catalog = ToolCatalog.load_jsonl(options.tools)
    tools = [tool for tool in catalog if tool.tool_id != UNKNOWN_TOOL_ID and tool.description]
    if not tools:
        raise InputError(f"no tool of {options.tools} has a description; say in a sentence what each does.")
    return catalog, tools[: options.limit]


def make_plan(spec: RunSpec, catalog: ToolCatalog, tools: list[Tool], grouping: Grouping) -> Plan:
    """Which tool is asked for which queries."""
    asked: list[tuple[Tool, tuple[str, ...], bool]] = []
    requests = []
    schema = QUERIES if spec.generate.is_structured else None
    for number, tool in enumerate(tools):
        group = grouping.groups.ambiguous.get(tool.tool_id)
        others = [catalog[other] for other in group.tools if other != tool.tool_id] if group else []
        rng = np.random.default_rng([spec.seed, number])
        has_media = tool.tool_id in grouping.media_of  # without media nothing would decide
        for is_ambiguous in [False, True] if others and has_media else [False]:
            prohibited = list_prohibited(tool, others if is_ambiguous else ())
            examples = rng.permutation(N_EXAMPLES)[:2].tolist()
            prompt = render_query_prompt(tool, prohibited, examples, is_ambiguous)
            asked.append((tool, prohibited, is_ambiguous))
            requests.append(TeacherRequest((("user", prompt),), schema=schema))
    return Plan(catalog, tools, grouping, asked, requests)


def run(spec: RunSpec, teacher: Teacher) -> dict[str, Any]:
    """The recipe: see `ray_jobs.generate.job.run`."""
    catalog, tools = read_tools(spec)
    said = read_grouping(spec.generate, catalog)
    verification = Verification(spec)
    library = MediaLibrary(spec, said.licence_of)
    errors: list[str] = []
    grouping = complete_grouping(spec.generate, tools, said, library, teacher, errors)
    plan = make_plan(spec, catalog, tools, grouping)
    found: dict[int, list[Query | Refused]] = {}

    def take(number: int, text: str) -> list[str]:
        found[number] = parse_queries(to_query_lines(text), *plan.asked[number])
        return [line.reason for line in found[number] if isinstance(line, Refused)]

    ask(teacher, plan.requests, "tools", take, errors)
    refused = [line for number in sorted(found) for line in found[number] if isinstance(line, Refused)]
    by_tool: defaultdict[str, list[Query]] = defaultdict(list)
    for number in sorted(found):
        by_tool[plan.asked[number][0].tool_id] += [line for line in found[number] if isinstance(line, Query)]
    kept: dict[str, list[Query]] = {}
    for tool_id, own in by_tool.items():
        shared = [query for other in grouping.groups.same.get(tool_id, ()) for query in kept.get(other, ())]
        kept[tool_id], repeated = keep_best(own, shared)
        refused += repeated
    queries = [query for own in kept.values() for query in own]
    if not queries:
        reasons = dict(Counter(each.reason for each in refused)) or errors[:1]
        raise InputError(f"nothing of the teacher's answers can be used ({reasons}); look at {spec.work_dir / CACHE}.")
    matched, n_unclear = _match(teacher, plan, queries, errors)
    plain = [query for query in queries if not query.is_ambiguous and query.tool_id not in grouping.named]
    chosen = library.choose(plain, plan.catalog)
    records = _build_records(plan, queries, matched, chosen, spec.seed)
    named = [record.get("media", "") for record in records]
    media = [Medium(name, library.find(name)) for name in named]
    form = QuestionForm(plan.catalog, {name: medium.caption for name, medium in library.by_file.items()})
    records = verification.check(records, form, media, teacher, _build_chains, errors)
    review = verification.write()
    used = library.list_used(list(filter(None, named)))
    for record in records:
        record[MEDIA_LICENCE] = library.find_licence(record.get("media", ""))
    counts: dict[str, Any] = {
        "tools": len(plan.tools),
        "tools_that_share": sum(tool.tool_id in grouping.groups.same for tool in plan.tools),
        "groups": grouping.count(),
        **describe_usage(teacher),
        "kept": len(queries),
        "ambiguous": sum(query.is_ambiguous for query in queries),
        "rejected": dict(Counter(each.reason for each in refused)),
        "matches_unclear": n_unclear,
        "answers": dict(sorted(Counter(len(record["tools"]) for record in records).items())),
        "media": {"files": len(used), "licences": dict(Counter(each["licence"] or "not stated" for each in used))},
        "without_medium": sum(
            "media" not in record and takes_medium(plan.catalog[query.tool_id])
            for query, record in zip(queries, records, strict=True)
        ),
        "checks": verification.counts,
    }
    report = render_report(counts, records[:EXAMPLES], refused[:EXAMPLES])
    folder = spec.run_dir / FOLDER
    with storage.replacing_folder(folder) as new:
        storage.write_file(new / "records.jsonl", render_lines(records))
        plan.catalog.save_jsonl(new / CATALOG_FILE)
        storage.write_file(new / "groups.jsonl", render_lines(grouping.groups.to_rows()))
        storage.write_file(new / "media_tools.jsonl", render_lines(grouping.media_rows()))
        storage.write_file(new / "media.jsonl", render_lines(used))
        no_answer = [{"reason": "no answer", "why": error} for error in sorted(errors)]
        storage.write_file(new / "rejected.jsonl", render_lines([*map(vars, refused), *no_answer]))
        storage.write_file(new / "report.md", report + "\n")
    print(report)
    root = f" prepare.media_root={library.root}" if used else ""
    print(f"written to {folder}; read it with prepare.source=jsonl prepare.path={folder / 'records.jsonl'}{root}")
    print(describe_review(verification, review))
    return {"generated": str(folder), **counts}


def run_dry(spec: RunSpec) -> dict[str, Any]:
    """See `ray_jobs.generate.job.run_dry`."""
    catalog, tools = read_tools(spec)
    grouping = read_grouping(spec.generate, catalog)
    plan = make_plan(spec, catalog, tools, grouping)
    asked, proposals = list_group_requests(spec.generate, tools, grouping)
    n_open = sum(is_ambiguous for *_, is_ambiguous in plan.asked)
    perhaps = f"; of {len(asked)} the teacher is asked first whether others are like them" if asked else ""
    print(f"tools            {len(tools)}, {n_open} of them with ambiguous queries too{perhaps}")
    # judgements, of one word: of similar tools, of files for those that the teacher groups, of what is kept
    n_short = sum(bool(alike) for alike in find_similar(tools).values()) * KEPT + len(asked) * FILES_PER_TOOL
    n_short += 2 * KEPT * len(tools) if spec.generate.judge else 0
    n_long = len(plan.requests) + len(asked)  # each tool that is grouped is asked for ambiguous queries too
    n_all = n_long + n_short + len(proposals)
    tokens = (n_long * _TOKENS_PER_ANSWER + (n_all - n_long) * 20) / n_all
    return estimate(spec, [*plan.requests, *proposals], len(asked) + n_short, tokens)


def _match(
    teacher: Teacher, plan: Plan, queries: Sequence[Query], errors: list[str]
) -> tuple[dict[Query, list[str]], int]:
    """Further right tools by the teacher's judgement, and how many queries it did not judge in form.

    Of an ambiguous query the medium decides, and which tools are right for that is known.
    """
    similar = find_similar(plan.tools)
    judged = [(query, similar[query.tool_id]) for query in queries if not query.is_ambiguous and similar[query.tool_id]]
    matched: dict[Query, list[str]] = {}

    def take(number: int, text: str) -> list[str]:
        query, tools = judged[number]
        found = parse_matches(text, tools)
        if found is None:
            return ["unclear"]
        matched[query] = found
        return []

    requests = [
        TeacherRequest((("user", render_match_prompt(query, tools)),), max_tokens=100, temperature=0.0)
        for query, tools in judged
    ]
    ask(teacher, requests, "matches", take, errors)
    return matched, len(judged) - len(matched)


def _build_records(
    plan: Plan,
    queries: Sequence[Query],
    matched: dict[Query, list[str]],
    chosen: dict[Query, CaptionedMedium],
    seed: int,
) -> list[dict[str, Any]]:
    """Rows as `prepare.source=jsonl` reads them."""
    known = plan.grouping
    rng = np.random.default_rng([seed, len(queries)])
    records = []
    for query in queries:
        files = known.media_of.get(query.tool_id, ())
        medium = files[int(rng.integers(len(files)))] if files else None
        if query in chosen:
            medium = chosen[query].file
        record: dict[str, Any] = {"instruction": query.words}
        tools = share_answers(query, known.groups.same, matched.get(query, ()))
        if query.is_ambiguous:
            group = known.groups.ambiguous[query.tool_id]
            record |= {"ambiguity": group.ambiguity.value, "candidates": list(group.tools)}
            right = [tool for tool in group.tools if tool in known.tools_of[str(medium)]]
            tools = tuple(
                dict.fromkeys([*right, *(same for tool in right for same in known.groups.same.get(tool, ()))])
            )
        record["tools"] = list(tools)
        if medium is not None:
            record["media"] = medium
        records.append(record)
    return records


def _build_chains(row: dict[str, Any], case: Case, file: Path) -> list[Chain]:
    """Every right tool on the question's medium; its other values are nowhere but in the words."""
    del case
    if "media" not in row:
        return []
    return [{"files": {"file": str(file)}, "calls": [{"tool": tool}]} for tool in row["tools"]]


def render_report(counts: dict[str, Any], records: Sequence[dict[str, Any]], refused: Sequence[Refused]) -> str:
    """Markdown: counts, examples of what was kept and of what was not."""
    requests = counts["requests"]
    licences = ", ".join(f"{terms}: {n}" for terms, n in counts["media"]["licences"].items())
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(counts["rejected"].items())) or "none"
    parts = [
        "# Generated questions",
        "",
        render_table(["right tools", "questions"], [[str(n), str(many)] for n, many in counts["answers"].items()]),
        "",
        f"{counts['tools']} tools, {counts['tools_that_share']} of them share their questions with others of the same "
        f"function; {_describe_groups(counts['groups'])}; {counts['kept']} questions kept, {counts['ambiguous']} of "
        "them ambiguous; rejected "
        f"by reason: {reasons}; {counts['matches_unclear']} judgements in no form. Requests: {requests['sent']} sent, "
        f"{requests['from_cache']} answered before, {requests['failed']} failed. Spent: {counts['money']:.4f}"
        + (" (the budget is spent: run again to go on)." if counts["is_budget_spent"] else "."),
        "",
        describe_checks(counts["checks"]),
        "",
        f"Media: {counts['media']['files']} files ({licences or 'no terms'}); "
        f"{counts['without_medium']} questions need a medium and have none.",
        "",
        "## Kept",
        "",
        *(f"- {each['instruction']} → {', '.join(each['tools'])}\n  - {describe_verdicts(each)}" for each in records),
        "",
        "## Left out",
        "",
        *(f"- {each.reason}: {each.why}: `{each.line}`" for each in refused),
    ]
    return "\n".join(parts)


def _describe_groups(groups: dict[str, Any]) -> str:
    kinds = ", ".join(f"{kind} {n}" for kind, n in groups["ambiguous"].items()) or "none"
    return f"groups that only a medium tells apart: {kinds} (`groups.jsonl`)"
