"""The settings of a run, and those that differ from the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import ExperimentConfig, Settings
from pipeline.training.run_files import flattened


def run_settings(record: Mapping[str, Any], *, only_changed: bool = False) -> dict[str, Any]:
    """Return a run's settings by dotted name; with `only_changed`, those that differ from the defaults.

    record: content of `run.json`.
    """
    sections = _default_sections()
    own = flattened({name: record[name] for name in sections if name in record})
    defaults = flattened(sections)
    return {
        name: value
        for name, value in own.items()
        if not only_changed or name not in defaults or value != defaults[name]
    }


def _default_sections() -> dict[str, dict[str, Any]]:
    """Return the default settings that decide a head, by section of an experiment."""
    defaults = {name: field.default for name, field in ExperimentConfig.model_fields.items() if name != "cache"}
    return {name: value.model_dump() for name, value in defaults.items() if isinstance(value, Settings)}
