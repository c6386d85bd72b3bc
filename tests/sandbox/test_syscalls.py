"""The seccomp filter, run by a small interpreter of its instructions: what it refuses, on every machine it knows."""

import errno
import re
import struct
from pathlib import Path

import pytest

from qwen_eval.sandbox.syscalls import ARCHITECTURES, CLONE, CLONE3, IOCTL, REFUSED, SOCKET, SOCKETPAIR, filter_for

ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000
REFUSE = ERROR | errno.EPERM


def decision(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter says of a system call."""
    words = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=iIQ6Q", number, architecture or ARCHITECTURES[machine][0], 0, *words)
    code = filter_for(machine)
    loaded, line = 0, 0
    while True:
        operation, yes, no, value = struct.unpack_from("=HBBI", code, 8 * line)
        line += 1
        if operation == 0x20:
            (loaded,) = struct.unpack_from("=I", data, value)
        elif operation == 0x06:
            return int(value)
        else:
            holds = {0x15: loaded == value, 0x35: loaded >= value, 0x45: bool(loaded & value)}[operation]
            line += yes if holds else no


MACHINES = list(ARCHITECTURES)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_of_the_table_is_refused_and_no_other(machine: str) -> None:
    column = ARCHITECTURES[machine][1]
    refused = {numbers[column] for numbers in REFUSED.values()} - {None}
    sockets = {SOCKET[column], SOCKETPAIR[column]}
    special = {*sockets, CLONE3[column]}
    assert {number for number in range(600) if decision(machine, number) == REFUSE} == refused | sockets
    assert {number for number in range(600) if decision(machine, number) == ALLOW} == set(
        range(600)
    ) - refused - special
    assert decision(machine, CLONE3[column]) == ERROR | errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_sockets_are_local_and_clone_makes_no_namespace(machine: str) -> None:
    column = ARCHITECTURES[machine][1]
    for makes in (SOCKET, SOCKETPAIR):
        assert [family for family in range(64) if decision(machine, makes[column], family) == ALLOW] == [1]
    thread, fork = 0x3D0F00, 0x01200011
    assert decision(machine, CLONE[column], thread) == decision(machine, CLONE[column], fork) == ALLOW
    for bit in (7, 17, 25, 26, 27, 28, 29, 30):  # NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
        expected = ALLOW if bit == 7 else REFUSE  # clone takes its signal from the lowest byte: NEWTIME is unshare's
        assert decision(machine, CLONE[column], fork | 1 << bit) == expected
    assert decision(machine, IOCTL[column], 0, 0x5412) == decision(machine, IOCTL[column], 0, 0x541C) == REFUSE
    assert decision(machine, IOCTL[column], 0, 0x5401) == ALLOW


def test_calls_of_other_architectures_end_the_process() -> None:
    assert decision("x86_64", 1, architecture=0x40000003) == KILL  # 32-bit
    assert decision("x86_64", 0x40000000 | 1) == KILL  # x32
    assert decision("aarch64", 1, architecture=0x40000028) == KILL
    assert decision("x86_64", 0) == ALLOW


@pytest.mark.parametrize(
    ("machine", "headers"),
    [
        ("x86_64", ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"]),
        ("aarch64", ["/usr/include/asm-generic/unistd.h"]),
    ],
)
def test_the_numbers_are_the_kernels(machine: str, headers: list[str]) -> None:
    found = [Path(path) for path in headers if Path(path).exists()]
    if not found:
        pytest.skip("the kernel's headers are not installed (linux-libc-dev)")
    text = found[0].read_text()
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    column = ARCHITECTURES[machine][1]
    names = {**REFUSED, "socket": SOCKET, "socketpair": SOCKETPAIR, "clone": CLONE, "clone3": CLONE3, "ioctl": IOCTL}
    known = {name: each[column] for name, each in names.items() if name in numbers}
    assert known == {name: numbers[name] for name in known}
    assert len(known) > 60
