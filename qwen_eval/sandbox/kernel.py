"""The kernel's calls that Python's library does not offer, through ctypes: namespaces, mounts, capabilities, seccomp.

Thin on purpose: one function a call, errors as OSError, no policy. What is done with them stands in `enclosure.py`.
"""

import ctypes
import os
from typing import Final

__all__ = [
    "CLONE_NEWCGROUP",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "MACHINE",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "detach",
    "die_with_parent",
    "drop_capabilities",
    "enter_namespace",
    "forbid_new_privileges",
    "install_filter",
    "mount",
    "pivot_root",
    "set_dumpable",
    "set_host_name",
    "unshare",
]

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MNT_DETACH: Final = 2

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
CAPABILITY_VERSION_3: Final = 0x20080522
SECCOMP_SET_MODE_FILTER: Final = 1

MACHINE: Final = os.uname().machine  # platform.machine() would remember the host's name as well
# (capset, pivot_root, seccomp); an unknown machine is refused before any of them is called.
_NUMBERS: Final = {"x86_64": (126, 155, 317), "aarch64": (91, 41, 277)}

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _syscall(which: int, *arguments: object) -> int:
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return int(_libc.syscall(ctypes.c_long(_NUMBERS[MACHINE][which]), *words))


def unshare(flags: int) -> None:
    """Move this process into new namespaces; a new pid namespace begins with its next child."""
    _checked(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def enter_namespace(descriptor: int, kind: int) -> None:
    """Enter the namespace a descriptor of /proc/…/ns/… stands for."""
    _checked(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(kind)), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _checked(result, f"mount {kind or source} on {target}")


def detach(target: str) -> None:
    """Take a mount and all below it out of this mount namespace."""
    _checked(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root and put the former root at `old`, which must lie below it."""
    result = _syscall(1, ctypes.c_char_p(os.fsencode(new)), ctypes.c_char_p(os.fsencode(old)))
    _checked(result, "pivot_root")


def set_host_name(name: str) -> None:
    """sethostname(2)."""
    _checked(_libc.sethostname(name.encode(), len(name.encode())), "sethostname")


def _prctl(option: int, *values: int) -> int:
    words = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    return int(_libc.prctl(ctypes.c_int(option), *words))


def die_with_parent(signal: int) -> None:
    """Have the kernel send `signal` to this process when its parent ends."""
    _checked(_prctl(PR_SET_PDEATHSIG, signal), "prctl(PDEATHSIG)")


def set_dumpable() -> None:
    """Own one's entries in /proc again, which a change of user takes away."""
    _checked(_prctl(PR_SET_DUMPABLE, 1), "prctl(DUMPABLE)")


def forbid_new_privileges() -> None:
    """No exec gives more rights than the process has: set-user-id files and file capabilities mean nothing."""
    _checked(_prctl(PR_SET_NO_NEW_PRIVS, 1), "prctl(NO_NEW_PRIVS)")


def drop_capabilities() -> None:
    """Empty the capability sets of this process. With `forbid_new_privileges` no exec fills them again."""
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)  # kernels before 4.3 have no such set
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    _checked(_syscall(0, ctypes.byref(header), ctypes.byref(sets)), "capset")


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install_filter(instructions: bytes) -> None:
    """Put a seccomp filter (struct sock_filter[]) on this process and all it will start; it cannot come off."""
    program = _Program(len(instructions) // 8, instructions)
    _checked(_syscall(2, SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(program)), "seccomp")
