"""The walls: a root file system that holds Python and nothing of the user's, and a closed room in it for each program.

Twice the same idea. The zygote encloses itself once (`build_root`): new user, pid, mount, network, ipc and uts
namespaces, and a root made of read-only binds of what Python needs. Every program then gets a room of its own
(`enter_room`): new pid, ipc, mount and user namespaces, a fresh /proc, a sized tmpfs as the only place to write, no
capabilities, no new privileges, limits and the seccomp filter.

What is *not* in the root matters: no home, no /etc but for made-up files, no /var, no /sys, and of the installed
packages only numpy, or for sessions the libraries they are promised. A package with a benchmark's data beside it would
hand a program the answers.
"""

import glob
import importlib.util
import os
import re
import resource
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qwen_eval.sandbox import kernel
from qwen_eval.sandbox.installed import installed

__all__ = ["HOME", "USER", "Limits", "build_root", "enter_room", "mount_own", "process_limits", "sources"]

# Whoever runs the harness is this user in the zygote's namespace, and nobody in a program's.
USER: Final = 1000
NOBODY: Final = 65534  # what a user that is not mapped looks like
PASSWD: Final = f"root:x:0:0:root:/:/bin/false\nuser:x:{NOBODY}:{NOBODY}:user:/tmp/home:/bin/sh\n"
GROUP: Final = f"root:x:0:\nuser:x:{NOBODY}:\n"

SYSTEM: Final = (
    *("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo", "/usr/share/locale/locale.alias"),
    *("/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/alternatives"),
)
DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
PACKAGES: Final = ("numpy", "numpy.libs")  # in the site-packages of the harness; nothing else of them is visible
STAGE: Final = "/tmp"  # where the new root is put together; sources are opened before it is covered
HOME: Final = "/tmp/home"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use. Sizes in bytes."""

    memory: int = 3 << 30  # resident, over the whole process tree
    address_space: int = 6 << 30  # of one process: an allocation beyond is a MemoryError rather than a kill
    disk: int = 128 << 20
    files: int = 8192
    processes: int = 256  # threads count as well
    descriptors: int = 256  # descriptors inside sockets are counted for the user, who may have 1024 in all


def _numpy_folder() -> str | None:
    found = importlib.util.find_spec("numpy")
    return os.path.dirname(os.path.dirname(found.origin)) if found is not None and found.origin else None


FONTS: Final = ("/usr/share/fonts", "/usr/local/share/fonts")
"""What charts are written with: matplotlib brings no font that has Chinese characters."""


def sources(distributions: Sequence[str] = ()) -> dict[str, str]:
    """Return what is bound into the root: {path inside: path outside}. Paths outside are real paths.

    `distributions` are installed ones to be seen besides numpy, with all that they require.
    """
    base = sys.base_prefix
    wanted = [*SYSTEM, *DEVICES, os.path.realpath(sys.executable), sysconfig.get_path("stdlib")]
    wanted.append(sysconfig.get_path("platstdlib"))
    if distributions:
        wanted += FONTS
    if base != "/usr":
        wanted += [f"{base}/bin", f"{base}/lib", f"{base}/lib64"]
    found = {path: os.path.realpath(path) for path in wanted if os.path.exists(path) and not os.path.islink(path)}
    packages = _numpy_folder()
    if packages is not None:
        for name in PACKAGES:
            if os.path.isdir(f"{packages}/{name}"):
                found[f"{packages}/{name}"] = os.path.realpath(f"{packages}/{name}")
    found |= {path: os.path.realpath(path) for path in installed(distributions)}
    # A bind inside another bind would need a mount point in a read-only folder of the host.
    inner = {path for path in found for other in found if path.startswith(f"{other}/") and path == found[path]}
    return {path: source for path, source in found.items() if path not in inner or "-packages/" in path}


def _links() -> dict[str, str]:
    """Return the symbolic links the root needs: /bin and its like, and the virtual environment's interpreter."""
    links = {path: os.readlink(path) for path in SYSTEM if os.path.islink(path)}
    if sys.prefix != sys.base_prefix:
        folder = os.path.dirname(sys.executable)
        for name in sorted(os.listdir(folder)):
            if name.startswith("python") and os.path.islink(f"{folder}/{name}"):
                links[f"{folder}/{name}"] = os.readlink(f"{folder}/{name}")
    step = sys.executable
    while os.path.islink(step):  # a link may lead to a link elsewhere
        links[step] = os.readlink(step)
        step = os.path.join(os.path.dirname(step), os.readlink(step))
    return links | {"/dev/fd": "/proc/self/fd", "/dev/shm": "/tmp/shm"}


def _package_folders(paths: dict[str, str]) -> list[str]:
    """Return the folders of installed packages below what is bound, which are covered with empty ones."""
    found = []
    for path in paths:
        if path.endswith(("/lib", "/lib64")):
            found += glob.glob(f"{glob.escape(path)}/python3*/*-packages")
        found += glob.glob(f"{glob.escape(path)}/*-packages")
    return sorted(set(found))


def _put(path: str, text: str = "") -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)


def _bind(descriptor: int, target: str, *, folder: bool) -> None:
    if not os.path.lexists(target):
        if folder:
            os.makedirs(target)
        else:
            _put(target)
    kernel.mount(f"/proc/self/fd/{descriptor}", target, None, kernel.MS_BIND | kernel.MS_REC)


def _mounts_in(root: str) -> list[str]:
    """Return where something is mounted in the topmost mount on `root`; what that one hides does not count."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.split(" ")[:5] for line in file]
    places = {
        number: re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), place) for number, _, _, _, place in lines
    }
    inside = {[number for number, place in places.items() if place == root][-1]}
    for number, parent, *_ in lines:  # a mount stands behind the one it is mounted in
        if parent in inside:
            inside.add(number)
    return [place for number, place in places.items() if number in inside and place != root]


def _make_read_only(root: str) -> None:
    """Remount every mount in a root read-only; the flags the host has locked must be said again."""
    for place in _mounts_in(root):
        if place.startswith(f"{root}/proc"):
            continue
        kept = os.statvfs(place).f_flag & 0x140E  # nosuid, nodev, noexec, noatime, relatime as statvfs numbers them
        device = place.startswith(f"{root}/dev/")
        flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | _mount_flags(kept)
        kernel.mount("none", place, None, flags | (0 if device else kernel.MS_NODEV))


def _mount_flags(seen: int) -> int:
    """Translate statvfs' flags to mount's: they agree but for relatime."""
    return (seen & 0x0E) | (0x400 if seen & 0x400 else 0) | (0x200000 if seen & 0x1000 else 0)


def build_root(become: int | None, distributions: Sequence[str]) -> None:
    """Enclose this process, pid 1 of new namespaces, in a root of its own; `become` is the user to change to, if any.

    Of the installed packages numpy is in it, and `distributions` with what they require.

    Sources are opened first, because root's own folders are closed to the user that root becomes, and the user is
    changed before anything is made, because files of a user the namespace does not know cannot be made.
    """
    paths, links = sources(distributions), _links()
    covered = _package_folders(paths)
    settings = f"{sys.prefix}/pyvenv.cfg"
    text = ""
    if sys.prefix != sys.base_prefix:
        with open(settings, encoding="utf-8") as file:
            text = file.read()
    opened = {path: os.open(source, os.O_PATH) for path, source in paths.items()}
    folders = {path: os.path.isdir(source) for path, source in paths.items()}
    if become is not None:
        os.setresgid(become, become, become)
        os.setresuid(become, become, become)
        kernel.set_dumpable()
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", STAGE, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=4m,mode=755")
    for path in sorted(paths):
        if path.rsplit("/", 1)[0] not in covered:
            _bind(opened[path], STAGE + path, folder=folders[path])
    for folder in covered:  # an empty folder over the packages, and numpy's own folders in it
        kernel.mount("tmpfs", STAGE + folder, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=64k,mode=755")
        for path in paths:
            if path.rsplit("/", 1)[0] == folder:
                _bind(opened[path], STAGE + path, folder=folders[path])
    for descriptor in opened.values():
        os.close(descriptor)
    _furnish(links, settings, text)


def _furnish(links: dict[str, str], settings: str, text: str) -> None:
    """Add links, made-up files and /proc to the new root, close it for writing and move in."""
    for path, target in links.items():
        if not os.path.lexists(STAGE + path):
            os.makedirs(os.path.dirname(STAGE + path), exist_ok=True)
            os.symlink(target, STAGE + path)
    for path, content in (("/etc/passwd", PASSWD), ("/etc/group", GROUP), (settings, text)):
        if content:
            _put(STAGE + path, content)
    for folder in ("/proc", "/tmp", "/old"):
        os.makedirs(STAGE + folder, exist_ok=True)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("proc", f"{STAGE}/proc", "proc", flags)
    _make_read_only(STAGE)
    kernel.pivot_root(STAGE, f"{STAGE}/old")
    os.chdir("/")
    kernel.detach("/old")
    os.rmdir("/old")
    kernel.mount(
        "none", "/", None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
    )


def enter_room(limits: Sequence[tuple[int, int]], instructions: bytes, *, private: bool, folder: str | None) -> None:
    """Close this process in: called once by a room's first process, pid 1 of a pid namespace of its own.

    A `private` room, a program's, has its own mounts and ipc besides; a judge's needs none, as it has nothing to write.
    The mounts come before the new user namespace: they then belong to the zygote's, in which the program has no rights,
    so that even a program that regained capabilities in its own could not touch them. No user is mapped into it: to
    itself the program is nobody. With a `folder` there are no walls.
    """
    if folder is not None:
        os.chdir(folder)
    elif private:
        kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)
        mount_own()
    if folder is None:
        kernel.unshare(kernel.CLONE_NEWUSER)
    for kind, most in limits:
        resource.setrlimit(kind, (most, most))
    if folder is None:
        kernel.drop_capabilities()
        kernel.forbid_new_privileges()
        kernel.install_filter(instructions)


def mount_own() -> None:
    """Mount a /tmp of one's own, the only place that can be written to, and a /proc."""
    # What lies there already is a Python that is installed below /tmp.
    below = {name: os.open(f"/tmp/{name}", os.O_PATH) for name in os.listdir("/tmp")}
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", "/tmp", "tmpfs", flags, f"size={Limits.disk},nr_inodes={Limits.files},mode=700")
    for name, descriptor in below.items():
        _bind(descriptor, f"/tmp/{name}", folder=True)
        os.close(descriptor)
    kernel.mount("proc", "/proc", "proc", flags | kernel.MS_NOEXEC | kernel.MS_RDONLY)
    os.mkdir("/tmp/shm")
    os.mkdir(HOME)
    os.chdir(HOME)


def process_limits(limits: Limits, *, walls: bool) -> list[tuple[int, int]]:
    """Return the limits of one process as setrlimit takes them, none above what this process may have."""
    wanted = {
        resource.RLIMIT_AS: limits.address_space,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: limits.disk,
        resource.RLIMIT_NOFILE: limits.descriptors,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_MEMLOCK: 1 << 16,
        resource.RLIMIT_STACK: 64 << 20,
    }
    if walls and _counts_processes_by_namespace():
        wanted[resource.RLIMIT_NPROC] = limits.processes
    hard = {kind: resource.getrlimit(kind)[1] for kind in wanted}
    return [
        (kind, most if hard[kind] == resource.RLIM_INFINITY else min(most, hard[kind])) for kind, most in wanted.items()
    ]


def _counts_processes_by_namespace() -> bool:
    """Say whether the kernel counts a user's processes in each namespace apart (Linux 5.14).

    Before, the limit counts all of the user's processes on the machine, the desktop's too; then only the watch counts.
    """
    major, minor = (int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    return (major, minor) >= (5, 14)
