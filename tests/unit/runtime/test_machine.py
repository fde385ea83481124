import json

import torch

from pipeline.runtime import machine
from pipeline.runtime.machine import describe_machine, describe_threads, machine_name


def test_the_machine_has_processor_threads_and_kernels():
    found = describe_machine("cpu") | describe_threads()
    assert found["num_threads"] == torch.get_num_threads()
    assert found["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert found["cpu"]
    assert any(line.startswith("at::get_num_threads()") for line in found["parallel"])
    assert found["gpu"] is None
    assert json.loads(json.dumps(found)) == found
    assert machine_name() == f"{found['cpu']}, {found['num_cores']} cores"


def test_a_machine_is_the_same_whatever_threads_a_process_uses():
    before = describe_machine("cpu")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(num_threads + 1)
    try:
        assert describe_machine("cpu") == before
    finally:
        torch.set_num_threads(num_threads)


def test_the_processor_is_that_of_the_first_core_and_an_unknown_one_has_a_name(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    core = "processor\t: {}\nmodel name\t: {}\nflags\t\t: fpu avx2 avx512_bf16 amx_bf16\n\n"
    cpuinfo.write_text(core.format(0, "First 9: fast") + core.format(1, "Second"))
    assert machine._processor(cpuinfo) == {"cpu": "First 9: fast", "cpu_bf16": ["avx512_bf16", "amx_bf16"]}
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert machine._processor(tmp_path / "missing") == {"cpu": "riscv64", "cpu_bf16": []}
