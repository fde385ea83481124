"""The deployed head in another runtime: an export, run by onnxruntime."""

import json
import os
import stat

import onnxruntime
import pytest

from pipeline.errors import DataError
from pipeline.training import export as deployed
from pipeline.training.export import export_deployed, write_deployed
from pipeline.training.heads import describe_shape
from tests.unit.training.test_export import trained_head


@pytest.mark.parametrize(
    "settings",
    [
        {"attention_drop": "learned"},
        {"attention_drop": "row"},
        {"variant": "c_t_o2o", "attention_drop": "full"},
        {"variant": "baseline"},
        {"variant": "flat", "pools_early": True, "map_size": 32},
        {"token_rank": 3, "map_size": 32},
    ],
)
def test_onnx_agrees_with_torch(tmp_path, settings):
    head = trained_head(**settings)
    fold, out = tmp_path / "fold", tmp_path / "out"
    built_from = describe_shape(head.shape)
    write_deployed(fold, head.deployed(), built_from, aus=(1, 2, 4), features={"profile": "exact"}, averages_flip=False)
    before = os.umask(0o027)
    try:
        assert export_deployed(fold, out) <= 1e-5
    finally:
        os.umask(before)
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in out.iterdir()} == {"0o640"}
    assert {path.name for path in out.iterdir()} == {"head.safetensors", "head.json", "head.onnx"}
    ours, theirs = (json.loads((folder / "head.json").read_bytes()) for folder in (out, fold))
    assert ours == theirs
    session = onnxruntime.InferenceSession(str(out / "head.onnx"), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    versions = json.loads(metadata.pop("fantrans"))
    assert versions == {"version": ours["fantrans"], "schema": ours["version"]}
    assert {name: json.loads(value) for name, value in metadata.items()} == {"aus": [1, 2, 4], "threshold": 0.5}


def test_a_file_that_differs_is_refused(tmp_path, monkeypatch):
    head = trained_head()
    write_deployed(
        tmp_path, head.deployed(), describe_shape(head.shape), aus=(1, 2, 4), features={}, averages_flip=False
    )
    monkeypatch.setattr(deployed, "ONNX_TOLERANCE", -1.0)
    with pytest.raises(DataError, match="is not written: its logits differ from torch by"):
        deployed.write_onnx(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"head.safetensors", "head.json"}
