"""The start of a tools' process: `python -m serve.tools.launch {fork|online|resident} CACHE_BYTES FD FOLDER READABLE`.

It is shut in before it imports anything of weight: namespaces can only be entered by a process with one thread.
"""

from __future__ import annotations

import json
import os
import sys

from serve.tools.sandbox.confine import enter_models, enter_worker, find_mechanisms, own_user_numbers, tell_gaps


def main(mode: str, cache_bytes: int, fd: int, folder: str, readable: list[str]) -> None:
    """Shut in this process and become the worker.

    Args:
        mode: "fork" forks for each call, without network; "online" likewise with it; "resident" keeps models.
        cache_bytes: for models.
        fd: the control socket.
        folder: an empty one for this worker, which its starter removes.
        readable: for "resident": files and folders beside Python, this code and the caches of weights.
    """
    is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    users = own_user_numbers(os.getpid())
    mechanisms = find_mechanisms()
    tell_gaps(mechanisms, "tools run")
    enter_worker(mechanisms, has_network=mode == "online" or (mode == "resident" and not is_offline))
    if mode == "resident":
        enter_models(mechanisms, folder, readable, is_offline=is_offline)

    from serve.tools import worker  # seconds of imports, some of which start threads

    if mode == "resident":
        worker.serve_models(fd, cache_bytes)
    else:
        worker.serve_forking(fd, mechanisms, folder, users, has_network=mode == "online")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], json.loads(sys.argv[5]))
