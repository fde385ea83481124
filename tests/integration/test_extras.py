import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from models.fan_trans import FanTransHead
from models.head_shape import HeadShape
from pipeline.errors import ConfigError
from pipeline.runtime.extras import optional_packages, requirements
from pipeline.training.export import write_deployed
from pipeline.training.heads import describe_shape
from pipeline.training.predict import predict
from tests.unit import small_runs

SENTENCE = r"drawing figures needs the package nowhere_to_be_found, which is not installed; run `pip install 'mat.*"


def test_a_missing_package_is_one_sentence_with_the_packages_of_its_extra():
    with (
        pytest.raises(ConfigError, match=SENTENCE) as caught,
        optional_packages("figures", for_what="drawing figures"),
    ):
        import nowhere_to_be_found  # noqa: F401
    assert "'matplotlib>=3.9' 'torchcam>=0.5'`" in str(caught.value)
    assert "onnx" not in str(caught.value)


def test_an_unknown_extra_has_no_packages():
    assert requirements("figure") == []
    assert len(requirements("onnx")) == 3


@pytest.mark.parametrize(
    ("module", "hidden"),
    [
        ("pipeline.report.figures", "matplotlib"),
        ("pipeline.report.figures", "torchcam"),
        ("pipeline.synthetic.bank; pipeline.synthetic.bank.build_bank()", "anny"),
        ("pipeline.training.export, pathlib; pipeline.training.export.write_onnx(pathlib.Path('head'))", "onnx"),
    ],
)
def test_every_use_of_an_extra_is_guarded(module, hidden):
    script = f"import sys; sys.modules[{hidden!r}] = None; import {module}"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "pipeline.errors.ConfigError: " in ended.stderr
    assert f"needs the package {hidden}" in ended.stderr
    assert "run `pip install '" in ended.stderr


PREDICT_ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("prefect", "face_alignment", "retinaface"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
from pathlib import Path

import pandas as pd

from pipeline.cache.reader import open_cache
from pipeline.training.export import load_deployed
from pipeline.training.predict import predict

folder, cache, frames, out = map(Path, sys.argv[1:])
model = load_deployed(folder)
table = predict(model.head, open_cache(cache), pd.read_parquet(frames), aus=model.aus, test_part="P2", device="cpu")
table.to_parquet(out)
"""


def test_a_process_without_prefect_and_detectors_predicts_the_same(tmp_path):
    frames, cache = small_runs.make_cache(tmp_path)
    torch.manual_seed(3)
    head = FanTransHead(HeadShape.resolved(fan_width=4, num_aus=2, map_size=16, dim=8, num_blocks=2)).eval()
    write_deployed(
        tmp_path / "fold", head.deployed(), describe_shape(head.shape), aus=(1, 2), features={}, averages_flip=False
    )
    frames.to_parquet(tmp_path / "frames.parquet")
    script = tmp_path / "predict_alone.py"
    script.write_text(PREDICT_ALONE)
    subprocess.run(
        [sys.executable, script, tmp_path / "fold", cache.folder, tmp_path / "frames.parquet", tmp_path / "out"],
        check=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": "."},
    )
    here = predict(head.deployed(), cache, frames, aus=(1, 2), test_part="P2", device="cpu")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out"), here, check_exact=True)
