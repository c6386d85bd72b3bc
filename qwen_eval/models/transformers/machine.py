"""What this machine has to give: memory that is free, processors that are ours, threads that pay."""

import ctypes
import itertools
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = [
    "choose_threads",
    "free_memory",
    "is_out_of_memory",
    "peak_memory",
    "processors",
    "release_memory",
    "reset_peak_memory",
]

CGROUPS = Path("/sys/fs/cgroup")
MEMORY_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Limit, use and what it is made of, in control groups of version 2 and 1."""
ROUNDS = 12
"""Measurements of each number of threads: about a tenth of a second in all."""


def free_memory(device: "torch.device") -> int:
    """Return the bytes that can still be had on a device: on a CPU, also within the limit of a container."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    free = psutil.virtual_memory().available
    for limit_name, used_name, stat_name in MEMORY_FILES:
        for limit, used, stat in itertools.zip_longest(*map(_cgroup, (limit_name, used_name, stat_name)), fillvalue=""):
            if limit.isdecimal() and used.isdecimal():
                # Pages of files that were read (the weights') are charged too, until the memory is wanted.
                found = re.search(r"^(?:total_)?inactive_file (\d+)$", stat, re.MULTILINE)
                free = min(free, max(0, int(limit) - int(used) + int(found[1] if found else 0)))
    return int(free)


def processors() -> int:
    """Return how many processors this process may use: those it is bound to, within the quota of a container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [
        *(text.partition(" ")[::2] for text in _cgroup("cpu.max")),
        *zip(_cgroup("cpu/cpu.cfs_quota_us"), _cgroup("cpu/cpu.cfs_period_us"), strict=False),
    ]
    for quota, period in quotas:
        if quota.isdecimal() and period.isdecimal():
            count = min(count, max(1, int(quota) // int(period)))
    return count


def choose_threads(*, measure: bool = True) -> None:
    """Set torch's threads: the fewest that are about the fastest now; all of our processors without `measure`.

    On a busy machine, or with two hardware threads a core, fewer are faster. OMP_NUM_THREADS and MKL_NUM_THREADS win.
    """
    import torch

    if "OMP_NUM_THREADS" in os.environ or "MKL_NUM_THREADS" in os.environ:
        return
    most = processors()
    counts = sorted({max(1, most >> halved) for halved in range(5)}) if measure else [most]
    if len(counts) > 1:
        # In turns, and all of the time: whoever else works here comes and goes.
        seconds = dict.fromkeys(counts, 0.0)
        for _ in range(ROUNDS):
            for count in counts:
                seconds[count] += _seconds(count)
        counts = [count for count in counts if seconds[count] <= 1.1 * min(seconds.values())]
    torch.set_num_threads(counts[0])


def _seconds(threads: int) -> float:
    """Return how long a matrix product of the size of a layer's takes."""
    import torch

    torch.set_num_threads(threads)
    one, other = torch.ones(256, 1024), torch.ones(1024, 1024)
    begun = time.perf_counter()
    torch.mm(one, other)
    return time.perf_counter() - begun


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or on a CPU."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _cgroup(name: str) -> Iterator[str]:
    """Yield what a file says for our control group and for those around it.

    Version 2 has one tree for all; in a container version 1 shows the own group at the root of each controller.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    own = next((Path(line[3:]) for line in lines if line.startswith("0::")), Path("/"))
    for group in (own, *own.parents):
        try:
            yield (CGROUPS / str(group).lstrip("/") / name).read_text(encoding="utf-8").strip()
        except OSError:
            continue


def release_memory(device: "torch.device") -> None:
    """Give memory that nothing holds any more back to the system."""
    import gc

    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return
    # Loading with several threads leaves glibc with as much memory again as the weights take.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim:
        trim(0)


def reset_peak_memory(device: "torch.device") -> None:
    """Begin the peak of memory anew: on every GPU, or that of this process, where the system lets it."""
    import torch

    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: "torch.device") -> int:
    """Return the bytes that were in use at most: allocated on all GPUs together, or resident in this process."""
    import torch

    if device.type == "cuda":
        return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) << 10
    import resource

    # Kilobytes, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
