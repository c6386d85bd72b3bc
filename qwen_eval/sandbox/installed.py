"""Which files of the installed packages belong to some of them and to what they require."""

import os
from collections.abc import Sequence

__all__ = ["installed"]


def installed(distributions: Sequence[str]) -> list[str]:
    """Return the files and folders in site-packages of distributions and all that they require, by their own records.

    What a distribution offers as an extra is not required, nor is one that is not installed. The names are those that
    stand directly in the folder: a package, a module, a folder of shared libraries, the description.
    """
    if not distributions:
        return []
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(distributions)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            one = distribution(name)
        except PackageNotFoundError:
            continue
        found |= {os.path.join(str(one.locate_file("")), file.parts[0]) for file in one.files or () if file.parts}
        for line in one.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return sorted(path for path in found if os.path.exists(path) and _is_ours(path))


def _is_ours(path: str) -> bool:
    """Say whether a path is a package's own: not bin/ beside the folder, not what all have in common, not a setting."""
    name = os.path.basename(path)
    return name not in ("..", "__pycache__", "bin", "share") and not name.endswith(".pth")
