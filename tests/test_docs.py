"""The documents name files that exist: every path in docs/architecture.md, and the project's own in all the others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PACKAGES = ("data_pipeline", "model", "ray_jobs", "serve")
ARCHITECTURE = REPO / "docs" / "architecture.md"
DOCUMENTS = [
    REPO / "README.md",
    *(REPO / package / "README.md" for package in (*PACKAGES, "deploy")),
    *(path for path in sorted((REPO / "docs").glob("*.md")) if path.name != "results.md"),  # a log of the past
]
TOP = (*PACKAGES, "tests", "docs")

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
# ends with a suffix or a slash, or begins with a folder of ours
_PATH = re.compile(rf"[\w.-]+(?:/[\w.-]+)*(?:/|\.[a-z]+)|(?:{'|'.join(TOP)})(?:/[\w.-]+)+")


def name_of(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def iterate_paths(document: Path) -> Iterator[str]:
    """What stands in code spans, outside of code blocks, and has the form of a path."""
    for span in _CODE.findall(_FENCE.sub("", document.read_text(encoding="utf-8"))):
        if _PATH.fullmatch(span):
            yield span


def exists(document: Path, path: str) -> bool:
    """Whether a path is there, from the project's root or the document's folder; a package's README may name a file by
    its name alone."""
    in_package = document.parent.name in PACKAGES and "/" not in path and any(document.parent.rglob(path))
    return in_package or (REPO / path).exists() or (document.parent / path).exists()


def test_the_architecture_names_files_that_exist() -> None:
    paths = set(iterate_paths(ARCHITECTURE))
    assert len(paths) > 60
    strangers = sorted(path for path in paths if not (REPO / path).exists())
    assert not strangers, f"docs/architecture.md names {strangers}, which do not exist"


def test_the_architecture_names_every_room() -> None:
    paths = set(iterate_paths(ARCHITECTURE))
    rooms = [name_of(start.parent) + "/" for package in PACKAGES for start in (REPO / package).glob("*/__init__.py")]
    assert len(rooms) > 20
    missing = sorted(set(rooms) - paths)
    assert not missing, f"docs/architecture.md says nothing of {missing}"


@pytest.mark.parametrize("package", ["data_pipeline", "model", "ray_jobs"])  # serve's goes by its deployments
def test_a_packages_readme_says_what_each_room_is_for(package: str) -> None:
    paths = set(iterate_paths(REPO / package / "README.md"))
    missing = [
        start.parent.name for start in (REPO / package).glob("*/__init__.py") if start.parent.name + "/" not in paths
    ]
    assert not missing, f"{package}/README.md says nothing of {missing}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_documents_name_files_that_exist(document: Path) -> None:
    """Those of the project: what a run writes, and what a reader is to write, are other names."""
    ours = [path for path in iterate_paths(document) if path.endswith(".py") or path.split("/")[0] in TOP]
    strangers = [path for path in ours if not exists(document, path)]
    assert not strangers, f"{name_of(document)} names {strangers}, which do not exist"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_to_files(document: Path) -> None:
    links = [link for link in _LINK.findall(document.read_text(encoding="utf-8")) if ":" not in link]
    broken = [link for link in links if not (document.parent / link).exists()]
    assert not broken, f"{name_of(document)} links to {broken}, which do not exist"
