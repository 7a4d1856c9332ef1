"""Scores as Markdown, CSV and a figure. Per cent in Markdown, fractions in CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from data_pipeline import storage
from data_pipeline.markdown import render_table
from model.scoring.dialogues import DIALOGUE_RULE, DialogueScores
from model.scoring.gorilla import GORILLA_RULE, GorillaScores
from model.scoring.gpt4tools import GPT4TOOLS_RULE, Gpt4ToolsScores
from model.scoring.intervals import Estimate
from model.scoring.selection import SELECTION_RULE, SelectionScores

# group -> (row label, the table of the MLLM-Tool paper that has this row)
SELECTION_ROWS = {
    "overall": ("Overall", "5, 7"),
    "ambiguity:1": ("Ambiguity I: Domains", "6"),
    "ambiguity:2": ("Ambiguity II: Categories", "6"),
    "ambiguity:3": ("Ambiguity III: Quality", "6"),
    "ambiguity:4": ("Ambiguity IV: Conditions", "6"),
    "ambiguity:5": ("Ambiguity V: Others", "6"),
    "ambiguity:none": ("Ambiguity: none", ""),
    "with_ambiguity": ("With ambiguity", "6"),
    "without_ambiguity": ("Without ambiguity", "6"),
    "modality:video": ("Video", "8"),
    "modality:audio": ("Audio", "8"),
    "modality:image": ("Image", "8"),
    "modality:text": ("Text", "8"),
    "one_to_one": ("One-to-one", "9"),
    "one_to_many": ("One-to-many", "9"),
}
DIALOGUE_ROWS = {
    "all": "All dialogues",
    "seen": "Seen tools only",
    "unseen": "With an unseen tool",
    "single": "One call",
    "chain": "Two calls or more",
    "no_tool": "No tool",
}
INTERVAL_NOTE = "In brackets: 95 % confidence interval (Wilson for shares, seeded percentile bootstrap for means)."


def render_estimate(estimate: Estimate) -> str:
    """In per cent: ``69.63 [67.20, 71.95]``."""
    return f"{100 * estimate.value:.2f} [{100 * estimate.low:.2f}, {100 * estimate.high:.2f}]"


def render_selection_markdown(scores: SelectionScores) -> str:
    """The rows of MLLM-Tool's Tables 5 to 9 that have questions: per cent with intervals, counts, and the rule."""
    header = ("Questions", "Paper's table", "n", "Acc %", "Hallu %", "Format Acc %", f"Recall@{scores.k} %")
    rows = []
    for name, (label, table) in SELECTION_ROWS.items():
        group = scores.groups.get(name)
        if group is not None:
            estimates = (group.acc, group.hallu, group.format_acc, group.recall)
            rows.append((label, table, str(group.n), *(render_estimate(estimate) for estimate in estimates)))
    return "\n\n".join(
        (render_table(header, rows), INTERVAL_NOTE, f"Rule: {SELECTION_RULE} Catalogue: {scores.catalog_size} names.")
    )


def render_selection_csv(scores: SelectionScores) -> str:
    """Columns: group, n, then `<metric>`, `<metric>_low`, `<metric>_high`; fractions in full precision."""
    metrics = ("acc", "hallu", "format_acc", f"recall@{scores.k}")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("group", "n", *(metric + end for metric in metrics for end in ("", "_low", "_high"))))
    for name, group in scores.groups.items():
        estimates = (group.acc, group.hallu, group.format_acc, group.recall)
        writer.writerow((name, group.n, *(number for e in estimates for number in (e.value, e.low, e.high))))
    return text.getvalue()


def render_gpt4tools_markdown(scores: Gpt4ToolsScores) -> str:
    """SR_t, SR_act, SR_args, SR and IoU of the GPT4Tools paper in per cent, with intervals and the rule."""
    labels = {
        "thought": "SR_t (thought)",
        "action": "SR_act (tool name)",
        "args": "SR_args (arguments)",
        "acc": "SR (all three)",
        "iou": "IoU",
    }
    return _render_metrics(labels, len(scores.items), scores.means, f"Rule: {GPT4TOOLS_RULE}")


def render_gorilla_markdown(scores: GorillaScores) -> str:
    """Gorilla's functionality and hallucination, the exact match, and answers without a call, with the rule."""
    labels = {
        "functionality": "Functionality (Gorilla's rule: an API of the right domain)",
        "exact": "Exact (repository and model of a right answer)",
        "hallucination": "Hallucination (no such API)",
        "no_call": "No call",
    }
    rule = f"Rule: {GORILLA_RULE} Catalogue: {scores.n_apis} APIs."
    return _render_metrics(labels, len(scores.items), scores.shares, rule)


def _render_metrics(labels: Mapping[str, str], n: int, estimates: Mapping[str, Estimate], rule: str) -> str:
    """A line for each metric, by its key and label."""
    rows = [(label, str(n), render_estimate(estimates[key])) for key, label in labels.items()]
    return "\n\n".join((render_table(("Metric", "n", "Value %"), rows), INTERVAL_NOTE, rule))


def render_dialogue_markdown(scores: DialogueScores) -> str:
    """GPT4Tools' metrics and the faulty turns of every group that has dialogues, with intervals and the rule."""
    header = (
        "Dialogues",
        "n",
        "turns",
        "SR_t %",
        "SR_act %",
        "SR_args %",
        "SR %",
        "IoU %",
        "malformed %",
        "invented %",
    )
    rows = []
    by_source = {name: name.removeprefix("source:") for name in sorted(scores.groups) if name.startswith("source:")}
    for name, label in {**DIALOGUE_ROWS, **by_source}.items():
        group = scores.groups.get(name)
        if group is not None:
            estimates = (*group.means.values(), group.malformed, group.invented)
            rows.append((label, str(group.n), str(group.n_turns), *map(render_estimate, estimates)))
    return "\n\n".join((render_table(header, rows), INTERVAL_NOTE, f"Rule: {DIALOGUE_RULE}"))


def plot_scores(scores: SelectionScores, path: Path) -> None:
    """Write a PNG: one panel per metric, one line per group, with 95 % intervals."""
    from matplotlib.figure import Figure  # a second of import time that only this function needs

    names = [name for name in SELECTION_ROWS if name in scores.groups]
    labels = [f"{SELECTION_ROWS[name][0]} (n={scores.groups[name].n})" for name in names]
    panels = {
        "Acc": [scores.groups[name].acc for name in names],
        "Hallu": [scores.groups[name].hallu for name in names],
        "Format Acc": [scores.groups[name].format_acc for name in names],
        f"Recall@{scores.k}": [scores.groups[name].recall for name in names],
    }
    figure = Figure(figsize=(14, 1.2 + 0.32 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    heights = range(len(names), 0, -1)
    for axis, (title, estimates) in zip(axes, panels.items(), strict=True):
        for height, estimate in zip(heights, estimates, strict=True):
            axis.plot((100 * estimate.low, 100 * estimate.high), (height, height), color="tab:blue", linewidth=1.5)
            axis.plot(100 * estimate.value, height, "o", color="tab:blue", markersize=5)
        axis.set(title=title, xlabel="%", xlim=(-3, 103))
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(list(heights), labels)

    with storage.writing_file(path) as stream:
        figure.savefig(stream, format="png", dpi=120)
