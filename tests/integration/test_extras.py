import subprocess
import sys

import pytest

from pipeline.errors import ConfigError
from pipeline.runtime.extras import optional_packages, requirements

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
