"""Every error a user can cause, and the exit code it ends in.

The tree (exit code in brackets):

    QwenEvalError
    ├── UsageError        [2]   a flag, a name or a configuration that cannot work
    ├── MissingError      [3]   something the run needs is not there
    │   ├── DataError           a dataset file is missing, short or broken
    │   ├── ModelError          a model cannot be found, fetched or loaded
    │   ├── DeviceError         the device asked for is not on this machine
    │   └── SandboxError        this machine has no isolation for model-written programs
    ├── IncompleteError   [4]   some samples ended in an error, so there is no score
    ├── StoreError        [5]   a run folder is damaged or locked
    └── Interrupted     [130]   Ctrl-C, after everything answered was written

1 is never anything but a regression found by the gate, 6 an inconclusive gate, 70 a bug of ours.

The message of an error is one to three plain lines: what was expected, what was found, what to do next.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "DataError",
    "DeviceError",
    "IncompleteError",
    "Interrupted",
    "MissingError",
    "ModelError",
    "QwenEvalError",
    "SandboxError",
    "StoreError",
    "UsageError",
    "did_you_mean",
]


class QwenEvalError(Exception):
    """The root: an error with an exit code and a message written for a person."""

    exit_code = 70


class UsageError(QwenEvalError):
    """A flag, a name or a configuration that cannot work."""

    exit_code = 2


class MissingError(QwenEvalError):
    """Something the run needs is not there: data, model, sandbox or device."""

    exit_code = 3


class DataError(MissingError):
    """A dataset file is missing, short or broken."""


class ModelError(MissingError):
    """A model cannot be found, fetched or loaded."""


class DeviceError(MissingError):
    """The device asked for is not on this machine."""


class SandboxError(MissingError):
    """No isolation for model-written programs can be had on this machine."""


class IncompleteError(QwenEvalError):
    """Some samples ended in an error, so there is no headline score."""

    exit_code = 4


class StoreError(QwenEvalError):
    """A run folder is damaged or locked by another process."""

    exit_code = 5


class Interrupted(QwenEvalError):
    """Ctrl-C: everything answered so far has been written."""

    exit_code = 130


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest of `known`, or "" when nothing is close."""
    close = get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
