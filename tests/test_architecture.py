"""The repository's own rules: layers, sizes, names, annotations, package READMEs, tests that mirror the packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PACKAGES = ("data_pipeline", "model", "ray_jobs", "serve")
MAX_LINES = 400
BANNED_WORDS = {"utils", "util", "helper", "helpers", "manager", "misc", "new", "legacy", "v2"}
# names of libraries in use, which a module of ours must not shadow in a reader's mind
BANNED_STEMS = {"tokenize", "deepspeed", "ray", "torch", "mlflow", "transformers", "peft"}

SOURCES = sorted(path for package in PACKAGES for path in (REPO / package).rglob("*.py"))
# tests of what a room's modules do together
TESTS_OF_A_WHOLE_ROOM = {
    "tests/serve/tools/test_real_media.py",
    "tests/serve/deployments/test_http.py",  # the routes of all deployments, over stand-ins
    "tests/serve/deployments/test_openai_client.py",  # the same routes as OpenAI's client sees them
    "tests/serve/deployments/test_agent_clients.py",  # and other people's agents
}

TESTS = sorted(path for path in (REPO / "tests").rglob("test_*.py") if path.parent != REPO / "tests")


def name_of(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 40
    assert len(TESTS) > 10
    assert {name_of(path).split("/")[0] for path in SOURCES} == set(PACKAGES)


def test_imports_go_one_way() -> None:
    """The import-linter contracts of pyproject.toml."""
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_stay_small(path: Path) -> None:
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert n_lines <= MAX_LINES, f"{name_of(path)} has {n_lines} lines; split it by what it is about"


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=name_of)
def test_names_say_what_a_file_is_about(path: Path) -> None:
    words = {word for part in path.relative_to(REPO).with_suffix("").parts for word in part.split("_")}
    assert not words & BANNED_WORDS, f"{name_of(path)}: {words & BANNED_WORDS} says nothing"
    assert path.stem not in BANNED_STEMS, f"{name_of(path)} is called like a library in use"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_say_what_they_are_for(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{name_of(path)} has no module docstring"


def test_every_folder_of_code_is_a_room_with_one_sentence() -> None:
    rooms = {path.parent for path in SOURCES}
    silent = []
    for room in rooms:
        start = room / "__init__.py"
        sentence = ast.get_docstring(ast.parse(start.read_text(encoding="utf-8"))) if start.is_file() else None
        if not sentence or "\n\n" in sentence:
            silent.append(name_of(room))
    assert not silent, f"{silent}: say in one sentence in __init__.py what the room is for"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_public_functions_are_annotated(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    faults = [fault for function, is_method in iterate_public(tree) for fault in find_gaps(function, is_method)]
    assert not faults, f"{name_of(path)}: {'; '.join(faults)}"


FunctionDef = ast.FunctionDef | ast.AsyncFunctionDef


def iterate_public(scope: ast.Module | ast.ClassDef) -> Iterator[tuple[FunctionDef, bool]]:
    """Public functions of a module and public methods and constructors of its public classes."""
    for node in scope.body:
        if isinstance(node, FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
            is_static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
            yield node, isinstance(scope, ast.ClassDef) and not is_static
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from iterate_public(node)


def find_gaps(function: FunctionDef, is_method: bool) -> list[str]:
    positional = function.args.posonlyargs + function.args.args
    arguments = [*(positional[1:] if is_method else positional), *function.args.kwonlyargs]
    arguments += [argument for argument in (function.args.vararg, function.args.kwarg) if argument is not None]
    gaps = [f"{function.name}({argument.arg})" for argument in arguments if argument.annotation is None]
    if function.returns is None:
        gaps.append(f"{function.name} has no return type")
    return gaps


def test_the_annotation_check_sees_gaps() -> None:
    tree = ast.parse(
        "def f(a, *b, c: int = 1, **d): ...\n"
        "def _g(a): ...\n"
        "class C:\n"
        "    def __init__(self, x): ...\n"
        "    @staticmethod\n"
        "    def s(y) -> None: ...\n"
        "class _D:\n"
        "    def h(self, z): ...\n"
    )
    faults = [fault for function, is_method in iterate_public(tree) for fault in find_gaps(function, is_method)]
    assert faults == [
        "f(a)",
        "f(b)",
        "f(d)",
        "f has no return type",
        "__init__(x)",
        "__init__ has no return type",
        "s(y)",
    ]


def test_test_folders_mirror_the_packages() -> None:
    folders = {name_of(path.parent).removeprefix("tests/") for path in TESTS}
    assert {folder.split("/")[0] for folder in folders} == {*PACKAGES, "integration"}, "a package has no tests"
    strangers = [folder for folder in folders - {"integration"} if not (REPO / folder / "__init__.py").is_file()]
    assert not strangers, f"tests/{strangers} belong to no package"


@pytest.mark.parametrize("path", [path for path in TESTS if path.parent.name != "integration"], ids=name_of)
def test_a_test_is_named_after_what_it_tests(path: Path) -> None:
    """`tests/<package>/<room>/test_x.py` tests the module or the room `x` that lies there."""
    tested = REPO / path.relative_to(REPO / "tests").with_name(path.stem.removeprefix("test_"))
    exists = tested.with_suffix(".py").is_file() or (tested / "__init__.py").is_file()
    is_exception = name_of(path) in TESTS_OF_A_WHOLE_ROOM
    assert exists != is_exception, f"{name_of(path)}: {name_of(tested)} is {'there' if exists else 'no module or room'}"


@pytest.mark.parametrize("path", [path for path in TESTS if path.parent.name != "integration"], ids=name_of)
def test_tests_sit_with_the_package_that_they_test(path: Path) -> None:
    package = path.relative_to(REPO / "tests").parts[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert any(module.split(".")[0] == package for module in imported), f"{name_of(path)} imports nothing of {package}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_explains_itself(package: str) -> None:
    readme = REPO / package / "README.md"
    assert len(readme.read_text(encoding="utf-8").split()) > 100, f"{package}/README.md says next to nothing"
