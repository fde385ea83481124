"""Load the catalog's weights into networks, and check them before anything else runs."""

from __future__ import annotations

from torch import nn

from pipeline.catalog import Catalog, WeightsEntry
from pipeline.errors import WeightsError
from pipeline.weights.files import read_safetensors
from pipeline.weights.networks import Architecture, load_state, make_network


def load_weights(entry: WeightsEntry) -> nn.Module:
    """Return the network of the entry's family with the weights of its file, on the CPU.

    Raises `WeightsError` for weights that are missing, changed, of another format or network, or not finite. Its
    message names the expected network and what to fix.
    """
    state = read_safetensors(entry.checked_path())
    expected = Architecture(entry.family, entry.width, entry.num_stacks)
    network = make_network(expected, entry.pooling)
    keys = "`family`, `width`, `num_stacks` or `path`" if entry.family == "fan" else "`family` or `path`"
    fix = f"fix {keys} in the catalog, or let `fantrans weights add {entry.path}` find them"
    load_state(network, state, what=f"weights {entry.path}", expected=expected, fix=fix)
    return network


def check_weights(entry: WeightsEntry) -> list[str]:
    """Return what keeps an entry's network and basis from being loaded, one sentence each; [] if nothing does."""
    faults = []
    try:
        load_weights(entry)
    except WeightsError as error:
        faults.append(str(error))
    try:
        if entry.codec is not None:
            read_safetensors(entry.codec.checked_path())
    except WeightsError as error:
        faults.append(str(error))
    return faults


def find_weights_faults(catalog: Catalog) -> list[str]:
    """Return the faults of all weights of the catalog, one sentence each, with its fix."""
    checked = catalog.weights.items()
    return [f"weights {name!r}: {fault}" for name, entry in checked for fault in check_weights(entry)]
