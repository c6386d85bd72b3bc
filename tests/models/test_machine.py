"""Memory, processors, threads: what a container allows counts, and what the user says wins."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from qwen_eval.models.transformers import machine
from qwen_eval.models.transformers.machine import choose_threads, free_memory, is_out_of_memory, processors

CPU = torch.device("cpu")
Groups = Callable[..., None]


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    """Put this process into a control group: `groups("/a/b", {"/a": {"cpu.max": "…"}})`. 8 processors, 1000 bytes."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    real = Path.read_text

    def make(own: str, files: dict[str, dict[str, str]], *, version: int = 2) -> None:
        lines = f"0::{own}\n" if version == 2 else f"4:memory:{own}\n1:cpu:{own}\n"

        def read_text(self: Path, *args: str, **more: str) -> str:
            return lines if str(self) == "/proc/self/cgroup" else real(self, *args, **more)

        monkeypatch.setattr(Path, "read_text", read_text)
        for group, contents in files.items():
            folder = tmp_path / group.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in contents.items():
                (folder / name).write_text(text + "\n", encoding="utf-8")

    return make


# ---------------------------------------------------------------------------------------------------------- processors


@pytest.mark.parametrize(
    ("own", "files", "count"),
    [
        ("/", {}, 8),
        ("/", {"/": {"cpu.max": "max 100000"}}, 8),
        ("/", {"/": {"cpu.max": "300000 100000"}}, 3),
        ("/", {"/": {"cpu.max": "350000 100000"}}, 3),
        ("/", {"/": {"cpu.max": "50000 100000"}}, 1),
        ("/", {"/": {"cpu.max": "1600000 100000"}}, 8),
        ("/", {"/": {"cpu.max": "100000"}}, 8),
        ("/", {"/": {"cpu.max": ""}}, 8),
        ("/a/b", {"/a/b": {"cpu.max": "400000 100000"}}, 4),
        ("/a/b", {"/a": {"cpu.max": "200000 100000"}, "/a/b": {"cpu.max": "max 100000"}}, 2),
        ("/a/b", {"/a": {"cpu.max": "500000 100000"}, "/a/b": {"cpu.max": "100000 50000"}}, 2),
        ("/a/b", {"/": {"cpu.max": "100000 100000"}}, 1),
        # Version 1, as a container sees it.
        ("/", {"/cpu": {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"}}, 2),
        ("/", {"/cpu": {"cpu.cfs_quota_us": "20000", "cpu.cfs_period_us": "100000"}}, 1),
        ("/", {"/cpu": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}}, 8),
        ("/a", {"/a/b": {"cpu.max": "100000 100000"}, "/c": {"cpu.max": "100000 100000"}}, 8),
    ],
)
def test_processors_are_those_within_every_quota(
    own: str, files: dict[str, dict[str, str]], count: int, groups: Groups
) -> None:
    groups(own, files)
    assert processors() == count


def test_processors_that_this_process_is_not_bound_to_are_not_ours(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups("/", {"/": {"cpu.max": "400000 100000"}})
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {2, 3})
    assert processors() == 2


def test_without_control_groups_or_affinity_all_processors_are_ours(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups("/", {"/": {"cpu.max": "100000 100000"}}, version=1)
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    (machine.CGROUPS / "cpu.max").unlink()
    assert processors() == 5
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert processors() == 1
    monkeypatch.setattr(Path, "read_text", lambda *args, **more: (_ for _ in ()).throw(FileNotFoundError()))
    assert processors() == 1


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("own", "files", "free"),
    [
        ("/", {}, 1000),
        ("/", {"/": {"memory.max": "max", "memory.current": "300"}}, 1000),
        ("/", {"/": {"memory.max": "900", "memory.current": "300"}}, 600),
        ("/", {"/": {"memory.max": "5000", "memory.current": "300"}}, 1000),
        ("/", {"/": {"memory.max": "200", "memory.current": "300"}}, 0),
        (
            "/a/b",
            {
                "/a": {"memory.max": "800", "memory.current": "700"},
                "/a/b": {"memory.max": "600", "memory.current": "200"},
            },
            100,
        ),
        (
            "/a/b",
            {
                "/a": {"memory.max": "max", "memory.current": "700"},
                "/a/b": {"memory.max": "600", "memory.current": "200"},
            },
            400,
        ),
        # Version 1, as a container sees it; without a limit it says a very large number.
        ("/", {"/memory": {"memory.limit_in_bytes": "700", "memory.usage_in_bytes": "200"}}, 500),
        ("/", {"/memory": {"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "200"}}, 1000),
        # The root of all control groups has no limit of its own.
        ("/a", {"/": {"memory.stat": "x"}, "/a": {"memory.max": "500", "memory.current": "100"}}, 400),
    ],
)
def test_free_memory_is_that_within_every_limit(
    own: str, files: dict[str, dict[str, str]], free: int, groups: Groups
) -> None:
    groups(own, files)
    assert free_memory(CPU) == free


def test_what_is_read_of_files_counts_as_free(groups: Groups) -> None:
    """The weights' file stays in the page cache, charged to the container, until the memory is wanted."""
    groups(
        "/",
        {
            "/": {
                "memory.max": "900",
                "memory.current": "800",
                "memory.stat": "anon 200\nfile 600\nactive_file 100\ninactive_file 500",
            }
        },
    )
    assert free_memory(CPU) >= 600


def test_memory_that_torch_holds_and_does_not_use_is_free_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert free_memory(torch.device("cuda")) == 140


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("memory"), False),
    ],
)
def test_errors_that_say_that_memory_ran_out(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) == is_one


def test_a_real_lack_of_memory_is_known_as_one() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(found.value)


# ------------------------------------------------------------------------------------------------------------- threads


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What torch is told, one after the other; the user says nothing, and there are 16 processors."""
    told: list[int] = []
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "processors", lambda: 16)
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    return told


def timed(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> list[int]:
    """Let products take so long, by the number of threads; returns what is measured."""
    asked: list[int] = []

    def take(count: int) -> float:
        asked.append(count)
        return seconds(count)

    monkeypatch.setattr(machine, "_seconds", take)
    return asked


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
@pytest.mark.parametrize("measure", [True, False])
def test_the_user_decides_the_threads(
    name: str, measure: bool, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "3")
    choose_threads(measure=measure)
    assert threads == []


def test_without_measuring_there_is_a_thread_for_every_processor(
    threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert timed(monkeypatch, float) == []
    choose_threads(measure=False)
    assert threads == [16]


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 16, 2: 8, 4: 4, 8: 2, 16: 1}, 16),
        ({1: 16, 2: 8, 4: 4, 8: 2, 16: 1.9}, 8),
        ({1: 16, 2: 8, 4: 4, 8: 2.05, 16: 1.9}, 8),
        ({1: 16, 2: 8, 4: 4, 8: 2.2, 16: 1.9}, 16),
        ({1: 16, 2: 8, 4: 4, 8: 6, 16: 90}, 4),
        ({1: 1, 2: 1, 4: 1, 8: 1, 16: 1}, 1),
    ],
)
def test_the_fewest_threads_that_are_about_the_fastest(
    seconds: dict[int, float], chosen: int, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, seconds.__getitem__)
    choose_threads()
    assert threads == [chosen]


@pytest.mark.parametrize(("count", "tried"), [(1, []), (2, [1, 2]), (6, [1, 3, 6]), (64, [4, 8, 16, 32, 64])])
def test_halves_of_the_processors_are_tried(
    count: int, tried: list[int], threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "processors", lambda: count)
    asked = timed(monkeypatch, lambda threads: 1 / threads)
    choose_threads()
    # In turns, so that what others do meanwhile meets all of them.
    assert asked == tried * (len(asked) // max(1, len(tried)))
    assert bool(asked) == bool(tried)
    assert threads == [count]


def test_all_measurements_count(threads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen threads are fast now and then; four are always about as fast."""
    calls = 0

    def seconds(count: int) -> float:
        nonlocal calls
        calls += 1
        return {4: 1.0, 16: 0.5 if calls <= 15 else 1.5}.get(count, 9.0)

    timed(monkeypatch, seconds)
    choose_threads()
    assert threads == [4]


def test_measuring_sets_the_threads_it_measures(threads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([3.0, 3.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    assert machine._seconds(5) == 0.5
    assert threads == [5]
