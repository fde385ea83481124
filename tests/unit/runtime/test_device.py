import logging

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.runtime.device import choose_device, exact_convolutions


def test_convolutions_are_exact_and_still_cudnns():
    """torch's own context switches cuDNN off by default."""
    cudnn = torch.backends.cudnn
    before = (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32)
    with exact_convolutions():
        assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (True, False, True, False)
    assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == before


def test_auto_is_cuda_where_torch_sees_it_else_the_cpu_and_is_logged(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="fantrans")
    for num_devices, expected in ((0, "cpu"), (1, "cuda")):
        monkeypatch.setattr("torch.cuda.device_count", lambda num=num_devices: num)
        assert choose_device("auto") == expected
        assert caplog.messages[-1] == f"device: {expected} (auto)"
        assert choose_device("cpu") == "cpu"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match="device 'cuda:1' does not exist"):
        choose_device("cuda:1")
    assert len(caplog.messages) == 2
