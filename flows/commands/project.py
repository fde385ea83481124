"""`fantrans init`: a folder with a catalog and experiments of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.output import print_line
from pipeline.errors import ConfigError

_WEIGHTS = """weights: {}  # besides the shipped ones, which every catalog knows: `fantrans weights ls`
"""
_EXPERIMENT = """# What differs from the paper's settings, the shipped experiment `fan_trans`.
base: fan_trans
head: {num_blocks: 3}
"""
_README = """# A project of fantrans

`data_catalog.yaml` names data sets and says where they and the outputs are; `configs/` holds experiments. The commands
find both from this folder and all folders below it.

    fantrans demo --quick                             # raw frames to per-AU F1 on rendered faces, 1 to 2 minutes
    fantrans catalog check bp4d                       # lists what is missing of your BP4D, and where
    fantrans refresh bp4d --dry-run                   # prints what a refresh would compute; bytes, time
    fantrans refresh bp4d --device cuda               # index, detect, crop, extract
    fantrans train bp4d --experiment example --device cuda
"""


def init(folder: Annotated[Path, typer.Argument(help="A new or empty folder.")]) -> None:
    """Create a project: a folder with a catalog and experiments of your own.

    Writes data_catalog.yaml, configs/example.yaml, README.md and .gitignore. Commands that run in the folder, or in one
    below it, use them.
    """
    from pipeline.project import CATALOG_NAME, shipped_file
    from pipeline.runtime.atomic import write_bytes_atomically

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not an empty folder; name a new one")
    shipped = shipped_file(CATALOG_NAME).read_text()
    files = {
        CATALOG_NAME: shipped[: shipped.index("weights:\n")] + _WEIGHTS,
        "configs/example.yaml": _EXPERIMENT,
        "README.md": _README,
        ".gitignore": "/var/\n",
    }
    for name, text in files.items():
        write_bytes_atomically(folder / name, text.encode())
        print_line(str(folder / name))
    print_line(f"next: cd {folder} && fantrans demo --quick")
