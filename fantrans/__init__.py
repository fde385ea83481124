"""Detection of facial action units with FAN-Trans: what people call from a notebook. docs/api.md describes it.

The packages `pipeline`, `models` and `flows` are internal: they may change with any version.
"""

from importlib.metadata import version

from fantrans.api import (
    Cache,
    batches,
    compare,
    load_head,
    new_head,
    open_cache,
    predict,
    report,
    runs,
    score,
    train,
)
from models.head import HeadInputs, HeadOutput, check_contract, stack_maps
from models.losses import total_loss
from pipeline.errors import FantransError

__version__ = version("fantrans")
__all__ = [
    "Cache",
    "FantransError",
    "HeadInputs",
    "HeadOutput",
    "batches",
    "check_contract",
    "compare",
    "load_head",
    "new_head",
    "open_cache",
    "predict",
    "report",
    "runs",
    "score",
    "stack_maps",
    "total_loss",
    "train",
]
