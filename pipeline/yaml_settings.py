"""YAML files, merges, environment variables and overrides, as plain mappings for the models in pipeline/config.py.

OmegaConf reads and merges; its loader is a safe one, and refuses a key that appears twice.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import ConfigError

_INLINE_VARIABLE = re.compile(r"\{[^{}\n\"']*\$\{")
_VARIABLE = re.compile(r"\$\{oc\.env:(\w+)")
_SHELL_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def read_yaml(path: Path, *, error: type[Exception]) -> dict[str, Any]:
    """Read a YAML file with a mapping; raises `error` for other content, and for duplicate keys.

    Interpolations such as `${oc.env:NAME,default}` stay; `resolve_settings` replaces them.
    """
    try:
        content = OmegaConf.load(path)
    except UnicodeDecodeError as fault:
        raise error(f"{path} is not UTF-8 text: {fault.reason} at byte {fault.start}") from None
    except yaml.reader.ReaderError as fault:
        character = f"U+{ord(fault.character):04X}" if isinstance(fault.character, str) else f"U+{fault.character:04X}"
        raise error(f"{path} has the control character {character} at position {fault.position}; remove it") from None
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        hint = "; put quotes around a ${...} inside of { }" if _INLINE_VARIABLE.search(path.read_text()) else ""
        raise error(f"{path}{line}: {getattr(fault, 'problem', fault)}{hint}") from None
    except OmegaConfBaseException as fault:
        words = str(fault).partition("\n")[0]
        raise error(f"{path}: {words}; keys must be names, and values text or numbers") from None
    if not isinstance(content, DictConfig):
        raise error(f"{path} must contain a mapping of keys, not a list")
    return _as_dict(content)


def resolve_settings(settings: Mapping[str, Any], *, where: object, error: type[Exception]) -> dict[str, Any]:
    """Return settings with each `${oc.env:NAME,default}` replaced; raises `error` for one that cannot be."""
    content = OmegaConf.create(dict(settings))
    old = _SHELL_VARIABLE.search(OmegaConf.to_yaml(content))
    if old is not None:
        name, default = old.groups()
        now = f"${{oc.env:{name}}}" if default is None else f"${{oc.env:{name},{default}}}"
        raise error(f"{where}: the spelling {old.group()} of a variable is now {now}; rewrite it")
    try:
        OmegaConf.resolve(content)
    except OmegaConfBaseException as fault:
        lines = str(fault).splitlines()
        key = next((line.partition(":")[2].strip() for line in lines if line.strip().startswith("full_key:")), "")
        unset = re.search(r"Environment variable '(\w+)' not found", lines[0])
        reason = f"variable {unset[1]} is not set and has no default; set it in the environment" if unset else lines[0]
        raise error(f"{where}: `{key}`: {reason}") from None
    return _as_dict(content)


def find_variable(settings: Mapping[str, Any], steps: Sequence[int | str]) -> str | None:
    """Return the environment variable from which the value at a place of settings comes; None if it does not."""
    value: Any = settings
    for step in steps:
        if not isinstance(value, Mapping) or step not in value:
            return None
        value = value[step]
    found = _VARIABLE.search(value) if isinstance(value, str) else None
    return found[1] if found else None


def merge_settings(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `under` with the values of `over`, mappings key by key; another kind of head replaces the whole head."""
    under = dict(under)
    if _kind_of_head(over) not in (None, _kind_of_head(under) or "variant"):
        under.pop("head", None)
    merged = OmegaConf.merge(OmegaConf.create(under), OmegaConf.create(dict(over)))
    assert isinstance(merged, DictConfig)
    return _as_dict(merged)


def _kind_of_head(settings: Mapping[str, Any]) -> str | None:
    """Return the class of a head of one's own, "variant" for one of the paper's, None where neither is named."""
    head = settings.get("head")
    if not isinstance(head, Mapping):
        return None
    return str(head["class"]) if "class" in head else "variant" if "variant" in head else None


def _as_dict(content: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(content, resolve=False)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


class Override(NamedTuple):
    """One combination of overrides.

    words: KEY=VALUE of each. settings: what they set. differing: the words of which other combinations have others.
    """

    words: tuple[str, ...]
    settings: dict[str, Any]
    differing: tuple[str, ...] = ()


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Return every combination of overrides KEY=VALUE[,VALUE...], in order; a list of values sweeps them.

    `["a.b=1,2", "c=3"]` gives two combinations. A value is YAML, so that `[1,2]` is one value. Raises `ConfigError` for
    another form, and for a key that appears twice.
    """
    overrides = ["=".join(part.strip() for part in each.split("=", 1)) for each in overrides]
    keys = [each.partition("=")[0] for each in overrides]
    for i, (key, each) in enumerate(zip(keys, overrides, strict=True)):
        if "=" not in each or not key or each.endswith("="):
            raise ConfigError(f"override {each!r} must be KEY=VALUE, such as train.lr=3e-4")
        if key in keys[:i]:
            raise ConfigError(f"override {key!r} appears twice; sweep its values with {key}=VALUE,VALUE")
    for key, each in zip(keys, overrides, strict=True):
        values = _values(each.partition("=")[2])
        if len(set(values)) < len(values):
            raise ConfigError(f"override {each!r}: a value of {key} appears twice")
    choices = [
        [f"{key}={value}" for value in _values(each.partition("=")[2])]
        for key, each in zip(keys, overrides, strict=True)
    ]
    combinations = []
    for chosen in itertools.product(*choices):
        try:
            settings = _as_dict(OmegaConf.from_dotlist(list(chosen)))
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigError(
                f"override {' '.join(chosen)!r} cannot be read: {str(error).partition(chr(10))[0]}"
            ) from None
        differing = tuple(word for word, among in zip(chosen, choices, strict=True) if len(among) > 1)
        combinations.append(Override(chosen, settings, differing))
    return combinations


def _values(text: str) -> list[str]:
    """Split at the commas that are outside of brackets and quotes."""
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0 and not quote:
            values.append("")
        else:
            values[-1] += character
    return values
