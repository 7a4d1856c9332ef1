"""What people see of a sweep: the table of its trials, `report.md`, and two plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_pipeline import storage
from data_pipeline.markdown import render_table
from ray_jobs.train.validation import SCORE_KEY
from ray_jobs.tune.trials import TrialRecord

PARALLEL_PLOT = "parallel_coordinates.png"
REPORT_FILE = "report.md"
CURVES_PLOT = "learning_curves.png"
COLUMNS = ("best score", "epochs run", "steps", "seconds", "status")
MAX_CELL_CHARS = 32
STATUS_ORDER = ("finished", "stopped", "failed", "running", "waiting")
LINE_STYLES = {"finished": "-", "stopped": "--"}  # of a learning curve; others are dotted


def render_trials(records: Sequence[TrialRecord]) -> str:
    """A Markdown table, best score first; a failed trial has its reason beside its status."""
    paths = _paths(records)
    rows = []
    for record in sort_trials(records):
        score = record.best_score
        status = f"{record.status}: {record.reason}" if record.reason else record.status
        rows.append(
            [
                *(_shorten(record.parameters.get(path, "")) for path in paths),
                "-" if score is None else f"{score:.4f}",
                f"{record.epochs_run}/{record.planned_epochs}",
                record.steps,
                f"{record.seconds:.0f}",
                status,
            ]
        )
    return render_table((*(path.split(".")[-1] for path in paths), *COLUMNS), rows)


def sort_trials(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """By how they ended, then by score."""
    return sorted(records, key=lambda record: (STATUS_ORDER.index(record.status), -(record.best_score or 0.0)))


def write_sweep_report(folder: Path, name: str, records: Sequence[TrialRecord], facts: Mapping[str, Any]) -> None:
    """Write `report.md` and the plots; returns the report.

    Args:
        folder: where to; made where it is missing.
        name: of the sweep.
        records: its trials.
        facts: lines on top of the table: what was best, whether it was promoted.
    """
    plot_curves(records, folder / CURVES_PLOT)
    plot_parallel(records, folder / PARALLEL_PLOT)
    lines = [f"# Sweep {name}", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += ["", render_trials(records), ""]
    lines += [f"Best score is the highest `{SCORE_KEY}` of any epoch. Stopped is by the scheduler.", ""]
    lines += [f"![learning curves]({CURVES_PLOT})", "", f"![parallel coordinates]({PARALLEL_PLOT})", ""]
    storage.write_file(folder / REPORT_FILE, "\n".join(lines))


def plot_curves(records: Sequence[TrialRecord], path: Path) -> None:
    """Score after each epoch, a line for each trial."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    scored = [record for record in sort_trials(records) if record.best_score is not None]
    norm, color = _colors(scored)
    for record in reversed(scored):  # the best lie on top
        points = [(epoch["epoch"], epoch[SCORE_KEY]) for epoch in record.epochs if SCORE_KEY in epoch]
        style = LINE_STYLES.get(record.status, ":")
        axes.plot(
            *zip(*points, strict=True), style, color=color(norm(record.best_score or 0.0)), marker="o", markersize=3
        )
    axes.set(xlabel="epoch", ylabel=SCORE_KEY, title="solid: finished, dashed: stopped by the scheduler, dotted: other")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    _save(figure, path)


def plot_parallel(records: Sequence[TrialRecord], path: Path) -> None:
    """An axis for each setting and one for the score, a line for each trial that has a score."""
    scored = [record for record in reversed(sort_trials(records)) if record.best_score is not None]
    paths = _paths(records)
    figure = Figure(figsize=(max(6.0, 1.9 * (len(paths) + 1)), 4.5), layout="constrained")
    axes = figure.add_subplot()
    heights = [_place(axes, i, path_, [record.parameters[path_] for record in scored]) for i, path_ in enumerate(paths)]
    heights.append(_place(axes, len(paths), "score", [record.best_score for record in scored]))
    norm, color = _colors(scored)
    for i, record in enumerate(scored):
        style = LINE_STYLES.get(record.status, ":")
        line = [axis_heights[i] for axis_heights in heights]
        axes.plot(range(len(heights)), line, style, color=color(norm(record.best_score or 0.0)), linewidth=1.6)
    axes.set_xticks(range(len(heights)), [*paths, SCORE_KEY])
    axes.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.25, len(heights) - 0.55))
    for spine in axes.spines.values():
        spine.set_visible(False)
    _save(figure, path)


def _place(axes: Axes, position: int, name: str, values: Sequence[Any]) -> list[float]:
    """Draw a vertical axis with its labels; returns the height of each value, 0 to 1.

    Few values, and whatever is no number, stand at equal distances; many numbers on a scale.
    """
    axes.axvline(position, color="0.6", linewidth=0.8)
    are_numbers = all(isinstance(value, int | float) for value in values)
    distinct = sorted(set(values)) if are_numbers else sorted({str(value) for value in values})
    if name != "score" and (not are_numbers or len(distinct) <= 6):
        ticks = {value: i / max(1, len(distinct) - 1) for i, value in enumerate(distinct)}
        places = [ticks[value if are_numbers else str(value)] for value in values]
    else:
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        is_log = name != "score" and low > 0 and high / low > 30
        ends = np.log([low, high]) if is_log else np.array([low, high], dtype=float)
        points = np.log(values) if is_log else np.asarray(values, dtype=float)
        places = list((points - ends[0]) / (ends[1] - ends[0] or 1.0))
        ticks = {low: 0.0, high: 1.0} if high > low else {low: 0.0}
    for value, height in ticks.items():
        axes.annotate(
            f"{value:.4g}" if isinstance(value, int | float) else value,
            (position, height),
            xytext=(4, 2),
            textcoords="offset points",
            fontsize=8,
        )
    return [float(place) for place in places]


def _colors(scored: Sequence[TrialRecord]) -> tuple[Normalize, Any]:
    scores = [record.best_score for record in scored if record.best_score is not None]
    return Normalize(min(scores, default=0.0), max(scores, default=1.0)), colormaps["viridis_r"]


def _paths(records: Sequence[TrialRecord]) -> list[str]:
    return list(dict.fromkeys(path for record in records for path in record.parameters))


def _shorten(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MAX_CELL_CHARS else "…" + text[1 - MAX_CELL_CHARS :]


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_png(path)
