"""A filter of system calls (seccomp) for tools: no sockets unless declared, and nothing that leads out of a sandbox.

Numbers: the kernel's syscall tables of x86_64 and of the generic 64-bit ABI (aarch64). The filter is a program of
classic BPF over `struct seccomp_data` (linux/seccomp.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_X32 = 0x40000000  # x86_64's other ABI has numbers of its own
_NEW_NAMESPACES = 0x7E020000  # flags of clone
_INTERNET = (2, 10, 16)  # AF_INET, AF_INET6, and AF_NETLINK, by which names are looked up

# what no tool needs: namespaces, mounts, other processes' memory, the kernel's own state, and io_uring, whose
# operations no filter sees
_REFUSED = (
    "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "mount", "umount2", "pivot_root",
    "chroot", "unshare", "setns", "bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key",
    "io_uring_setup", "io_uring_enter", "io_uring_register", "open_by_handle_at", "name_to_handle_at", "init_module",
    "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff", "acct",
    "quotactl", "fsopen", "fsconfig", "fsmount", "fspick", "move_mount", "open_tree", "mount_setattr", "settimeofday",
    "clock_settime", "syslog", "sethostname", "setdomainname", "shmget", "semget", "msgget", "mq_open",
)  # fmt: skip
_COMMON = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "clone3": 435, "pidfd_getfd": 438,
    "mount_setattr": 442,
}  # fmt: skip
_NUMBERS = {
    "x86_64": {
        "socket": 41, "clone": 56, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "bpf": 321,
        "perf_event_open": 298, "userfaultfd": 323, "keyctl": 250, "add_key": 248, "request_key": 249,
        "open_by_handle_at": 304, "name_to_handle_at": 303, "init_module": 175, "finit_module": 313,
        "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320, "reboot": 169, "swapon": 167, "swapoff": 168,
        "acct": 163, "quotactl": 179, "settimeofday": 164, "clock_settime": 227, "syslog": 103, "sethostname": 170,
        "setdomainname": 171, "shmget": 29, "semget": 64, "msgget": 68,
        "mq_open": 240,
    },
    "aarch64": {
        "socket": 198, "clone": 220, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
        "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268, "bpf": 280,
        "perf_event_open": 241, "userfaultfd": 282, "keyctl": 219, "add_key": 217, "request_key": 218,
        "open_by_handle_at": 265, "name_to_handle_at": 264, "init_module": 105, "finit_module": 273,
        "delete_module": 106, "kexec_load": 104, "kexec_file_load": 294, "reboot": 142, "swapon": 224, "swapoff": 225,
        "acct": 89, "quotactl": 60, "settimeofday": 170, "clock_settime": 112, "syslog": 116,
        "sethostname": 161, "setdomainname": 162, "shmget": 194, "semget": 190, "msgget": 186, "mq_open": 180,
    },
}  # fmt: skip
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


class _Program(ctypes.Structure):
    _fields_ = [("n_instructions", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def can_filter() -> bool:
    """Whether this machine's numbers are known and its kernel was built with seccomp."""
    with open("/proc/self/status") as stream:
        return platform.machine() in _ARCHITECTURES and any(line.startswith("Seccomp:") for line in stream)


def filter_calls(*, has_network: bool) -> None:
    """From here on, for good, refuse what no tool needs; without `has_network`, every new socket too.

    Raises:
        OSError: the kernel does not take the filter.
    """
    code = build_filter(platform.machine(), has_network=has_network)
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    privileges = libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    if privileges or libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def build_filter(machine: str, *, has_network: bool) -> bytes:
    """The program, eight bytes an instruction."""
    numbers = _NUMBERS[machine] | _COMMON
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
    ]
    # clone3 has its flags where a filter does not see them; on ENOSYS the C library uses clone
    code += _refuse(numbers["clone3"], errno.ENOSYS)
    for name in _REFUSED:
        code += _refuse(numbers[name], errno.EPERM)
    code += [
        (_JUMP_EQUAL, 0, 4, numbers["clone"]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_JUMP_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        (_RETURN, 0, 0, _ERROR | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    if not has_network:
        code += _refuse(numbers["socket"], errno.EACCES)
    else:  # families that lead to this machine's own services stay closed
        allowed = [(_JUMP_EQUAL, len(_INTERNET) - i, 0, family) for i, family in enumerate(_INTERNET)]
        code += [
            (_JUMP_EQUAL, 0, len(allowed) + 2, numbers["socket"]),
            (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
            *allowed,
            (_RETURN, 0, 0, _ERROR | errno.EACCES),
        ]
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _refuse(number: int, error: int) -> Sequence[tuple[int, int, int, int]]:
    return [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | error)]
