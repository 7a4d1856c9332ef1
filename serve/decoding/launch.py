"""The start of the process of decoders: `python -m serve.decoding.launch FD FOLDER READABLE`.

It is shut in before it imports anything of weight: namespaces can only be entered by a process with one thread.
"""

from __future__ import annotations

import os
import sys

from serve.tools.sandbox.confine import enter_worker, find_mechanisms, own_user_numbers, tell_gaps


def main(fd: int, folder: str) -> None:
    """Shut in this process and fork decoders.

    Args:
        fd: the control socket.
        folder: an empty one for this process, which its starter removes.
    """
    users = own_user_numbers(os.getpid())
    mechanisms = find_mechanisms()
    tell_gaps(mechanisms, "media are decoded")
    enter_worker(mechanisms, has_network=False)

    from serve.decoding.worker import serve_decoders  # what it imports takes a second

    serve_decoders(fd, mechanisms, folder, users)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
