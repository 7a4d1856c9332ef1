"""`report.md` of a corpus: what is in it, what was mended, left out or leaks, with figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.corpus.facts import Facts
from data_pipeline.corpus.figures import draw_figures, draw_topics
from data_pipeline.corpus.stats import count_topics, tabulate_modalities
from data_pipeline.markdown import render_table
from data_pipeline.records.catalog import ToolCatalog
from data_pipeline.records.schema import SPLITS

FIGURES = "figures"
SHOWN_MISSING_MEDIA = 100


def write_report(
    folder: Path, manifest: Mapping[str, Any], facts: Facts, catalog: ToolCatalog, missing_media: Sequence[str] = ()
) -> None:
    """Write `report.md` and `figures/*.png` into the corpus folder.

    Args:
        folder: of the corpus.
        manifest: with every number.
        facts: of the records, with their splits.
        catalog: of the corpus.
        missing_media: the first `SHOWN_MISSING_MEDIA` paths of absent files.
    """
    (folder / FIGURES).mkdir()
    figures = draw_figures(manifest["counts"], facts) | {"words": draw_topics(count_topics(facts, catalog))}
    for name, figure in figures.items():
        # no version in the file: the same input, the same bytes
        figure.savefig(folder / FIGURES / f"{name}.png", dpi=110, metadata={"Software": None})
    (folder / "report.md").write_text(render_report(manifest, missing_media), encoding="utf-8")


def render_report(manifest: Mapping[str, Any], missing_media: Sequence[str] = ()) -> str:
    """The report as Markdown; every number comes from the manifest, the names of missing media from the list."""
    counts = manifest["counts"]
    sections = [
        f"# Corpus report: {manifest['source']}",
        f"Data hash `{manifest['data_hash']}`, schema version {manifest['schema_version']}.",
        *(f"Licence of {name}: {licence}." for name, licence in manifest["licences"].items()),
        "## Questions",
        "One question is one distinct (words, medium); `rows` counts its right answers one by one, as the papers do.",
        render_table(["", *SPLITS], _count_rows(counts)),
        "By modality, as MLLM-Tool's Table 3 has it:",
        render_table(*tabulate_modalities(counts)),
        f"![by modality]({FIGURES}/modality.png) ![by ambiguity type]({FIGURES}/ambiguity.png)",
        f"![right answers per question]({FIGURES}/answers.png) ![questions per tool]({FIGURES}/tools.png)",
        "## Tools",
        render_table(["", "tools"], [[key.replace("_", " "), value] for key, value in manifest["tools"].items()]),
        f"![what the tools are for, by questions]({FIGURES}/words.png)",
        *_dialogue_sections(manifest["dialogues"]),
        "## Leaks",
        "Held-out questions that training has seen: the same words with the same medium, or just the same medium. "
        "Case, spacing and Unicode spelling of the words do not count.",
        "In brackets: as the source counts, which may repeat a question.",
        render_table(
            ["compared", "modality", "questions", "exact pairs", "shared media"], _leak_rows(manifest["leaks"])
        ),
        _leak_policy(manifest["leaks"]),
        "## Missing, duplicate, mended, rejected",
        render_table(["", "number"], _defect_rows(manifest)),
        "Rejected items are listed one by one in `rejected.jsonl`. Media that cannot be decoded are found when they "
        "are encoded: see the feature lake's quarantine.",
        *_missing_section(missing_media, manifest["missing_media"]["files"]),
    ]
    return "\n\n".join(sections) + "\n"


def _count_rows(counts: Mapping[str, Any]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for key in ("questions", "rows"):
        rows.append([key, *(counts[split][key] for split in SPLITS)])
    for group in ("by_modality", "by_ambiguity_type"):
        name = group.removeprefix("by_").replace("_", " ")
        for kind in counts[SPLITS[0]][group]:
            rows.append([f"{name}: {kind}", *(counts[split][group][kind] for split in SPLITS)])
    for key in ("one_to_one", "one_to_many", "unknown", "distinct_media"):
        rows.append([key.replace("_", " "), *(counts[split][key] for split in SPLITS)])
    return rows


def _dialogue_sections(dialogues: Mapping[str, Any]) -> list[str]:
    """The section on dialogues; none for a corpus without them."""
    if not dialogues:
        return []
    rows = [[key.replace("_", " "), *(dialogues[split][key] for split in SPLITS)] for key in dialogues[SPLITS[0]]]
    return [
        "## Dialogues",
        "By the number of tools called, with earlier turns in the prompt, and by whether a dialogue of the training "
        "split calls every tool that is called. The tables above count dialogues among the text questions, and those "
        "that call no tool under `unknown`.",
        render_table(["", *SPLITS], rows),
    ]


def _leak_rows(leaks: Mapping[str, Any]) -> list[list[Any]]:
    return [
        [label, modality]
        + [f"{numbers[key]} ({numbers['released_' + key]})" for key in ("checked", "exact_pairs", "shared_media")]
        for label, key in (("test / train + val", "test_vs_train_and_val"), ("val / train", "val_vs_train"))
        for modality, numbers in leaks[key].items()
    ]


def _leak_policy(leaks: Mapping[str, Any]) -> str:
    if leaks["policy"] == "drop":
        return (
            f"{leaks['dropped']} test questions were dropped: {leaks['drop_rule']}. The table shows the state before."
        )
    return "Nothing was dropped (`leak=report`); build with `leak=drop` for a leak-free test split."


def _defect_rows(manifest: Mapping[str, Any]) -> list[list[Any]]:
    missing = manifest["missing_media"]
    rows: list[list[Any]] = [
        ["media files missing", missing["files"]],
        [f"records whose medium is missing (policy: {missing['policy']})", missing["records"]],
        ["duplicate questions merged", manifest["duplicates_merged"]],
    ]
    rows += [[f"mended: {kind}", count] for kind, count in manifest["repairs"].items()]
    rows += [[f"rejected: {reason}", count] for reason, count in manifest["rejected"].items()]
    return rows


def _missing_section(missing_media: Sequence[str], n_missing: int) -> list[str]:
    """The names of the first missing files; nothing where all are there."""
    if not missing_media:
        return []
    shown = [f"- `{uri}`" for uri in missing_media[:SHOWN_MISSING_MEDIA]]
    rest = n_missing - len(shown)
    more = [f"And {rest} more; all are in `rejected.jsonl`."] if rest else []
    return ["## Missing media", "\n".join(shown), *more]
