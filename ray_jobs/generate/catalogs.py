"""The recipe `catalog`: a catalogue of tools from model cards and API descriptions; no teacher is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.instruct.cards import LeftOut, choose_cards, read_cards
from data_pipeline.instruct.categories import load_subtasks
from data_pipeline.markdown import render_table
from data_pipeline.records.catalog import CATALOG_FILE, UNKNOWN_TOOL_ID, Tool, ToolCatalog
from ray_jobs.config import RunSpec
from ray_jobs.generate.asking import EXAMPLES, FOLDER, render_lines


def run(spec: RunSpec) -> dict[str, Any]:
    """The recipe: see `ray_jobs.generate.job.run`."""
    options = spec.generate
    if options.cards is None:
        raise InputError("generate.cards is not set; give the cards or descriptions that a catalogue shall be made of.")
    licences = frozenset(map(str.casefold, options.licences))
    tools, left_out = choose_cards(read_cards(options.cards), licences, options.max_per_function)
    if not tools:
        reasons = Counter(each.reason for each in left_out).most_common(3)
        raise InputError(f"no card of {options.cards} can be used ({reasons}); look at the file.")
    if all(tool.tool_id != UNKNOWN_TOOL_ID for tool in tools):
        tools.append(Tool(UNKNOWN_TOOL_ID, "None of the tools fits."))
    report = render_report(tools, left_out)
    folder = spec.run_dir / FOLDER
    with storage.replacing_folder(folder) as new:
        ToolCatalog(tools).save_jsonl(new / CATALOG_FILE)
        storage.write_file(new / "rejected.jsonl", render_lines(map(vars, left_out)))
        storage.write_file(new / "report.md", report + "\n")
    print(report)
    print(
        f"written to {folder}; ask for questions with generate.recipe=questions generate.tools={folder / CATALOG_FILE}"
    )
    counts = dict(Counter(_kind(each.reason) for each in left_out))
    return {"generated": str(folder), "tools": len(tools), "tasks": _count_tasks(tools), "rejected": counts}


def render_report(tools: list[Tool], left_out: list[LeftOut]) -> str:
    """Markdown: tools by what they take and give and by their task, and what was left out, by reason."""
    kinds = Counter((tool.input_modality or "not stated", tool.output_modality or "not stated") for tool in tools)
    reasons = Counter(_kind(each.reason) for each in left_out)
    return "\n".join(
        [
            "# Catalogue",
            "",
            render_table(["takes", "gives", "tools"], [[*kind, str(n)] for kind, n in sorted(kinds.items())]),
            "",
            *_render_tasks(_count_tasks(tools)),
            f"{len(tools)} tools, {len(left_out)} cards left out: "
            + (", ".join(f"{reason} ({n})" for reason, n in reasons.most_common()) or "none"),
            "",
            *(f"- {each.name}: {each.reason}" for each in left_out[:EXAMPLES]),
        ]
    )


def _count_tasks(tools: list[Tool]) -> dict[str, int]:
    """task -> tools, the most first; of tools whose task is known."""
    tasks = Counter(tool.coarse_functionality for tool in tools if tool.coarse_functionality)
    return dict(sorted(tasks.items(), key=lambda task: (-task[1], task[0])))


def _render_tasks(counts: Mapping[str, int]) -> list[str]:
    """A table of the tasks, and which of them MLLM-Tool has; nothing where no task is known."""
    if not counts:
        return []
    of_paper = load_subtasks()
    n_others = sum(n for task, n in counts.items() if task not in of_paper)
    rows = [[task, "yes" if task in of_paper else "no", str(n)] for task, n in counts.items()]
    n_tasks = sum(task in of_paper for task in counts)
    return [
        render_table(["task", "in MLLM-Tool's Table 2", "tools"], rows),
        "",
        f"{n_tasks} of the {len(of_paper)} tasks of that table; {n_others} tools are for others.",
        "",
    ]


def _kind(reason: str) -> str:
    """A reason without what differs from card to card."""
    for beginning in ("it says the same", "its licence", "its task", "its parameters"):
        if reason.startswith(beginning):
            return beginning
    return "enough tools of the function" if reason.endswith("have more downloads") else reason
