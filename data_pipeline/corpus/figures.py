"""Figures of what a corpus holds: those of the report and of the audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_pipeline.corpus.facts import Facts
from data_pipeline.corpus.stats import count_answers, count_per_tool
from data_pipeline.records.schema import SPLITS, AmbiguityType, Modality


def draw_figures(counts: Mapping[str, Any], facts: Facts) -> dict[str, Figure]:
    """Name -> figure: questions by modality and by ambiguity, right answers per question, the long tail of tools.

    Args:
        counts: of each split, as the manifest has them.
        facts: of the records, with their splits.
    """
    ambiguous = [kind.value for kind in AmbiguityType if kind is not AmbiguityType.NONE]
    return {
        "modality": _draw_stacked("modality", [m.value for m in Modality], counts, "by_modality"),
        "ambiguity": _draw_stacked("ambiguity type", ambiguous, counts, "by_ambiguity_type"),
        "answers": _draw_answers(facts),
        "tools": _draw_tools(facts),
    }


def new_figure(title: str, xlabel: str, ylabel: str, height: float = 3.2) -> tuple[Figure, Any]:
    """A figure 5.2 inches wide with one pair of axes, drawn without a display."""
    figure = Figure(figsize=(5.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def _draw_stacked(what: str, kinds: Sequence[str], counts: Mapping[str, Any], group: str) -> Figure:
    figure, axes = new_figure(f"Questions by {what}", "", "questions")
    bottom = [0] * len(kinds)
    for split in SPLITS:
        heights = [counts[split][group][kind] for kind in kinds]
        axes.bar(kinds, heights, bottom=bottom, label=split)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.legend()
    return figure


def _draw_answers(facts: Facts) -> Figure:
    figure, axes = new_figure("Right answers per question", "right answers", "questions")
    for split in SPLITS:
        numbers = count_answers(facts, split).items()
        axes.plot([n for n, _ in numbers], [count for _, count in numbers], marker="o", markersize=3, label=split)
    axes.set_yscale("symlog", linthresh=1)
    axes.legend()
    return figure


def _draw_tools(facts: Facts) -> Figure:
    figure, axes = new_figure("The long tail of tools", "tool, by rank", "questions")
    for split in SPLITS:
        counts = count_per_tool(facts, split)
        axes.plot(range(1, len(counts) + 1), counts, label=split)
    axes.set_yscale("symlog", linthresh=1)
    axes.legend()
    return figure
