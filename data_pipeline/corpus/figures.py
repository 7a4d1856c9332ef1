"""Figures of what a corpus holds: those of the report and of the audit (after MLLM-Tool, Figures 2 and 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import get_data_path
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from wordcloud import STOPWORDS, WordCloud

from data_pipeline.corpus.facts import Facts
from data_pipeline.corpus.stats import count_answers, count_per_tool
from data_pipeline.records.schema import SPLITS, AmbiguityType, Modality

MAX_CLOUD_WORDS = 80


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


def draw_topics(topics: Mapping[str, int]) -> Figure:
    """A cloud of tasks or words, larger where there are more; the same ones always lie alike (MLLM-Tool, Figure 3).

    Args:
        topics: of `count_topics`; English words that say nothing are left out.
    """
    figure, axes = new_figure("What the tools are for", "", "")
    axes.set_axis_off()
    if telling := {topic: n for topic, n in topics.items() if topic not in STOPWORDS}:
        cloud = WordCloud(
            font_path=str(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf")),  # more scripts than its own
            width=260,  # words are laid out on a small canvas, which takes a tenth of the time, and drawn larger
            height=140,
            scale=4,
            max_words=MAX_CLOUD_WORDS,
            background_color="white",
            random_state=0,
        )
        axes.imshow(cloud.generate_from_frequencies(telling).to_array(), interpolation="antialiased")
    return figure
