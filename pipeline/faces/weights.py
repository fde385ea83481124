"""Load the catalog's weights into networks."""

from __future__ import annotations

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pipeline.catalog import WeightsEntry
from pipeline.errors import WeightsError


def load_weights(
    network: nn.Module, entry: WeightsEntry, *, expected: str, fix: str, ignores_others: bool = False
) -> None:
    """Load the entry's file into `network`: all keys of the network, and no others unless `ignores_others`.

    Raises `WeightsError` for weights that are missing, changed, or of another network. Its message names the `expected`
    network and what to `fix` in the catalog.
    """
    path = entry.checked_path()
    try:
        found = load_file(path)
        if ignores_others:
            found = {name: values for name, values in found.items() if name in network.state_dict()}
        network.load_state_dict(found)
    except (RuntimeError, SafetensorError) as error:
        fault = " ".join(str(error).split())[:200]
        raise WeightsError(f"weights {path} are not those of {expected}: {fault}; fix {fix} in the catalog") from None
