"""What is wrong with a prepared corpus and what it holds: numbers with examples, for a page and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data_pipeline.corpus.facts import Facts
from data_pipeline.corpus.files import Corpus
from data_pipeline.corpus.leaks import audit_leaks
from data_pipeline.corpus.near_duplicates import NEAR, NearPair, find_near_duplicates
from data_pipeline.corpus.stats import count_splits, count_topics
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, ToolCatalog
from data_pipeline.records.keys import question_keys
from data_pipeline.records.schema import SPLITS, ToolRecord
from data_pipeline.records.unsafe import find_unsafe_words

EXAMPLES = 20  # that a finding shows
RARE = 5  # questions of training below which a tool is in the tail
NOT_STATED = "not stated"  # in a licence: the source says nothing of its terms

# what is looked for, in the order of the page: check -> (title, what it means)
CHECKS = {
    "exact_leaks": (
        "Exact leaks",
        "Held-out questions that an earlier split has with the same words and the same medium: a score on them "
        "measures memory. prepare.leak=drop leaves them out.",
    ),
    "shared_media": (
        "Shared media",
        "Held-out questions whose picture, sound or video an earlier split has as well, in whatever words.",
    ),
    "near_duplicates_across": (
        "Near-duplicates across splits",
        f"Held-out questions of which an earlier split has almost the same (similarity {NEAR} or more).",
    ),
    "near_duplicates_within": (
        "Near-duplicates within a split",
        "Questions of which their own split has almost the same: they cost training time and say little more.",
    ),
    "label_conflicts": (
        "Label conflicts",
        "The same question in two splits with different answers. (Within a split prepare joins them: all answers "
        "stand.)",
    ),
    "near_label_conflicts": (
        "Contradictions of near-duplicates",
        "Almost the same question, and no tool is right for both. Some differ in the one word that decides; the others "
        "teach noise.",
    ),
    "tools_never_in_training": (
        "Tools that training never sees",
        "Held-out questions ask for them. Corpora that hold tools out on purpose have them, too.",
    ),
    "unsafe_words": ("Unsafe words", "Questions and tools that hold one of a short list of English words."),
}


@dataclass(frozen=True)
class Example:
    """Something that was found.

    Attributes:
        where: split and record id, or the catalogue.
        text: the question's words, or the tool.
        tools: the right answers.
        other: the earlier question's words, where there is one; otherwise what was found.
        other_where: of the earlier question.
        other_tools: its right answers.
        similarity: of both, 0 to 1; None where it was not computed.
    """

    where: str
    text: str
    tools: tuple[str, ...] = ()
    other: str = ""
    other_where: str = ""
    other_tools: tuple[str, ...] = ()
    similarity: float | None = None


_Found = Iterable[tuple[str, Example]]  # (by what it is counted, what it is)


@dataclass(frozen=True)
class Finding:
    """One check of `CHECKS`: how many it found, by split or by what says more, and the first of them."""

    check: str
    n: int
    by: Mapping[str, int]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class CorpusAudit:
    """All that is said of a corpus.

    Attributes:
        findings: of each of `CHECKS`, in that order; n = 0 where all is well.
        counts: of each split, as the manifest has them.
        tools: of every tool of the catalogue, the most asked for first: its questions in each split.
        topics: what the tools are for, of `count_topics`.
        tail: how many tools have no question, and few of training; what share of training the first tenth has.
        similarities: of all near pairs.
        licences: source -> terms, as the manifest has them.
    """

    source: str
    data_hash: str
    findings: tuple[Finding, ...]
    counts: dict[str, Any]
    tools: dict[str, dict[str, int]]
    topics: dict[str, int]
    tail: dict[str, float]
    similarities: list[float]
    licences: dict[str, str]

    @property
    def n_found(self) -> int:
        return sum(finding.n for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON."""
        found = {
            finding.check: {
                "n": finding.n,
                "by": dict(finding.by),
                "examples": [
                    {key: value for key, value in asdict(example).items() if value not in ("", (), None)}
                    for example in finding.examples
                ],
            }
            for finding in self.findings
        }
        return {
            "source": self.source,
            "data_hash": self.data_hash,
            "found": self.n_found,
            "findings": found,
            "counts": self.counts,
            "tools": self.tools,
            "topics": self.topics,
            "tail": self.tail,
            "licences": {
                source: {"terms": terms, "is_stated": NOT_STATED not in terms}
                for source, terms in self.licences.items()
            },
        }


def audit_corpus(corpus: Corpus) -> tuple[CorpusAudit, Facts]:
    """Read a corpus and look for all of `CHECKS`.

    Returns:
        the audit, and the facts of all records.

    Raises:
        InputError: the corpus is damaged.
    """
    by_split = {split: list(corpus.records(split)) for split in SPLITS}
    pairs = list(find_near_duplicates(by_split))
    found = {
        **_find_leaks(by_split),
        **_find_near(pairs),
        "label_conflicts": _find_conflicts(by_split),
        "tools_never_in_training": _find_unseen(by_split),
        "unsafe_words": _find_unsafe(by_split, corpus.catalog),
    }
    tools = _count_tools(by_split, corpus.catalog)
    facts = Facts.of_records([record for split in SPLITS for record in by_split[split]])
    audit = CorpusAudit(
        source=corpus.manifest["source"],
        data_hash=corpus.data_hash,
        findings=tuple(_collect(check, found[check]) for check in CHECKS),
        counts=count_splits(facts),
        tools=tools,
        topics=count_topics(facts, corpus.catalog),
        tail=_measure_tail(tools),
        similarities=[round(pair.similarity, 4) for pair in pairs],
        licences=dict(corpus.manifest["licences"]),
    )
    return audit, facts


def _collect(check: str, found: _Found) -> Finding:
    listed = list(found)
    examples = [example for _, example in listed[:EXAMPLES]]
    return Finding(check, len(listed), dict(Counter(by for by, _ in listed)), tuple(examples))


def _find_leaks(by_split: Mapping[str, Sequence[ToolRecord]]) -> dict[str, list[tuple[str, Example]]]:
    """By the audit of `prepare`: test against all before it, val against training."""
    exact: list[tuple[str, Example]] = []
    shared: list[tuple[str, Example]] = []
    for split, seen in (("val", by_split["train"]), ("test", [*by_split["train"], *by_split["val"]])):
        leaks = audit_leaks(seen, by_split[split])
        exact_ids, shared_ids = set(leaks.exact_pairs), set(leaks.shared_media)
        for record in by_split[split]:
            by = f"{split}, {record.modality.value}"
            if record.record_id in exact_ids:
                exact.append((by, _show(record)))
            if record.record_id in shared_ids:
                shared.append((by, _show(record, other=record.media_uri)))
    return {"exact_leaks": exact, "shared_media": shared}


def _find_near(pairs: Sequence[NearPair]) -> dict[str, list[tuple[str, Example]]]:
    """A question counts once in each split in which it has near ones, and once more if it contradicts them."""
    found: dict[str, list[tuple[str, Example]]] = {
        "near_duplicates_across": [],
        "near_duplicates_within": [],
        "near_label_conflicts": [],
    }
    counted: set[tuple[str, str]] = set()
    for pair in sorted(pairs, key=lambda pair: -pair.similarity):
        split, earlier = pair.record.split, pair.earlier.split
        example = _show(pair.record, pair.earlier, similarity=round(pair.similarity, 4))
        key = (pair.record.record_id, earlier)
        if key not in counted:
            counted.add(key)
            by = split if split == earlier else f"{split} / {earlier}"
            found["near_duplicates_within" if split == earlier else "near_duplicates_across"].append((by, example))
        if pair.is_contradiction:
            found["near_label_conflicts"].append((f"{split} / {earlier}", example))
    return found


def _find_conflicts(by_split: Mapping[str, Sequence[ToolRecord]]) -> _Found:
    seen: dict[tuple[str, str], ToolRecord] = {}
    for split in SPLITS:
        for record in by_split[split]:
            for key in question_keys(record):
                first = seen.setdefault(key, record)
                if set(first.valid_tool_ids) != set(record.valid_tool_ids):
                    yield f"{split} / {first.split}", _show(record, first)
                    break


def _find_unseen(by_split: Mapping[str, Sequence[ToolRecord]]) -> _Found:
    seen = {tool_id for record in by_split["train"] for tool_id in record.valid_tool_ids}
    for split in SPLITS[1:]:
        asked = Counter(tool_id for record in by_split[split] for tool_id in record.valid_tool_ids)
        for tool_id in sorted(asked.keys() - seen):
            yield split, Example(split, tool_id, other=f"{asked[tool_id]} questions")


def _find_unsafe(by_split: Mapping[str, Sequence[ToolRecord]], catalog: ToolCatalog) -> _Found:
    for split in SPLITS:
        for record in by_split[split]:
            if words := find_unsafe_words(record.instruction):
                yield split, _show(record, other=", ".join(words))
    for tool in catalog:
        if words := find_unsafe_words(f"{tool.tool_id} {tool.description}"):
            yield "catalogue", Example("catalogue", tool.tool_id, other=", ".join(words))


def _show(
    record: ToolRecord, earlier: ToolRecord | None = None, other: str = "", similarity: float | None = None
) -> Example:
    where = f"{record.split}: {record.record_id}"
    if earlier is None:
        return Example(where, record.instruction, tools=record.valid_tool_ids, other=other)
    return Example(
        where,
        record.instruction,
        tools=record.valid_tool_ids,
        other=earlier.instruction,
        other_where=f"{earlier.split}: {earlier.record_id}",
        other_tools=earlier.valid_tool_ids,
        similarity=similarity,
    )


def _count_tools(by_split: Mapping[str, Sequence[ToolRecord]], catalog: ToolCatalog) -> dict[str, dict[str, int]]:
    counts = {
        split: Counter(tool_id for record in records for tool_id in record.valid_tool_ids)
        for split, records in by_split.items()
    }
    totals = {tool_id: sum(counts[split][tool_id] for split in SPLITS) for tool_id in catalog.tool_ids}
    ranked = sorted(totals, key=lambda tool_id: (-totals[tool_id], tool_id))
    return {tool_id: {split: counts[split][tool_id] for split in SPLITS} for tool_id in ranked}


def _measure_tail(tools: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Of the tools proper: "none of them" is none, and answers nothing in many corpora."""
    training = sorted((n["train"] for tool_id, n in tools.items() if tool_id != UNKNOWN_TOOL_ID), reverse=True)
    head = -(-len(training) // 10)
    return {
        "tools": len(training),
        "without_any_question": sum(not any(n.values()) for tool_id, n in tools.items() if tool_id != UNKNOWN_TOOL_ID),
        "rare_in_training": sum(n < RARE for n in training),
        "share_of_first_tenth": round(sum(training[:head]) / max(1, sum(training)), 4),
        "median_in_training": training[len(training) // 2] if training else 0,
    }
