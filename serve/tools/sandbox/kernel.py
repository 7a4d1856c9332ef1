"""The kernel's means of confinement, called through ctypes: namespaces, capabilities, Landlock.

Numbers and structures: linux/sched.h, linux/prctl.h, linux/capability.h, linux/landlock.h; man 2 of each call. Every
function raises OSError where the kernel refuses.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable

NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
DAC_READ_SEARCH, SETGID, SETUID, SYS_ADMIN = 2, 6, 7, 21  # capabilities
LANDLOCK_SCOPES_ABI = 6  # from here on Landlock keeps signals and abstract sockets within a sandbox

_DEATH_SIGNAL, _DUMPABLE, _KEEP_CAPS, _SUBREAPER, _NO_NEW_PRIVS = 1, 4, 8, 36, 38  # of prctl
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_CAPABILITY_VERSION = 0x20080522
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 0x4000, 0x40000

# Landlock's rights; the first word of a comment is the name in linux/landlock.h
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE = 1 << 14
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE  # the others make sense for folders alone
_N_RIGHTS = {1: 13, 2: 14}  # by ABI; from 3 on there is TRUNCATE: 15. IOCTL_DEV (5) is left alone, as GPUs need it

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("rights", ctypes.c_uint64), ("fd", ctypes.c_int32)]


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def unshare(flags: int) -> None:
    """Move this process into new namespaces; new process ids hold for its next child."""
    _check(_libc.unshare(flags))


def return_to_pids(fd: int) -> None:
    """Let children be born in the namespace of process ids behind `fd` again, so that `unshare` can make another."""
    _check(_libc.setns(fd, NEW_PIDS))


def map_own_ids(uid: int, gid: int) -> None:
    """In a new user namespace: this user and group keep their numbers, and there are no others."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def mount_private_folder(folder: str, max_bytes: int, uid: int) -> None:
    """Put an empty folder in memory over `folder`, for this mount namespace alone; it goes when the last process does.

    Args:
        folder: an existing folder.
        max_bytes: what it may hold.
        uid: its owner; nobody else may look in.
    """
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    options = f"size={max_bytes},nr_inodes=10000,mode=0700,uid={uid}".encode()
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
    _check(_libc.mount(b"tmpfs", folder.encode(), b"tmpfs", flags, options))


def die_with_parent() -> None:
    """Be killed when the parent ends. A change of user or of capabilities undoes this."""
    _check(_libc.prctl(_DEATH_SIGNAL, 9, 0, 0, 0))


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    _check(_libc.prctl(_SUBREAPER, 1, 0, 0, 0))


def set_no_new_privileges() -> None:
    """No program that is started from here on gains rights by its file (setuid and the like)."""
    _check(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))


def has_capability(number: int) -> bool:
    """Whether this process may use a capability."""
    with open("/proc/self/status") as stream:
        line = next(line for line in stream if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> number & 1)


def keep_capabilities(*numbers: int) -> None:
    """Give up all capabilities but these, for good."""
    mask = sum(1 << number for number in numbers)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)  # effective, permitted, inheritable; twice
    _check(_libc.capset(header, data))


def become_user(uid: int) -> None:
    """Change from root to another user and group of that number, in no further group; capabilities may be kept."""
    _check(_libc.prctl(_KEEP_CAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _check(_libc.prctl(_DUMPABLE, 1, 0, 0, 0))  # else its own /proc/self belongs to root


def find_landlock_abi() -> int:
    """Landlock's version; 0 where the kernel has none or does not use it."""
    return max(0, _libc.syscall(_CREATE_RULESET, None, 0, 1))


def restrict_files(abi: int, readable: Iterable[str], writable: Iterable[str]) -> None:
    """From here on, for good, open no file but these; and from ABI 6 on, signal nobody outside.

    Args:
        abi: of `find_landlock_abi`.
        readable: files, and folders with all that lies below; what does not exist is left out.
        writable: likewise, to be read, written, made and removed.
    """
    handled = (1 << _N_RIGHTS.get(abi, 15)) - 1
    ruleset = _Ruleset(handled, 0, 3 if abi >= LANDLOCK_SCOPES_ABI else 0)
    n_bytes = 24 if abi >= LANDLOCK_SCOPES_ABI else 16 if abi >= 4 else 8
    fd = _check(_libc.syscall(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(n_bytes), 0))
    try:
        for paths, rights in ((readable, _READ), (writable, handled)):
            for path in paths:
                _add_path(fd, path, rights & handled)
        _check(_libc.syscall(_RESTRICT_SELF, fd, 0))
    finally:
        os.close(fd)


def _add_path(ruleset_fd: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # there is nothing to allow
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _FILE_RIGHTS
        rule = _PathRule(rights, fd)
        _check(_libc.syscall(_ADD_RULE, ruleset_fd, 1, ctypes.byref(rule), 0))
    finally:
        os.close(fd)
