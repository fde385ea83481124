"""Detection of facial action units with FAN-Trans: a data pipeline, a feature cache and the heads trained on it."""

from importlib.metadata import version

__version__ = version("fantrans")
