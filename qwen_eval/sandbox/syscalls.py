"""The system calls a program may not make, and the seccomp filter that refuses them.

A list of what is refused rather than of what is allowed: an interpreter with numpy, threads and child processes uses
some 150 calls that differ by C library and machine, and a call missing from a list of allowed ones would fail an honest
program. The namespaces, the read-only root and the empty capability sets hold without the filter; it takes away
the parts of the kernel where escapes have been found (user namespaces, mounts, keys, bpf, io_uring, userfaultfd …),
memory that no limit counts (memfd, System V shared memory), and sockets.
"""

import errno
import struct
from typing import Final

__all__ = ["ARCHITECTURES", "filter_for"]

# name: (x86-64, aarch64); None where the machine has no such call.
REFUSED: Final[dict[str, tuple[int | None, int | None]]] = {
    # other processes' memory and descriptors
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # parts of the kernel that have been ways out
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_setup": (206, 0),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "personality": (135, 92),
    "seccomp": (317, 277),
    "lookup_dcookie": (212, 18),
    # memory that no limit counts
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "vmsplice": (278, 75),  # a byte in a pipe keeps a huge page
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # the machine itself
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
}

# Calls that are refused for some arguments only: (x86-64, aarch64).
SOCKET: Final = (41, 198)  # only AF_UNIX (1), which multiprocessing speaks
SOCKETPAIR: Final = (53, 199)  # as well: it makes the sockets before it says that the family has no pairs
CLONE: Final = (56, 220)  # no flag that makes a namespace
CLONE3: Final = (435, 435)  # its flags lie in memory a filter cannot read; ENOSYS makes the C library use clone
IOCTL: Final = (16, 29)  # not the two that type into a terminal
NAMESPACE_FLAGS: Final = 0x7E020000
TIOCSTI: Final = 0x5412
TIOCLINUX: Final = 0x541C

# platform.machine(): (AUDIT_ARCH_…, column in the tables)
ARCHITECTURES: Final = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24  # offsets in struct seccomp_data, low words of arguments
_X32: Final = 0x40000000


def _line(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One struct sock_filter; `yes` and `no` say how many lines a jump skips."""
    return struct.pack("=HBBI", code, yes, no, value)


def filter_for(machine: str) -> bytes:
    """Return the filter for a machine of `ARCHITECTURES`, as an array of struct sock_filter."""
    architecture, column = ARCHITECTURES[machine]
    refuse = _line(_RETURN, _ERROR | errno.EPERM)
    lines = [
        _line(_LOAD, _ARCHITECTURE),
        _line(_EQUAL, architecture, yes=1),
        _line(_RETURN, _KILL),  # 32-bit calls have other numbers
        _line(_LOAD, _NUMBER),
        _line(_AT_LEAST, _X32, no=1),
        _line(_RETURN, _KILL),  # so have x32 calls
    ]
    for numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            lines += [_line(_EQUAL, number, no=1), refuse]
    lines += [_line(_EQUAL, CLONE3[column], no=1), _line(_RETURN, _ERROR | errno.ENOSYS)]
    allow = _line(_RETURN, _ALLOW)
    for makes in (SOCKET, SOCKETPAIR):
        lines += [_line(_EQUAL, makes[column], no=4), _line(_LOAD, _FIRST), _line(_EQUAL, 1, no=1), allow, refuse]
    lines += [
        _line(_EQUAL, CLONE[column], no=4),
        _line(_LOAD, _FIRST),
        _line(_ANY_BIT, NAMESPACE_FLAGS, no=1),
        refuse,
        allow,
    ]
    lines += [
        _line(_EQUAL, IOCTL[column], no=5),
        _line(_LOAD, _SECOND),
        _line(_EQUAL, TIOCSTI, yes=1),
        _line(_EQUAL, TIOCLINUX, no=1),
        refuse,
        allow,
    ]
    lines.append(allow)
    return b"".join(lines)
