"""How a tool's process is shut in: which of the kernel's means hold on this machine, and in which order they are used.

A worker is put into namespaces when it starts (`enter_worker`), each call that it forks into further ones, behind
Landlock and a filter of system calls (`enter_call`). What decodes media (`serve/decoding/`) is such a call, which takes
one medium after another. Where a kernel or a container refuses one of these means the others are used all the same, and
`Mechanisms.gaps` says what then does not hold.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from serve.tools.sandbox import kernel
from serve.tools.sandbox.syscalls import can_filter, filter_calls

MAX_PRIVATE_BYTES = 256 * 2**20  # of a call's private folder, and of each file that a call writes
MAX_PROCESSES = 256  # of a call, threads included: decoding a film needed more than 128

_FIRST_OWN_USER, _USERS_PER_WORKER = 1_000_000_000, 1_000_000  # numbers that no system gives to people
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d",
    "/etc/localtime", "/etc/fonts", "/etc/alternatives", "/etc/passwd", "/etc/group", "/etc/mime.types", "/proc/self",
    "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system", "/sys/fs/cgroup",
)  # fmt: skip
_SYSTEM_NETWORK = (
    "/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/services",
    "/etc/ssl", "/etc/pki", "/etc/ca-certificates",
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_NAMED_BY_ENVIRONMENT = ("TESSDATA_PREFIX", "SSL_CERT_FILE")  # files and folders that programs are told of
_OUR_PACKAGES = ("serve", "data_pipeline", "model")


@dataclass(frozen=True)
class Mechanisms:
    """What the kernel lets this service use.

    Attributes:
        user: "own": root starts each call as a user of its own, in namespaces; "namespace": each call has a user
            namespace and others within it; "shared": neither, so a call is a process of the service's user like others.
        landlock_abi: 0 = no Landlock.
        has_filter: whether system calls are filtered.
    """

    user: Literal["own", "namespace", "shared"]
    landlock_abi: int
    has_filter: bool

    @classmethod
    def parse(cls, text: str) -> Mechanisms:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def describe(self) -> str:
        """What is used, in a few words."""
        users = {
            "own": "a user of its own and namespaces for each call",
            "namespace": "user, process and network namespaces for each call",
            "shared": "no namespaces",
        }
        landlock = f"Landlock {self.landlock_abi}" if self.landlock_abi else "no Landlock"
        return f"{users[self.user]}, {landlock}, {'filtered' if self.has_filter else 'unfiltered'} system calls"

    def gaps(self) -> list[str]:
        """What does not hold, each in a few words; [] where all does."""
        found = []
        if not self.landlock_abi:
            found.append("tools and decoders may read and write whatever files the service's user may")
        if self.user == "shared":
            found.append("the number of a call's processes and the size of its folder are not bounded")
            if not self.has_filter:
                found.append("tools and decoders may use the network")
            if self.landlock_abi < kernel.LANDLOCK_SCOPES_ABI:
                found.append("tools and decoders may signal the service's processes")
            if not self.landlock_abi:
                found.append("tools and decoders may read the keys in the environment of the service's processes")
        if not self.has_filter:
            found.append("no system call is refused")
        return found


def find_mechanisms() -> Mechanisms:
    """Try the kernel's means in short-lived children; call it where there is one thread."""
    landlock_abi = _try_landlock()
    user: Literal["own", "namespace", "shared"] = "shared"
    if landlock_abi and _succeeds(lambda: _try_user("own")):
        user = "own"
    elif _succeeds(lambda: _try_user("namespace")):
        user = "namespace"
    has_filter = can_filter() and _succeeds(lambda: filter_calls(has_network=False))
    return Mechanisms(user, landlock_abi, has_filter)


def tell_gaps(mechanisms: Mechanisms, what: str) -> None:
    """Put what does not hold on standard error, in one line; `what` begins it: "tools run"."""
    if gaps := mechanisms.gaps():
        print(f"{what} with {mechanisms.describe()}: {'; '.join(gaps)} (docs/security.md)", file=sys.stderr)


def enter_worker(mechanisms: Mechanisms, *, has_network: bool) -> None:
    """Go on as a child in namespaces of its own, whose end is the end of all that it has started.

    The process that called stays outside, waits, and ends as the child does. Without namespaces there is no child, and
    this process adopts what its descendants leave behind, so that it can end that too.
    """
    if mechanisms.user == "shared":
        kernel.adopt_orphans()
        return
    uid, gid = os.geteuid(), os.getegid()
    flags = kernel.NEW_PIDS | kernel.NEW_IPC | kernel.NEW_MOUNTS | (0 if has_network else kernel.NEW_NET)
    kernel.unshare(flags | (kernel.NEW_USER if mechanisms.user == "namespace" else 0))
    if mechanisms.user == "namespace":
        kernel.map_own_ids(uid, gid)
    pid = os.fork()
    if pid == 0:
        kernel.die_with_parent()
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _, status = os.waitpid(pid, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def enter_call(
    mechanisms: Mechanisms, number: int, folder: str | None, readable: Sequence[str], *, has_network: bool
) -> None:
    """Shut in this process, a fresh child with one thread, for good.

    Args:
        mechanisms: of the worker.
        number: of the call, counted by its worker; no two calls at a time share a user where users are their own.
        folder: becomes its private folder and working directory: empty, gone with it, bounded. None: it may write
            nothing at all.
        readable: files and folders beside Python and this code.
        has_network: whether the tool declares that it needs the network.
    """
    uid = os.geteuid()
    if mechanisms.user == "own":
        kernel.unshare(kernel.NEW_MOUNTS | kernel.NEW_IPC)
        uid = _FIRST_OWN_USER + number
    elif mechanisms.user == "namespace":
        gid = os.getegid()
        kernel.unshare(kernel.NEW_USER | kernel.NEW_MOUNTS | kernel.NEW_IPC)
        kernel.map_own_ids(uid, gid)
    if mechanisms.user != "shared":
        if folder is not None:
            kernel.mount_private_folder(folder, MAX_PRIVATE_BYTES, uid)
        resource.setrlimit(resource.RLIMIT_NPROC, (MAX_PROCESSES, MAX_PROCESSES))
    if folder is not None:
        os.chdir(folder)
        os.environ.update(TMPDIR=folder, HOME=folder)
        tempfile.tempdir = None  # what it was told before
    max_file_bytes = 0 if folder is None else MAX_PRIVATE_BYTES
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if mechanisms.user == "own":
        kernel.become_user(uid)
        # reading stays root's right, as Python may lie in root's home: what may be read at all, Landlock says
        kernel.keep_capabilities(kernel.DAC_READ_SEARCH)
    elif mechanisms.user == "namespace":
        kernel.keep_capabilities()
    kernel.die_with_parent()
    _restrict(mechanisms, readable, [] if folder is None else [folder], has_network=has_network)


def enter_models(mechanisms: Mechanisms, folder: str, readable: Sequence[str], *, is_offline: bool) -> None:
    """Shut in the worker that keeps models, which runs all calls itself; before it imports what starts threads.

    It keeps its user and, unless `is_offline`, the network and the right to write into the caches of weights: the hub
    sends them. Files written are not bounded then, since weights are large.
    """
    caches = _weight_caches()
    if not is_offline:
        for cache in caches:
            os.makedirs(cache, exist_ok=True)
    os.chdir(folder)
    os.environ.update(TMPDIR=folder)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if mechanisms.user != "shared":
        kernel.keep_capabilities(*([kernel.DAC_READ_SEARCH] if mechanisms.user == "own" else []))
    gpu = [str(path) for path in Path("/dev").glob("nvidia*")] + ["/dev/shm"]
    readable = [*readable, *caches, "/proc", "/sys"]  # GPU drivers look themselves up there
    writable = [folder, *gpu, *([] if is_offline else caches)]
    _restrict(mechanisms, readable, writable, has_network=not is_offline)


def own_user_numbers(pid: int) -> range:
    """The numbers of calls that a worker counts through, apart from those of other workers on this machine.

    Args:
        pid: of the worker, as the machine counts.
    """
    first = pid % 1000 * _USERS_PER_WORKER
    return range(first, first + _USERS_PER_WORKER)


def _restrict(mechanisms: Mechanisms, readable: Sequence[str], writable: Sequence[str], *, has_network: bool) -> None:
    kernel.set_no_new_privileges()
    if mechanisms.landlock_abi:
        system = (*_SYSTEM, *(_SYSTEM_NETWORK if has_network else ()))
        named = [os.environ[name] for name in _NAMED_BY_ENVIRONMENT if name in os.environ]
        kernel.restrict_files(
            mechanisms.landlock_abi, [*system, *_code_folders(), *named, *readable], [*writable, *_DEVICES]
        )
    if mechanisms.has_filter:
        filter_calls(has_network=has_network)


def _code_folders() -> list[str]:
    """Python, its packages, and ours; not the folder that ours lie in, where anything else may lie as well."""
    root = Path(__file__).resolve().parents[3]
    installed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return [sys.prefix, sys.base_prefix, *installed, *(str(root / name) for name in _OUR_PACKAGES)]


def _weight_caches() -> list[str]:
    """Where huggingface_hub and torch keep what they have loaded."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    hub = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    torch = os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")
    named = [os.environ[name] for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") if os.environ.get(name)]
    return [hub, torch, *named]


def _try_user(kind: Literal["own", "namespace"]) -> None:
    """What `enter_worker` and `enter_call` do with namespaces, in short; OSError where it is refused."""
    uid, gid = os.geteuid(), os.getegid()
    flags = kernel.NEW_PIDS | kernel.NEW_IPC | kernel.NEW_MOUNTS | kernel.NEW_NET
    if kind == "own":
        if uid != 0 or not all(
            map(kernel.has_capability, (kernel.SYS_ADMIN, kernel.SETUID, kernel.SETGID, kernel.DAC_READ_SEARCH))
        ):
            raise PermissionError
        kernel.unshare(flags)
        uid = _FIRST_OWN_USER
    else:
        kernel.unshare(flags | kernel.NEW_USER)
        kernel.map_own_ids(uid, gid)

    def live() -> None:
        fd = os.open("/proc/self/ns/pid", os.O_RDONLY)
        kernel.return_to_pids(fd)
        kernel.unshare(kernel.NEW_PIDS)
        kernel.mount_private_folder("/tmp", 2**16, uid)
        if kind == "own":
            kernel.become_user(uid)
            kernel.keep_capabilities(kernel.DAC_READ_SEARCH)
        else:
            kernel.unshare(kernel.NEW_USER | kernel.NEW_MOUNTS)
            kernel.map_own_ids(uid, gid)

    if not _succeeds(live):
        raise PermissionError


def _try_landlock() -> int:
    abi = kernel.find_landlock_abi()

    def restrict() -> None:
        kernel.set_no_new_privileges()
        kernel.restrict_files(abi, ["/usr"], [])

    return abi if abi and _succeeds(restrict) else 0


def _succeeds(work: Callable[[], None]) -> bool:
    """Whether work is done without an OSError in a child, which it may change as it likes."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except OSError:
            status = 2
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


if __name__ == "__main__":  # tells what holds on this machine (docs/security.md)
    found = find_mechanisms()
    print(json.dumps({"uses": found.describe(), "gaps": found.gaps()}))
