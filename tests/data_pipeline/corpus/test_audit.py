"""The audit of corpora with planted faults, each of which is found, and of a clean one, in which none is."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from data_pipeline.corpus.audit import CHECKS, CorpusAudit, audit_corpus
from data_pipeline.corpus.audit_page import render_audit_page
from data_pipeline.corpus.build import Corpus, PrepareOptions, build_corpus

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
TASKS = {
    "shop/stock": ("How many teapots are left?", "Is the red kettle still there", "Count our spoons for me, will you"),
    "shop/invoice": ("Bill Mrs Li for the lamp.", "Send the bakery its statement", "Charge the school for ten desks"),
    "shop/track": ("Where is my parcel now?", "When do the boots arrive at home", "Has the courier left the depot"),
}
CLEAN = [
    {"instruction": words, "tools": [tool_id], "split": split}
    for tool_id, questions in TASKS.items()
    for words, split in zip(questions, ("train", "val", "test"), strict=True)
]


def _build(folder: Path, rows: list[dict[str, object]], tools: tuple[str, ...] = ()) -> Corpus:
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "catalog.txt").write_text("\n".join([*TASKS, *tools]) + "\n", encoding="utf-8")
    options = PrepareOptions(source="jsonl", path=folder / "records.jsonl", media_root=folder)
    build_corpus(options, folder / "corpus")
    return Corpus.open(folder / "corpus")


def _counts(audit: CorpusAudit) -> dict[str, int]:
    return {finding.check: finding.n for finding in audit.findings if finding.n}


def test_a_clean_corpus_has_no_finding(tmp_path: Path) -> None:
    audit, facts = audit_corpus(_build(tmp_path, CLEAN))
    assert _counts(audit) == {}
    assert tuple(finding.check for finding in audit.findings) == tuple(CHECKS)
    assert "None of the 8 checks found anything" in render_audit_page(audit, facts)


def test_planted_faults_are_found(tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    planted: list[dict[str, object]] = [
        # the words of a training question, spelt otherwise, with another answer: a leak and a conflict
        {"instruction": "where is MY  parcel now?", "tools": ["shop/stock"], "split": "test"},
        # the same picture under another name
        {"instruction": "Mend it", "media": "a.png", "tools": ["shop/stock"], "split": "train"},
        {"instruction": "What is wrong here", "media": "copy.png", "tools": ["shop/stock"], "split": "val"},
        {"instruction": "Mend it", "media": "b.png", "tools": ["shop/invoice"], "split": "test"},
        # a typing error; and the same with another answer
        {"instruction": "How many teapots are left!?", "tools": ["shop/stock"], "split": "test"},
        {"instruction": "Bill Mrs Li for the lamps.", "tools": ["shop/track"], "split": "train"},
        {"instruction": "Put the nude statue on the shelf", "tools": ["shop/rare$x_$"], "split": "test"},
        {"instruction": f"Say {HOSTILE} to the next customer please", "tools": ["shop/stock"], "split": "train"},
        {"instruction": f"Say {HOSTILE} to the next customers please", "tools": ["shop/stock"], "split": "train"},
    ]
    corpus = _build(tmp_path, [*CLEAN, *planted], ("shop/rare$x_$",))
    audit, facts = audit_corpus(corpus)
    assert _counts(audit) == {
        "exact_leaks": 1,
        "shared_media": 1,
        "near_duplicates_across": 1,
        "near_duplicates_within": 2,
        "label_conflicts": 1,
        "near_label_conflicts": 1,
        "tools_never_in_training": 1,
        "unsafe_words": 1,
    }
    found = {finding.check: finding for finding in audit.findings}
    assert found["exact_leaks"].by == {"test, text": 1}
    assert found["shared_media"].examples[0].text == "What is wrong here"
    (across,) = found["near_duplicates_across"].examples
    assert (across.text, across.other, across.similarity) == ("How many teapots are left!?", TASKS["shop/stock"][0], 1)
    assert found["near_label_conflicts"].examples[0].other == "Bill Mrs Li for the lamp."
    assert found["label_conflicts"].examples[0].other_tools == ("shop/track",)
    assert (found["unsafe_words"].examples[0].other, found["unsafe_words"].by) == ("nude", {"test": 1})
    assert audit.tools["shop/stock"] == {"train": 4, "val": 2, "test": 3}
    assert audit.tail["rare_in_training"] == 4
    _check_page(render_audit_page(audit, facts), audit)
    numbers = json.loads(json.dumps(audit.to_json()))
    assert numbers["findings"]["exact_leaks"]["n"] == 1
    assert numbers["licences"] == {"jsonl": {"terms": "the user's own data; terms not stated", "is_stated": False}}


def _check_page(page: str, audit: CorpusAudit) -> None:
    """Whole in itself, with the audit's numbers, and nothing of a question is markup."""
    tags: list[tuple[str, dict[str, str | None]]] = []
    texts: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append((tag, dict(attrs)))
    parser.handle_data = texts.append
    parser.feed(page)
    assert "script" not in {tag for tag, _ in tags}
    assert not [attrs for _, attrs in tags if any(name.startswith("on") for name in attrs)]
    assert any(HOSTILE in text for text in texts), "it is shown as it is"
    images = [str(attrs["src"]) for tag, attrs in tags if tag == "img"]
    assert len(images) == 7
    for image in images:
        svg = base64.b64decode(image.removeprefix("data:image/svg+xml;base64,")).decode()
        assert svg.rstrip().endswith("</svg>")
        assert "<script" not in svg
    addresses = [value for _, attrs in tags for name, value in attrs.items() if name in ("src", "href") and value]
    assert all(address.startswith("data:") for address in addresses)
    for finding in audit.findings:
        title = re.escape(CHECKS[finding.check][0])
        assert re.search(rf'<td>{title}</td><td class="n">{finding.n}</td>', page)


def test_the_same_corpus_gives_the_same_page(tmp_path: Path) -> None:
    pages = [render_audit_page(*audit_corpus(_build(tmp_path, CLEAN))) for _ in range(2)]
    assert pages[0] == pages[1]
