"""Which exceptions are about something that a user can mend, wherever Ray has put them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

from data_pipeline.errors import InputError

# where Ray's exceptions keep the exception that they are about, besides Python's own chain
CARRIED_AS = ("cause", "__cause__", "__context__", "controller_failure", "_base_exc")
# what an operating system refuses, and what to do about it; a file that is missing may be a bug of ours
MENDS = {
    errno.ENOSPC: "make room there, or set runs_dir to another place",
    errno.EDQUOT: "make room there, or set runs_dir to another place",
    errno.EACCES: "give this user the right to it, or name another place",
    errno.EPERM: "give this user the right to it, or name another place",
    errno.EROFS: "name a place that can be written to",
    errno.EISDIR: "a folder is where a file is expected; move it away, or name another place",
    errno.ENOTDIR: "a file is where a folder is expected; move it away, or name another place",
    errno.EEXIST: "a file is where a folder is expected; move it away, or name another place",
    errno.ENAMETOOLONG: "give it a shorter name",
}


def describe_mendable(error: BaseException) -> str | None:
    """One sentence, if the exception, or one that it carries, is about something that a user can mend."""
    input_error = find_input_error(error)
    if input_error is not None:
        # the first line is ours: Ray Data appends advice on retries to the text of errors in its tasks
        return str(input_error).partition("\n")[0]
    return describe_refusal(error)


def describe_refusal(error: BaseException) -> str | None:
    """One sentence, if the exception, or one that it carries, is what an operating system says to a path or a disk."""
    for carried in iterate_carried(error, [name for name in CARRIED_AS if name != "__context__"]):
        if isinstance(carried, OSError) and _is_mendable(carried):
            file = carried.filename if carried.filename2 is None else carried.filename2  # what it was copied to
            place = "" if file is None else f"{os.fsdecode(file)}: "
            return f"{place}{os.strerror(carried.errno or 0).lower()}; {MENDS[carried.errno or 0]}."
    return None


def _is_mendable(error: OSError) -> bool:
    if error.errno not in MENDS or isinstance(error.filename, int):
        return False
    if error.errno == errno.EEXIST:  # of a folder that was to be made anew it is a bug
        return error.filename is not None and os.path.isfile(error.filename)
    return error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT)


def find_input_error(error: BaseException) -> InputError | None:
    """The InputError that an exception is, or that is at the root of one that Ray carried over from a worker."""
    for carried in iterate_carried(error, CARRIED_AS):
        # Ray raises a worker's error as an instance of its class too, but with a traceback as text: `cause` is ours
        if isinstance(carried, InputError) and not isinstance(getattr(carried, "cause", None), InputError):
            return carried
    return None


def iterate_carried(error: BaseException, carried_as: Sequence[str]) -> Iterator[BaseException]:
    """The exception and all that it carries in attributes of these names, nearest first."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        queue += [getattr(current, name, None) for name in carried_as]
        queue += list(getattr(current, "worker_failures", {}).values())
