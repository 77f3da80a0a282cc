"""The machine's precision and its processes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch

from diffuse_cli import runtime
from diffuse_cli.errors import UsageError
from diffuse_cli.runtime import PRECISIONS, resolve_precision


def test_precisions_are_those_of_the_command_line():
    assert list(PRECISIONS) == ["auto", "fp32", "bf16", "fp16"]


def test_auto_is_a_precision_the_machine_has():
    assert resolve_precision("auto") in ("bf16", "fp32")
    assert resolve_precision("fp32") == "fp32"
    assert resolve_precision("bf16") == "bf16"


@pytest.mark.parametrize(("has", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_follows_the_hardware(monkeypatch: pytest.MonkeyPatch, has: bool, chosen: str):
    monkeypatch.setattr(runtime, "_gains_by_bfloat16", lambda device: has)
    assert resolve_precision("auto") == chosen


@pytest.mark.parametrize(
    ("capable", "speed", "chosen"),
    [(True, 2.2, "bf16"), (True, 0.5, "fp32"), (False, 9.0, "fp32")],
)
def test_a_processor_must_gain_by_bfloat16(
    monkeypatch: pytest.MonkeyPatch, capable: bool, speed: float, chosen: str
):
    monkeypatch.setattr(runtime, "device_type", lambda wanted: "cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": capable})
    monkeypatch.setattr(runtime, "bfloat16_speed", lambda: speed)
    assert resolve_precision("auto") == chosen


def test_the_speed_of_bfloat16_is_measured_once():
    assert 0.01 < runtime.bfloat16_speed() < 100
    assert runtime.bfloat16_speed() == runtime.bfloat16_speed()


def test_fp16_needs_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "device_type", lambda wanted: "cpu")
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        resolve_precision("fp16")
    monkeypatch.setattr(runtime, "device_type", lambda wanted: "cuda")
    assert resolve_precision("fp16") == "fp16"


def test_an_unknown_precision_is_a_usage_error():
    with pytest.raises(UsageError, match=r"--precision: there is no 'bf61'. Did you mean 'bf16'"):
        resolve_precision("bf61")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """A machine with a CUDA GPU, as far as PyTorch's answer goes."""
    found = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **kw: found)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **kw: True)


def test_the_device_is_the_gpu_unless_another_is_wanted(gpu):
    assert runtime.device_type() == "cuda"
    assert runtime.device_type("cuda") == "cuda"
    assert runtime.device_type("cpu") == "cpu"
    with pytest.raises(UsageError, match=r"--device mps: PyTorch sees none here.*Choose cuda"):
        runtime.device_type("mps")
    assert resolve_precision("auto", "cuda") == "bf16"
    assert resolve_precision("fp16", "auto") == "fp16"
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        resolve_precision("fp16", "cpu")


@pytest.mark.parametrize(("device", "on_processor"), [("cpu", True), ("auto", False)])
def test_a_machine_is_of_the_device_that_is_wanted(gpu, monkeypatch, device, on_processor):
    import accelerate

    asked = {}

    def refuse(**options):
        asked.update(options)
        raise UsageError("no")

    monkeypatch.setattr(accelerate, "Accelerator", refuse)
    for name in ("allow_tf32", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, name, False)
    with pytest.raises(UsageError, match="no"), runtime.machine("fp32", device):
        pass
    assert asked["cpu"] is on_processor


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_here_is_refused_by_every_command_that_computes(
    train, diffuse, images, model
):
    for ran in (
        train("--device", "cuda", "-q"),
        train("--device", "cuda", "--dry-run", "-q"),
        diffuse("sample", model, "--device", "cuda", "-q"),
        diffuse("eval", model, images, "--device", "cuda", "-q"),
        diffuse("tune", model, images, "--device", "cuda", "-q"),
        diffuse("compare", model, model, images, "--device", "cuda", "-q"),
    ):
        assert (ran.code, ran.out) == (2, "")
        assert ran.line == "diffuse: --device cuda: PyTorch sees none here. Choose cpu\n"


def test_the_device_is_no_part_of_the_model_and_may_change_on_resume(train):
    assert train("--steps", 4, "--device", "cpu", "--stop-at", 2).code == 0
    ran = train("--steps", 4, "--resume", "--device", "auto")
    assert ran.code == 0, ran.err
    resumed = Path("model.safetensors").read_bytes()
    assert train("--steps", 4, "--overwrite").code == 0
    assert Path("model.safetensors").read_bytes() == resumed
    assert b"device" not in resumed


def test_processes_wait_for_one_that_works_alone(monkeypatch):
    """Evaluations of a run are the first process's; torch would end the others after minutes."""
    import accelerate

    asked = {}

    def refuse(**options):
        asked.update(options)
        raise UsageError("no")

    monkeypatch.setattr(accelerate, "Accelerator", refuse)
    with pytest.raises(UsageError), runtime.machine("fp32"):
        pass
    [waiting] = asked["kwargs_handlers"]
    assert isinstance(waiting, accelerate.InitProcessGroupKwargs)
    assert waiting.timeout == timedelta(days=1)
