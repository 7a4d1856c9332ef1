"""What is written appears whole or not at all: beside other writers, after kills at the worst moments, on the disk."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_pipeline import storage

REPO = Path(__file__).resolve().parents[2]


def run_until_killed(code: str, *arguments: Path) -> None:
    """Run Python code that kills itself."""
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=REPO, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == -signal.SIGKILL, result.stderr


KILLED_IN_FILE = """
import os, signal, sys
from pathlib import Path
from data_pipeline import storage
with storage.writing_file(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_IN_FOLDER = """
import os, signal, sys
from pathlib import Path
from data_pipeline import storage
with storage.replacing_folder(Path(sys.argv[1])) as folder:
    (folder / "content").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_BETWEEN_RENAMES = """
import os, signal, sys
from pathlib import Path
from data_pipeline import storage
rename = os.rename
def rename_once(*arguments):
    rename(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
os.rename = rename_once
with storage.replacing_folder(Path(sys.argv[1])) as folder:
    (folder / "content").write_text("second")
"""


def fill(folder: Path, content: str, fails: bool = False) -> None:
    with storage.replacing_folder(folder) as new:
        (new / "content").write_text(content)
        if fails:
            raise RuntimeError


def write_half(file: Path) -> None:
    with storage.writing_file(file) as stream:
        stream.write(b"half")
        raise RuntimeError


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.txt"
    storage.write_file(file, "ä")
    assert file.read_bytes() == storage.read_bytes(file) == "ä".encode()
    with pytest.raises(RuntimeError):
        write_half(file)
    assert file.read_bytes() == "ä".encode()
    storage.write_file(file, b"2")
    assert file.read_bytes() == b"2"
    assert names_in(file.parent) == ["file.txt"]
    assert (file.stat().st_mode & 0o777) == (0o666 & ~_umask()), "as any program would make it"


def test_files_of_a_folder_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    """As on a cluster, where one user trains and another serves: safetensors writes files for their owner alone."""
    with storage.replacing_folder(tmp_path / "folder") as new:
        (new / "inner").mkdir()
        save_file({"a": torch.zeros(1)}, new / "inner" / "a.safetensors")
    assert ((tmp_path / "folder" / "inner" / "a.safetensors").stat().st_mode & 0o777) == (0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_killed_writers_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    for code, target in ((KILLED_IN_FILE, file), (KILLED_IN_FOLDER, folder)):
        run_until_killed(code, target)
        run_until_killed(code, target)
    assert len(names_in(tmp_path)) == 3, "the second writer of the folder has cleared what the first one left"
    with storage.writing_file(file) as stream, storage.replacing_folder(folder) as new:
        storage.clear_partials(tmp_path)
        assert len(names_in(tmp_path)) == 2, "those of the two living writers"
        stream.write(b"whole")
        (new / "content").write_text("whole")
    assert names_in(tmp_path) == ["file", "folder"]
    run_until_killed(KILLED_IN_FILE, file)
    run_until_killed(KILLED_IN_FOLDER, folder)
    storage.write_file(file, "again")
    fill(folder, "again")
    assert names_in(tmp_path) == ["file", "folder"], "the next writer clears, too"


def test_a_failed_folder_leaves_the_old_one_and_no_new_parent(tmp_path: Path) -> None:
    fill(tmp_path / "folder", "old")
    for folder in (tmp_path / "folder", tmp_path / "new" / "folder"):
        with pytest.raises(RuntimeError):
            fill(folder, "half", fails=True)
    assert names_in(tmp_path) == ["folder"]
    assert (tmp_path / "folder/content").read_text() == "old"
    with storage.replacing_folder(tmp_path / "folder", unless=lambda: True) as new:
        (new / "content").write_text("no better")
    assert (tmp_path / "folder/content").read_text() == "old"
    assert names_in(tmp_path) == ["folder"]


@pytest.mark.parametrize("start", [storage.open_folder, lambda f: storage.clear_partials(f.parent)])
def test_a_kill_between_the_renames_is_mended_at_the_next_start(
    tmp_path: Path, start: Callable[[Path], object]
) -> None:
    folder = tmp_path / "folder"
    fill(folder, "first")
    run_until_killed(KILLED_BETWEEN_RENAMES, folder)
    assert not folder.exists()
    start(folder)
    assert (folder / "content").read_text() == "second"
    assert names_in(tmp_path) == ["folder"]


def test_a_writer_after_a_kill_between_the_renames_that_fails_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    fill(folder, "first")
    run_until_killed(KILLED_BETWEEN_RENAMES, folder)
    with pytest.raises(RuntimeError):
        fill(folder, "half", fails=True)
    assert (folder / "content").read_text() == "second"


def replace_often(folder: Path, n: int, word: str, failures: multiprocessing.Queue[str]) -> None:
    try:
        for i in range(n):
            with storage.replacing_folder(folder) as new:
                for name in ("a", "b", "c"):
                    (new / name).write_text(f"{word}{i}")
            assert storage.open_folder(folder).is_dir() or i < n  # a reader's look
    except BaseException as error:
        failures.put(repr(error))
        raise


def test_writers_at_once_never_lose_a_finished_folder(tmp_path: Path) -> None:
    folder, context = tmp_path / "folder", multiprocessing.get_context("fork")
    fill(folder, "first")
    failures = context.Queue()
    writers = [context.Process(target=replace_often, args=(folder, 25, word, failures)) for word in ("x", "y", "z")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert failures.empty(), failures.get()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len({(folder / name).read_text() for name in ("a", "b", "c")}) == 1, "all of one writer"
    assert names_in(tmp_path) == ["folder"]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def record_fsync(descriptor: int) -> None:
        events.append(("fsync", Path(f"/proc/self/fd/{descriptor}").resolve().name))
        fsync(descriptor)

    def record(call: Callable[..., None]) -> Callable[..., None]:
        def move(source: Path, target: Path) -> None:
            events.append(("move", Path(target).name))
            call(source, target)

        return move

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record(rename))
    monkeypatch.setattr(os, "replace", record(replace))
    storage.write_file(tmp_path / "file", "content")
    assert [event for event, _ in events] == ["fsync", "move", "fsync"], "the file, its name, its folder"
    assert events[-1] == ("fsync", tmp_path.name)
    events.clear()
    with storage.replacing_folder(tmp_path / "folder") as new:
        (new / "below").mkdir()
        (new / "below" / "content").write_text("x")
    moved = events.index(("move", "folder"))
    assert {("fsync", name) for name in ("new", "below", "content")} <= set(events[:moved])
    assert events[moved + 1] == ("fsync", tmp_path.name)


def test_hashes_of_large_files_are_kept_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LARGE_BYTES", 10)
    small, large = tmp_path / "small", tmp_path / "large.gz"
    small.write_bytes(b"123")
    large.write_bytes(b"0123456789")
    for file in (small, large):
        assert storage.hash_file(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert names_in(tmp_path) == [".large.gz.sha256", "large.gz", "small"]
    assert storage.list_files(tmp_path) == [large, small]
    note = json.loads((tmp_path / ".large.gz.sha256").read_text())
    (tmp_path / ".large.gz.sha256").write_text(json.dumps(note | {"sha256": "kept"}))
    assert storage.hash_file(large) == "kept", "the file is not read again"
    large.write_bytes(b"9876543210")
    os.utime(large, ns=(0, note["mtime_ns"] + 1))
    assert storage.hash_file(large) == hashlib.sha256(b"9876543210").hexdigest()
    for nonsense in ("no JSON", "[]", "{}"):
        (tmp_path / ".large.gz.sha256").write_text(nonsense)
        assert storage.hash_file(large) == hashlib.sha256(b"9876543210").hexdigest()
    for absent in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileNotFoundError):
            storage.hash_file(absent)


def test_a_link_changes_in_one_step(tmp_path: Path) -> None:
    for target in ("a", "b"):
        (tmp_path / target).mkdir()
        storage.write_link(tmp_path / "link", target)
        assert (tmp_path / "link").resolve().name == target
    assert names_in(tmp_path) == ["a", "b", "link"]


def test_removing_and_emptiness(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    assert storage.is_empty(folder)
    fill(folder, "x")
    assert not storage.is_empty(folder)
    assert not storage.is_empty(folder / "content")
    storage.remove_folder(folder)
    storage.remove_folder(folder)
    storage.remove_file(folder / "content")
    assert names_in(tmp_path) == []
    (tmp_path / ".hidden").touch()
    assert not storage.is_empty(tmp_path)
    assert storage.list_files(tmp_path) == storage.list_folders(tmp_path) == storage.list_files(folder) == []
