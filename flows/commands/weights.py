"""`fantrans weights`: list, fetch and add networks; train, fit and score those that come with the project."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flows.commands.base import Group, add_command
from flows.commands.names import complete_added, complete_published, resolve_experiment
from flows.commands.options import Dataset, Device, Experiment, Json, Weights, choose_device
from flows.commands.output import print_json, print_line, print_table, print_weights_entry
from pipeline.errors import ConfigError

weights_app = typer.Typer(cls=Group, help="List and add networks; train, fit and score the shipped ones.")


def _safetensors(path: Path) -> Path:
    if path.suffix != ".safetensors":
        raise ConfigError(f"weights are written as .safetensors; run it with --out {path.with_suffix('.safetensors')}")
    return path


File = Annotated[Path, typer.Option(help="File to write, .safetensors.", callback=_safetensors)]


class Pooling(Enum):
    """Poolings of a FAN."""

    avg = "avg"
    max = "max"


Seed = Annotated[int, typer.Option(min=0, help="Seed of the rendered faces or scenes, and of the training.")]
Steps = Annotated[int, typer.Option(min=1, help="Training steps.")]
MaxLr = Annotated[float, typer.Option(min=0, help="Highest learning rate.")]


@add_command(weights_app, "ls", "fantrans weights ls", "fantrans weights ls --json")
def list_weights(as_json: Json = False) -> None:
    """List the weights of the catalog, and published ones that can be fetched.

    Prints per network its family, shape, pooling and file. Its state is intact (the file has the catalog's sha256),
    damaged (another one), missing, or available: published, and not in the catalog.
    """
    from pipeline.catalog import load_catalog
    from pipeline.errors import WeightsError
    from pipeline.weights.published import PUBLISHED

    catalog = load_catalog()
    records = []
    for name, entry in catalog.weights.items():
        shape = entry.model_dump(include={"family", "width", "num_stacks", "pooling", "path"})
        record = {"name": name, **shape, "exists": entry.path.is_file(), "is_intact": True}
        try:
            entry.checked_path()
        except WeightsError:
            record["is_intact"] = False
        records.append(record | {"codec": None if entry.codec is None else entry.codec.path})
    published = [
        {
            "name": name,
            "family": each.family,
            "width": each.width,
            "num_stacks": each.num_stacks,
            "pooling": each.pooling,
            "url": each.url,
            "sha256": each.sha256[0] if each.sha256 else None,
            "publisher": each.publisher,
            "licence": each.licence,
            "is_added": name in catalog.weights,
        }
        for name, each in PUBLISHED.items()
    ]
    if as_json:
        print_json("weights-ls", weights=records, published=published)
        return
    shown = ("width", "num_stacks", "pooling")
    table = Table("name", "family", "width", "stacks", "pooling", "file", "state")
    for record in records:
        state = "intact" if record["is_intact"] else "damaged" if record["exists"] else "missing"
        cells = ("" if record[key] is None else str(record[key]) for key in (*shown, "path"))
        table.add_row(record["name"], record["family"], *cells, state)
    available = [each for each in published if not each["is_added"]]
    for each in available:
        cells = ("" if each[key] is None else str(each[key]) for key in (*shown, "url"))
        table.add_row(str(each["name"]), str(each["family"]), *cells, "available")
    print_table(table)
    if available:
        print_line("available ones are added with `fantrans weights fetch NAME`")


@add_command(weights_app, "fetch", "fantrans weights fetch 2dfan2")
def fetch_weights(
    name: Annotated[
        str, typer.Argument(help="Published weights, see `fantrans weights ls`.", autocompletion=complete_published)
    ],
) -> None:
    """Download published weights, check them, and add them to the catalog.

    Writes into the weights folder (FANTRANS_WEIGHTS) and prints how to use them. An interrupted download resumes.
    """
    from pipeline.weights.fetch import fetch_weights as fetch

    folder, taken = _weights_folder()
    _print_added(name, folder, is_new=fetch(name, folder, taken=taken))


@add_command(
    weights_app,
    "add",
    "fantrans weights add 2dfan2.pth",
    "fantrans weights add my_fan.pth.tar --name my_fan --pooling avg",
)
def add_weights(
    file: Annotated[
        Path, typer.Argument(help="Weights: .pth, .pt, .pth.tar, TorchScript .zip or .safetensors, or a zip of one.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Name in the catalog.", show_default="the published one, else the file's")
    ] = None,
    pooling: Annotated[
        Pooling | None, typer.Option(help="Pooling of a FAN.", show_default="known for published weights")
    ] = None,
) -> None:
    """Convert a file of weights and add it to the catalog.

    Finds family, width and stacks in the file, loads the weights into their network, writes safetensors and an entry
    into the weights folder (FANTRANS_WEIGHTS), and prints how to use them. No code in the file is run.
    """
    from pipeline.store.lock import writer_lock
    from pipeline.weights.add import add_weights as add

    folder, taken = _weights_folder()
    with writer_lock(folder):
        added, is_new = add(file, folder, name=name, pooling=None if pooling is None else pooling.value, taken=taken)
    _print_added(added, folder, is_new=is_new)


@add_command(weights_app, "rm", "fantrans weights rm 2dfan2")
def remove_weights(
    name: Annotated[str, typer.Argument(help="Weights that were added or fetched.", autocompletion=complete_added)],
) -> None:
    """Remove weights that were added or fetched.

    Prints the removed files. Caches that were computed with them stay readable.
    """
    from pipeline.store.lock import writer_lock
    from pipeline.weights.folder import remove_weights as remove

    folder, _ = _weights_folder()
    with writer_lock(folder):
        removed = remove(folder, name)
    for path in removed:
        print_line(f"removed {path}")


def _weights_folder() -> tuple[Path, set[str]]:
    """Return the weights folder, and the names of weights that the catalog has from elsewhere."""
    from pipeline.catalog import load_catalog

    catalog = load_catalog()
    folder = catalog.roots.weights
    return folder, {name for name, entry in catalog.weights.items() if entry.path.parent != folder}


def _print_added(name: str, folder: Path, *, is_new: bool) -> None:
    """Print what was added, and the setting that names it."""
    from pipeline.catalog import added_weights
    from pipeline.weights.networks import Architecture

    entry = added_weights(folder)[name]
    kind = str(Architecture(entry.family, entry.width, entry.num_stacks))
    pooling = "" if entry.pooling is None else f", pooling {entry.pooling}"
    print_line(f"{name}: {kind}{pooling}, {'added' if is_new else 'is added already'}: {entry.path}")
    section = "detector" if entry.family.startswith("retinaface") else "features"
    print_line(f"in an experiment: cache: {{{section}: {{weights: {name}}}}}")


@add_command(weights_app, "train-fan", "fantrans weights train-fan --out fan.safetensors --width 128")
def train_fan(
    out: File,
    width: Annotated[int, typer.Option(min=16, help="Channels of the FAN.")] = 64,
    steps: Steps = 2600,
    lr: MaxLr = 3e-3,
    faces: Annotated[int, typer.Option(min=32, help="Rendered faces, each of another identity.")] = 5000,
    start: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Initial weights, of a FAN of equal or half the width."),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a FAN on rendered faces.

    Writes the weights and prints their entry for the catalog. A killed training resumes at its last checkpoint.
    """
    from pipeline.catalog import load_catalog
    from pipeline.pretraining.fan import FanTraining, train_fan
    from pipeline.synthetic.bank import default_bank_path

    settings = FanTraining(width=width, num_steps=steps, max_lr=lr, num_faces=faces, seed=seed)
    pool = load_catalog().roots.work / "weights" / f"faces-{faces}-{seed}"
    train_fan(out, settings, pool_path=pool, bank_path=default_bank_path(), device=choose_device(device), start=start)
    shape = f"width: {width}, num_stacks: {settings.num_stacks}, pooling: {settings.pooling}"
    print_weights_entry(out, f"family: fan, {shape}")


@add_command(weights_app, "train-retinaface", "fantrans weights train-retinaface --out retinaface.safetensors")
def train_retinaface(
    out: File,
    steps: Steps = 3600,
    lr: MaxLr = 4e-3,
    scenes: Annotated[int, typer.Option(min=50, help="Rendered scenes.")] = 4000,
    start: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Initial weights.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train the MobileNet RetinaFace on rendered scenes.

    Writes the weights and prints their entry for the catalog. A killed training resumes at its last checkpoint.
    """
    import torch

    from pipeline.catalog import load_catalog
    from pipeline.pretraining.retinaface import train_retinaface
    from pipeline.synthetic.bank import default_bank_path

    work = load_catalog().roots.work / "weights" / f"scenes-{scenes}-{seed}"
    train_retinaface(
        out,
        bank_path=default_bank_path(),
        work=work,
        device=torch.device(choose_device(device)),
        num_steps=steps,
        num_scenes=scenes,
        max_lr=lr,
        seed=seed,
        init_from=start,
    )
    print_weights_entry(out, "family: retinaface-mobilenet")


@add_command(weights_app, "train-resnet", "fantrans weights train-resnet --out resnet18.safetensors")
def train_resnet(
    out: File,
    steps: Steps = 1500,
    faces: Annotated[int, typer.Option(min=32, help="Rendered faces, each a class.")] = 1000,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train the early layers of a ResNet-18 to tell rendered faces apart.

    Writes the weights and prints their accuracy and their entry for the catalog. A killed training resumes at its last
    checkpoint.
    """
    from pipeline.catalog import load_catalog
    from pipeline.pretraining.face_pool import FACE_SIZE_PX, render_pool
    from pipeline.pretraining.resnet import ResNetTraining, train_resnet
    from pipeline.synthetic.bank import default_bank_path

    folder = load_catalog().roots.work / "weights" / f"faces-{faces}-{seed}"
    pool = render_pool(folder, bank_path=default_bank_path(), num_faces=faces, seed=seed, size_px=FACE_SIZE_PX)
    accuracy = train_resnet(out, ResNetTraining(num_steps=steps, seed=seed), pool, device=choose_device(device))
    print_line(f"accuracy: {100 * accuracy:.1f} % among {faces} faces")
    print_weights_entry(out, "family: resnet18")


@add_command(weights_app, "fit-codec", "fantrans weights fit-codec bp4d --experiment fan_trans --out basis.safetensors")
def fit_codec(
    dataset: Dataset,
    out: File,
    experiment: Experiment = None,
    frames: Annotated[int, typer.Option(min=8, help="Frames to fit on.")] = 96,
    device: Device = "auto",
) -> None:
    """Fit the basis in which the profile compact keeps a FAN's maps.

    The data set must have crops. Writes the basis and prints its entry for the catalog; to weights
    that were added or fetched, it is added, too. No labels are used.
    """
    resolve_experiment(dataset, experiment)
    from pipeline.refresh.fit_codec import fit_codec
    from pipeline.refresh.job import prepare_refresh
    from pipeline.runtime.atomic import file_sha256

    job = prepare_refresh(dataset, experiment=experiment, profile="exact", device=choose_device(device))
    fit_codec(job, out, num_frames=frames)
    weights, folder = job.config.features.weights, job.catalog.roots.weights
    if job.catalog.get_weights(weights).path.parent == folder:
        from pipeline.weights.folder import add_codec

        print_line(f"{weights}: added its codec {add_codec(folder, weights, out)}")
        return
    print_line(f"for {weights} in data_catalog.yaml:\n    codec: {{path: {out}, sha256: {file_sha256(out)}}}")


@add_command(
    weights_app,
    "evaluate",
    "fantrans weights evaluate fan-64",
    "fantrans weights evaluate retinaface-mobilenet --num 100",
)
def evaluate_weights(
    name: Weights,
    num: Annotated[
        int | None, typer.Option(min=1, help="Faces or scenes to score on.", show_default="500 faces or 1000 scenes")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rendered faces or scenes.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score a FAN on rendered faces, or a RetinaFace on rendered scenes, that no training uses.

    Prints one line per score.
    """
    from pipeline.catalog import load_catalog

    catalog = load_catalog()
    entry = catalog.get_weights(name)
    if entry.family == "resnet18":
        raise ConfigError(f"weights {name} are a resnet18, which has no score; name a FAN or a RetinaFace")
    import torch

    from pipeline.synthetic.bank import default_bank_path

    device = choose_device(device)
    if entry.family == "fan":
        from pipeline.faces.features import load_fan
        from pipeline.pretraining.fan_scores import evaluate_fan

        num = num or 500
        pool = catalog.roots.work / "weights" / f"unseen-faces-{num}-{seed}"
        scores = evaluate_fan(
            load_fan(entry, device), pool_path=pool, bank_path=default_bank_path(), num_faces=num, seed=seed
        )
    else:
        from pipeline.faces.detect import load_detector
        from pipeline.pretraining.retinaface import evaluate_detector

        num = num or 1000
        detector = load_detector(entry, torch.device(device))
        scores = evaluate_detector(
            detector, bank_path=default_bank_path(), device=torch.device(device), num_scenes=num, seed=seed
        )._asdict()
    if as_json:
        listed = [{"name": key, "value": value} for key, value in scores.items()]
        print_json("weights-evaluate", weights=name, num=num, seed=seed, device=device, scores=listed)
        return
    for key, value in scores.items():
        print_line(f"{key}: {value:.4g}")
