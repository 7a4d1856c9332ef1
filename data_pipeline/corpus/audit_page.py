"""The audit of a corpus as one HTML file with its figures inside: no script, no other file, no request to any host."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from data_pipeline.corpus.audit import CHECKS, NOT_STATED, RARE, CorpusAudit, Example, Finding
from data_pipeline.corpus.facts import Facts
from data_pipeline.corpus.figures import draw_figures, draw_topics, new_figure
from data_pipeline.corpus.near_duplicates import NEAR
from data_pipeline.corpus.stats import tabulate_modalities
from data_pipeline.records.schema import SPLITS

SHOWN_CHARS = 400  # of a question
SHOWN_TOOLS = 40  # of the figure; the table has all

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bad: #b3261e; --good: #1e7d34; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); } .id { opacity: .65; font-size: .85em; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; max-width: 100%; background: #fff; border-radius: 6px; }
figure img { max-width: 100%; height: auto; display: block; } summary { cursor: pointer; margin: .4rem 0; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --good: #81c995; } }
"""


def render_audit_page(audit: CorpusAudit, facts: Facts) -> str:
    """The page; every text of the corpus is escaped, and the same audit gives the same bytes.

    Args:
        audit: of `audit_corpus`.
        facts: of the records that it was made of.
    """
    figures = draw_figures(audit.counts, facts) | {"per_tool": _draw_per_tool(audit.tools)}
    figures["topics"] = draw_topics(audit.topics)
    if audit.similarities:
        figures["similarities"] = _draw_similarities(audit.similarities)
    n_questions = sum(audit.counts[split]["questions"] for split in SPLITS)
    n_checks = sum(finding.n > 0 for finding in audit.findings)
    verdict = (
        f'<p class="bad">{n_checks} of {len(CHECKS)} checks found something.</p>'
        if n_checks
        else f'<p class="good">None of the {len(CHECKS)} checks found anything.</p>'
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        f"<title>Audit of {escape(audit.source)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Audit of {escape(audit.source)}</h1>",
        f"<p>{n_questions:,} questions, {len(audit.tools):,} tools; data hash <code>{escape(audit.data_hash[:12])}"
        "</code>.</p>",
        verdict,
        _render_table(["check", "found", "where"], [_summarise(finding) for finding in audit.findings]),
        *(_render_finding(finding) for finding in audit.findings if finding.n),
        "<h2>What it holds</h2>",
        _render_figure("Questions by modality", figures["modality"]),
        _render_figure("Questions by ambiguity type", figures["ambiguity"]),
        _render_table(["", *SPLITS], _balance_rows(audit.counts)),
        "<p>By modality, as MLLM-Tool's Table 3 has it:</p>",
        _render_table(*tabulate_modalities(audit.counts)),
        "<h2>Tools</h2>",
        _render_figure("What the tools are for, by questions", figures["topics"]),
        _render_figure("The long tail of tools", figures["tools"]),
        _render_figure("Right answers per question", figures["answers"]),
        _render_figure("Questions per tool", figures["per_tool"]),
        _render_table(["", "number"], _tail_rows(audit.tail)),
        f"<details><summary>All {len(audit.tools):,} tools</summary>",
        _render_table(["tool", *SPLITS], [[tool_id, *n.values()] for tool_id, n in audit.tools.items()]),
        "</details>",
        *(
            ["<h2>Near-duplicates</h2>", _render_figure("Similarity of near pairs", figures["similarities"])]
            if audit.similarities
            else []
        ),
        "<h2>Licences</h2>",
        _render_table(["source", "terms", ""], _licence_rows(audit.licences)),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _summarise(finding: Finding) -> list[Any]:
    where = "; ".join(f"{by} {n:,}" for by, n in finding.by.items())
    return [CHECKS[finding.check][0], finding.n, where]


def _render_finding(finding: Finding) -> str:
    title, meaning = CHECKS[finding.check]
    rows = [[*_describe(example)] for example in finding.examples]
    shown = f"The first {len(rows)} of {finding.n:,}" if finding.n > len(rows) else "All of them"
    return (
        f"<h2>{escape(title)}: {finding.n:,}</h2><p>{escape(meaning)}</p>"
        f"<details open><summary>{shown}</summary>"
        + _render_table(["what", "answers", "beside", "its answers", "similarity"], rows)
        + "</details>"
    )


def _describe(example: Example) -> list[Any]:
    similarity = "" if example.similarity is None else f"{example.similarity:.2f}"
    return [
        (_shorten(example.text), example.where),
        ", ".join(example.tools),
        (_shorten(example.other), example.other_where),
        ", ".join(example.other_tools),
        similarity,
    ]


def _shorten(text: str) -> str:
    """The end of a long one: a dialogue's prompt has the user's words there."""
    return text if len(text) <= SHOWN_CHARS else "… " + text[-SHOWN_CHARS:]


def _balance_rows(counts: Mapping[str, Any]) -> list[list[Any]]:
    """Numbers with their share of the split's questions."""
    rows: list[list[Any]] = [["questions", *(counts[split]["questions"] for split in SPLITS)]]
    for group in ("by_modality", "by_ambiguity_type"):
        name = group.removeprefix("by_").replace("_", " ")
        for kind in counts[SPLITS[0]][group]:
            numbers = [(counts[split][group][kind], max(1, counts[split]["questions"])) for split in SPLITS]
            rows.append([f"{name}: {kind}", *(f"{n:,} ({n / of:.0%})" for n, of in numbers)])
    for key in ("one_to_one", "one_to_many", "unknown", "distinct_media"):
        rows.append([key.replace("_", " "), *(counts[split][key] for split in SPLITS)])
    return rows


def _tail_rows(tail: Mapping[str, float]) -> list[list[Any]]:
    return [
        ["tools, without “none of them”", tail["tools"]],
        ["without any question", tail["without_any_question"]],
        [f"in the tail: fewer than {RARE} questions of training", tail["rare_in_training"]],
        ["questions of training, median", tail["median_in_training"]],
        ["share of training that the most asked tenth has", f"{tail['share_of_first_tenth']:.0%}"],
    ]


def _licence_rows(licences: Mapping[str, str]) -> list[list[Any]]:
    return [[name, terms, "ask before you publish" if NOT_STATED in terms else ""] for name, terms in licences.items()]


def _render_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Cells are numbers, texts, or (text, where it is from); columns that hold nothing are left out."""
    columns = [c for c in range(len(header)) if not rows or any(_render_cell(row[c]) for row in rows)]
    is_number = {c: all(_looks_like_number(row[c]) for row in rows) for c in columns}

    def tag(name: str, c: int, content: str) -> str:
        return f'<{name} class="n">{content}</{name}>' if is_number[c] else f"<{name}>{content}</{name}>"

    head = "".join(tag("th", c, escape(header[c])) for c in columns)
    body = "\n".join("<tr>" + "".join(tag("td", c, _render_cell(row[c])) for c in columns) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def _render_cell(cell: Any) -> str:
    if isinstance(cell, tuple):
        text, where = cell
        return escape(text) + (f'<br><span class="id">{escape(where)}</span>' if where else "")
    return f"{cell:,}" if isinstance(cell, int | float) else escape(str(cell))


def _looks_like_number(cell: Any) -> bool:
    return isinstance(cell, int | float) or (isinstance(cell, str) and cell[:1].isdigit() and not cell.isalpha())


def _render_figure(title: str, figure: Figure) -> str:
    """As an image in the page: what an SVG holds cannot meet the page's own names, and no script runs in it."""
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "toolmm", "svg.fonttype": "path"}):  # the same input, the same bytes
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{escape(title)}"></figure>'


def _draw_per_tool(tools: Mapping[str, Mapping[str, int]]) -> Figure:
    shown = list(tools)[:SHOWN_TOOLS]
    title = "Questions per tool" if len(shown) == len(tools) else f"Questions of the {len(shown)} most asked tools"
    figure, axes = new_figure(title, "questions", "", height=1.2 + 0.2 * len(shown))
    left = [0] * len(shown)
    for split in SPLITS:
        widths = [tools[tool_id][split] for tool_id in shown]
        axes.barh(range(len(shown)), widths, left=left, label=split)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    labels = [tool_id if len(tool_id) <= 40 else tool_id[:39] + "…" for tool_id in shown]
    # a tool's id may hold the signs of matplotlib's formulas
    axes.set_yticks(range(len(shown)), labels, fontsize=7, parse_math=False)
    axes.invert_yaxis()
    axes.legend()
    return figure


def _draw_similarities(similarities: Sequence[float]) -> Figure:
    figure, axes = new_figure("Near pairs by similarity", "similarity", "pairs")
    axes.hist(similarities, bins=20, range=(NEAR, 1.0))
    return figure
