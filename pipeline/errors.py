"""What goes wrong for reasons a user can mend.

Every message is one sentence: what, where, expected against found, the next command. The command line prints it and
exits with 2; anything that is not a `FantransError` is a defect and keeps its traceback.
"""

from __future__ import annotations


class FantransError(ValueError):
    """The family of errors that users see."""


class CatalogError(FantransError):
    """`data_catalog.yaml` is wrong, or names something that is not there."""


class ConfigError(FantransError):
    """An experiment's settings are wrong."""


class DataError(FantransError):
    """Raw data, a table or a crop is not as its format says."""


class CacheError(FantransError):
    """A feature cache cannot be written or read."""


class TrainingError(FantransError):
    """A head cannot learn with its settings."""


class PlaceError(FantransError):
    """A file cannot be written where it belongs; `errno` is the system's word for why, if it had one."""

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message, errno)
        self.errno = errno

    def __str__(self) -> str:
        return str(self.args[0])


class WeightsError(FantransError):
    """Weights are missing, damaged, or of another network."""
