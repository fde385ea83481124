"""`fantrans predict`: action units of images and videos without labels."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from flows.commands.base import checked_choice, has_choices
from flows.commands.names import complete_run
from flows.commands.options import Device, Json, choose_device
from flows.commands.output import print_json, print_line
from pipeline.errors import DataError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.predict.inputs import Source
    from pipeline.predict.rows import Format
    from pipeline.predict.stream import Faces

logger = logging.getLogger("fantrans")

_STDOUT = "-"


@has_choices("format")
def _format_names() -> Sequence[str]:
    return "fantrans", "py-feat", "openface"


@has_choices("faces")
def _faces_names() -> Sequence[str]:
    return "all", "largest"


def _checked_part(part: str | None) -> str | None:
    from pipeline.training.run_files import check_parts

    check_parts([] if part is None else [part])
    return part


def predict(
    inputs: Annotated[list[str], typer.Argument(help="Images, videos, folders, or patterns such as 'clips/*.mp4'.")],
    out: Annotated[str, typer.Option(help="File to write, .csv or .parquet; - prints CSV.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A run, a folder of `fantrans export`, or a shipped model.",
            show_default="the shipped default",
            autocompletion=complete_run,
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--part",
            help="The fold of a run, by its tested part.",
            show_default="the first finished one",
            callback=_checked_part,
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="Columns of the output.", callback=checked_choice)] = "fantrans",
    overlay: Annotated[
        Path | None,
        typer.Option(help="Video to draw on, .mp4; or a folder, for one file per input.", show_default="none"),
    ] = None,
    faces: Annotated[str, typer.Option(help="Faces of each frame.", callback=checked_choice)] = "all",
    every: Annotated[int, typer.Option(min=1, help="Predict each N-th frame of a video.")] = 1,
    min_score: Annotated[
        float,
        typer.Option(min=0, max=1, help="Leave out faces with a lower score.", show_default="the detector's threshold"),
    ] = 0.0,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search subfolders as well.")] = False,
    device: Device = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Frames per batch of the detector.", show_default="8, 32 on CUDA"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; each predicts one video at a time.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    as_json: Json = False,
) -> None:
    """Predict the action units of images and videos: one row per face and frame.

    Frames without a face and unreadable ones are rows, too. A run that was stopped is continued by the same command.
    """
    is_printed = out == _STDOUT
    path = None if is_printed else _checked_out(Path(out))
    if is_printed:
        given = {"--overlay": overlay is not None, "--workers": workers > 1, "--json": as_json, "--force": force}
        for option in (name for name, is_given in given.items() if is_given):
            raise UsageError(f"{option} has no effect with --out -; leave it out, or name a file with --out")
    from pipeline.catalog import load_catalog
    from pipeline.predict.chunks import part_folder
    from pipeline.predict.inputs import find_sources, overlay_names
    from pipeline.predict.job import JobWorker, predict_to_file, predict_to_stream, with_batch_size
    from pipeline.predict.model import SHIPPED_MODELS, find_model, open_model
    from pipeline.predict.stream import Options

    sources = find_sources(inputs, recursive=recursive)
    if path is not None and path.exists() and not force:
        raise UsageError(f"{path} exists; pass --force to replace it, or name another file with --out")
    targets = {} if overlay is None else _overlay_paths(overlay, sources, overlay_names(sources))
    _check_targets(targets, is_replaced=force or path is None or part_folder(path).is_dir())
    catalog = load_catalog()
    opened = open_model(find_model(catalog, model, part=part), catalog)
    if opened.folder.is_relative_to(SHIPPED_MODELS):
        logger.info("the shipped model has seen rendered faces only: not for measurements on people")
    chosen = choose_device(device)
    options = with_batch_size(
        Options(faces=cast("Faces", faces), every=every, min_score=min_score),
        chosen,
        batch_size,
    )
    worker = JobWorker(opened, chosen, options)

    def draw(source: Source, rows: Iterator[pd.DataFrame]) -> None:
        from pipeline.predict.overlay import write_overlay

        write_overlay(source, rows, opened.aus, targets[source])

    columns = cast("Format", format)
    if path is None:
        summary = predict_to_stream(worker, sources, sys.stdout, format=columns)
    else:
        summary = predict_to_file(
            worker,
            sources,
            path,
            format=columns,
            num_workers=workers,
            force=force,
            draw=draw if targets else None,
        )
        if as_json:
            counts = {name: value for name, value in vars(summary).items() if not name.startswith("_")}
            print_json(
                "predict", file=path, model=opened.folder, aus=opened.aus, **counts, unreadable=summary.unreadable
            )
        else:
            print_line(f"{path}: {summary.sentence()}")
    if summary.unreadable and as_json:
        raise typer.Exit(1)
    if summary.unreadable:
        from pipeline.runtime.text import join_first

        raise DataError(
            f"{len(summary.unreadable)} of {len(sources)} inputs cannot be read: {join_first(summary.unreadable, 5)}; "
            "the output lists them with the status unreadable: copy or convert them again"
        )


def _checked_out(path: Path) -> Path:
    from pipeline.datasets.files import checked_name

    checked_name(path.name, folder=path.parent)
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise UsageError(f"--out {path} has no known suffix; name a .csv or .parquet file, or - for the terminal")
    path = path.resolve() if path.is_symlink() else path  # the link stays, and its file is written
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; name a file in it, such as {path / 'au.csv'}")
    if not path.parent.is_dir():
        raise UsageError(f"folder {path.parent} does not exist; create it with `mkdir -p {path.parent}`")
    return path


def _overlay_paths(overlay: Path, sources: Sequence[Source], names: dict[Source, str]) -> dict[Source, Path]:
    if overlay.suffix.lower() != ".mp4":
        if overlay.suffix or overlay.is_file():
            raise UsageError(f"--overlay {overlay} is neither an .mp4 file nor a folder; name one of them")
        return {source: overlay / names[source] for source in sources}
    if len(sources) > 1 or not sources[0].is_video:
        raise UsageError(
            f"--overlay {overlay} takes one video, found {len(sources)} inputs; name a folder, for one file per input"
            if len(sources) > 1
            else f"{sources[0].path} is an image; name a folder with --overlay"
        )
    return {sources[0]: overlay}


def _check_targets(targets: dict[Source, Path], *, is_replaced: bool) -> None:
    """Raise `UsageError` if an overlay would replace an input, or another file that may not be replaced.

    is_replaced: whether existing files may be: with --force, and those of a run that is continued.
    """
    inputs = {source.path.resolve() for source in targets}
    for target in targets.values():
        if target.resolve() in inputs:
            raise UsageError(f"--overlay would replace the input {target}; name another file or folder")
        if target.exists() and not is_replaced:
            raise UsageError(f"{target} exists; pass --force to replace it, or name another --overlay")
