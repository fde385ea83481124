"""Errors that a user can fix.

Every message is one sentence: what, where, expected against found, the next command. The command line prints it and
exits with the error's `exit_status`. Any exception that is not a `FantransError` is a defect and keeps its traceback.
Each class also inherits from a builtin exception, so that callers who do not know this package can catch it.
"""

from __future__ import annotations

from typing import ClassVar


class FantransError(Exception):
    """Base of all errors that users see; each is its message."""

    exit_status: ClassVar[int] = 1
    """Status with which the command line ends: 1, or 2 for a `UsageError`."""

    def __reduce__(self) -> tuple[type[FantransError], tuple[object, ...]]:
        return type(self), (str(self),)  # so that Dask's workers can send it, whatever it inherits


class UsageError(FantransError, ValueError):
    """The user's own words are wrong: a name, an option, a setting; nothing was computed."""

    exit_status = 2


class CatalogError(UsageError):
    """`data_catalog.yaml` is wrong, or lacks the requested name."""


class ConfigError(UsageError):
    """An experiment's settings are wrong, or name what this machine lacks."""


class DataError(FantransError, ValueError):
    """Raw data, a table or a run violates its format."""


class DataNotFoundError(DataError, FileNotFoundError):
    """Raw data, a table or a run is missing."""


class ServerError(FantransError, RuntimeError):
    """A Prefect server does not answer or start, or refuses a deployment."""


class StoreError(FantransError, ValueError):
    """A store of crops or features cannot be written or read."""


class LockError(StoreError):
    """A file cannot be locked, for example because its disk has no locks."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """A store, a finished revision or a shard does not exist."""


class TrainingError(FantransError, RuntimeError):
    """A head cannot learn with its settings."""


class WeightsError(FantransError, ValueError):
    """Weights are damaged or belong to another network."""


class WeightsNotFoundError(WeightsError, FileNotFoundError):
    """A file of weights is missing."""


class WriteError(FantransError, OSError):
    """A file cannot be written; `errno` is the operating system's code for the reason, None if there is none."""

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(errno, message)

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[type[WriteError], tuple[str, int | None]]:
        return type(self), (str(self), self.errno)


def is_io_failure(error: BaseException) -> bool:
    """Whether input or output itself failed (a full disk, a lost share), in contrast to a file that does not exist."""
    return isinstance(error, WriteError) or (isinstance(error, OSError) and not isinstance(error, FantransError))
