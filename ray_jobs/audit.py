"""`audit`: what is wrong with a prepared corpus, and what it holds, as a page that people show and as JSON."""

from __future__ import annotations

import json
from typing import Any

from data_pipeline import storage
from data_pipeline.corpus.audit import CHECKS, audit_corpus
from data_pipeline.corpus.files import Corpus
from data_pipeline.markdown import render_table
from ray_jobs.config import RunSpec

FOLDER = "audit"  # in the run's folder
PAGE_FILE, NUMBERS_FILE = "audit.html", "audit.json"


def run(spec: RunSpec) -> dict[str, Any]:
    """Audit `audit.corpus`, or the run's own corpus; write the page and the numbers; print what was found.

    Raises:
        InputError: there is no corpus, or it is damaged.
    """
    from data_pipeline.corpus.audit_page import render_audit_page  # imports matplotlib

    corpus = Corpus.open(spec.audit.corpus or spec.corpus_dir)
    audit, facts = audit_corpus(corpus)
    numbers = audit.to_json()
    folder = spec.run_dir / FOLDER
    with storage.replacing_folder(folder) as new:
        storage.write_file(new / PAGE_FILE, render_audit_page(audit, facts))
        storage.write_file(new / NUMBERS_FILE, json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    rows = [
        [CHECKS[finding.check][0], finding.n, "; ".join(f"{by} {n}" for by, n in finding.by.items())]
        for finding in audit.findings
    ]
    print(f"corpus {corpus.path}  source {audit.source}  data hash {audit.data_hash[:12]}")
    print(render_table(["check", "found", "where"], rows))
    print(f"page: {folder / PAGE_FILE}")
    return {
        "audit": str(folder),
        "corpus": str(corpus.path),
        "found": audit.n_found,
        "findings": {finding.check: finding.n for finding in audit.findings},
        "tail": audit.tail,
    }
