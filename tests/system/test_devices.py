"""The machine's precision and its processes."""

from __future__ import annotations

import contextlib
import json
import operator
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from conftest import manifest
from lab import ROOT

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import Conditions, Space
from diffuse_cli.system import devices, processes
from diffuse_cli.system.accelerator import RunProcessState, open_accelerator
from diffuse_cli.system.devices import hold_cuda_settings, resolve_precision
from diffuse_cli.system.errors import UsageError
from diffuse_cli.training.decisions import complete_config

AMD, INTEL = {"cpu_name": "AMD EPYC", "avx512_bf16": True}, {"cpu_name": "Intel Xeon"}


@pytest.mark.parametrize(
    ("has", "width", "chosen"),
    [
        (AMD, None, "bf16"),
        (AMD, 24, "bf16"),
        (AMD, 23, "fp32"),
        ({**AMD, "avx512_bf16": False}, None, "fp32"),
        ({**INTEL, "avx512_bf16": True}, None, "fp32"),
        ({**INTEL, "avx512_bf16": True, "amx_bf16": True}, 32, "bf16"),
        ({**INTEL, "avx512_bf16": True, "amx_bf16": True}, 31, "fp32"),
        ({}, None, "fp32"),
    ],
)
def test_precision_follows_the_instructions_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, has, width, chosen
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert resolve_precision("auto", "cpu", width) == chosen


@pytest.mark.parametrize(
    ("own", "device", "chosen"),
    [
        ("fp32", "cpu", "fp32"),
        ("bf16", "cpu", "bf16"),
        ("fp16", "cpu", "bf16"),
        (None, "cpu", "bf16"),
        (["fp32"], "cpu", "bf16"),
        ("fp32", "cuda", "fp32"),
        ("fp16", "cuda", "fp16"),
        (None, "cuda", "bf16"),
    ],
)
def test_a_model_is_computed_in_its_own_precision(
    gpu, monkeypatch: pytest.MonkeyPatch, own, device, chosen
):
    """Where the device has it; what a stranger's file says of it may be anything."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: AMD)
    assert resolve_precision("auto", device, 64, model_precision=own) == chosen
    assert resolve_precision("bf16", device, 64, model_precision=own) == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert resolve_precision("auto", "cpu", 64, model_precision=own) == "fp32"


@pytest.fixture
def few_instructions(monkeypatch: pytest.MonkeyPatch):
    """A processor that gains by bfloat16 from 24 channels on."""
    monkeypatch.setattr(devices, "device_type", lambda device="auto": "cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: AMD)


@pytest.mark.parametrize(
    ("width", "precision", "chosen"),
    [(8, "auto", "fp32"), (24, "auto", "bf16"), (24, "fp32", "fp32"), (8, "bf16", "bf16")],
)
def test_a_model_is_sampled_in_the_precision_that_it_was_trained_in(
    few_instructions, diffuse, quick, width, precision, chosen
):
    """What training decides by the width, or is told, is in the configuration and the manifest."""
    quick("--width", width, "--steps", 1, "--precision", precision, "-q").ok()
    assert f'precision = "{chosen}"' in Path("model.run/config.toml").read_text()
    ran = diffuse("sample", "model.safetensors", "-n", 1, "--steps", 1, "-q")
    assert (ran.code, manifest()["precision"]) == (0, chosen), ran.err


def test_only_a_precision_that_is_passed_is_warned_of(monkeypatch, diffuse, quick):
    """The guidance model and further samples are in the precision of the first samples, and a
    resumed run is in its own."""
    has = {"cpu_name": "Intel Xeon", "avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    warning, slow = "may be slower than fp32 on this CPU", ("--precision", "bf16")
    for seed, name in enumerate(("weak", "model")):
        ran = quick(
            *slow, "--steps", 2, "--stop-at", 1, "--seed", seed, "-o", f"{name}.safetensors"
        )
        assert (ran.code, ran.err.count(warning)) == (0, 1), ran.err
    ran = quick("--steps", 2, "--resume", "--precision", "auto")
    assert (ran.code, warning in ran.err, "bf16 on cpu" in ran.err) == (0, False, True), ran.err
    line = ("sample", "model.safetensors", "--guide-with", "weak.run", "--steps", 1)
    for n, count, passed in ((1, 1, (*slow, "-o", "x")), (1, 0, ()), (2, 0, ())):
        ran = diffuse(*line, "-n", n, *passed)
        assert (ran.code, ran.err.count(warning)) == (0, count), ran.err
    assert manifest()["precision"] == "bf16"


def test_precision_follows_the_widest_level(few_instructions):
    for multipliers, chosen in (((1, 2), "fp32"), ((1, 3), "bf16")):
        asked = TrainConfig(data="x", architecture={"width": 8, "multipliers": multipliers})
        done, _ = complete_config(asked, Space(channels=1, size=(32, 32)), Conditions())
        assert done.precision == chosen


def test_the_decided_precision_is_that_of_the_arithmetic(few_instructions, monkeypatch):
    seen = []
    conv = torch.nn.functional.conv2d
    with open_accelerator("auto") as accelerator:
        assert accelerator.mixed_precision == "no"
        assert devices.apply_precision(accelerator, "bf16") == "bf16"
        net = accelerator.prepare(torch.nn.Conv2d(1, 1, 1))
        with accelerator.autocast():
            seen.append(conv(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).dtype)
        net.register_forward_hook(lambda m, i, y: seen.append(y.dtype))
        assert net(torch.ones(1, 1, 1, 1)).dtype == torch.float32  # as accelerate hands it back
    assert seen[0] == torch.bfloat16


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """A machine with a CUDA GPU, as far as PyTorch's answer goes."""
    found = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **kw: found)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **kw: True)


def test_the_device_is_the_gpu_unless_another_is_wanted(gpu):
    assert devices.device_type() == "cuda"
    assert devices.device_type("cuda") == "cuda"
    assert devices.device_type("cpu") == "cpu"
    with pytest.raises(UsageError, match=r"--device mps: PyTorch does not find one.*device cuda"):
        devices.device_type("mps")
    assert resolve_precision("auto", "cuda") == "bf16"
    assert resolve_precision("fp16", "auto") == "fp16"
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        resolve_precision("fp16", "cpu")


@pytest.mark.parametrize(("device", "on_processor"), [("cpu", True), ("auto", False)])
def test_a_machine_is_of_the_device_that_is_wanted(gpu, monkeypatch, device, on_processor):
    """Its processes wait for one that works alone, as for evaluations of a run; torch would end
    them after minutes."""
    import accelerate

    asked = {}

    def refuse(**options):
        asked.update(options)
        cudnn = torch.backends.cudnn
        asked["seen"] = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
        raise UsageError("no")

    monkeypatch.setattr(accelerate, "Accelerator", refuse)
    for name in ("allow_tf32", "deterministic", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, name, name == "benchmark")
    fused = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", fused.append)
    with pytest.raises(UsageError, match="no"), open_accelerator("fp32", device):
        pass
    assert asked["cpu"] is on_processor
    assert asked["seen"] == (not on_processor, on_processor, False)
    assert fused[:1] == ([] if on_processor else [False])
    # The settings of the program are as before.
    assert not torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.benchmark
    [waiting] = asked["kwargs_handlers"]
    assert isinstance(waiting, accelerate.InitProcessGroupKwargs)
    assert waiting.timeout == timedelta(days=1)


@pytest.fixture
def kernel_settings():
    """Restores PyTorch's settings of precision."""
    yield
    for holder in (torch.backends, torch.backends.cudnn):
        holder.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for holder in (torch.backends.cuda, torch.backends.mkldnn):
        holder.matmul.fp32_precision = "none"


def seen_precisions() -> list[object]:
    """Return PyTorch's settings of precision, by the newer attributes and the older functions."""
    of = torch.backends
    holders = (of, of.cudnn, of.mkldnn, of.cuda.matmul, of.cudnn.conv, of.cudnn.rnn)
    seen = [holder.fp32_precision for holder in (*holders, of.mkldnn.matmul, of.mkldnn.conv)]
    for read in (
        torch.get_float32_matmul_precision,
        lambda: of.cudnn.allow_tf32,
        lambda: of.cuda.matmul.allow_tf32,
    ):
        try:
            seen.append(read())
        except RuntimeError:
            seen.append("refused")
    return seen


def hidden_precisions() -> list[object]:
    """Return the older settings of precision also where PyTorch refuses them."""
    of, hidden = torch.backends, []
    for name in ("tf32", "ieee"):
        of.cudnn.conv.fp32_precision = of.cudnn.rnn.fp32_precision = name
        of.cuda.matmul.fp32_precision = of.mkldnn.matmul.fp32_precision = "ieee"
        hidden.append(seen_precisions()[-3:-1])
    return hidden


PROGRAMS = {
    "default": [],
    "all tf32": [("", "tf32")],
    "all ieee": [("", "ieee")],
    "all bf16": [("", "bf16")],
    "products tf32": [("cuda.matmul", "tf32")],
    "convolutions ieee": [("cudnn.conv", "ieee")],
    "recurrent ieee": [("cudnn.rnn", "ieee")],
    "cudnn ieee, convolutions tf32": [("cudnn", "ieee"), ("cudnn.conv", "tf32")],
    "processor bf16": [("mkldnn.matmul", "bf16")],
}
"""Settings of programs, by where PyTorch has the attribute `fp32_precision`."""


@pytest.mark.parametrize("older", [None, "highest", "high", "medium"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_settings_of_a_program_are_as_before_by_whichever_name(kernel_settings, older, program):
    """PyTorch refuses to read the older settings after some of the newer ones."""

    def prepare() -> None:
        if older is not None:
            torch.set_float32_matmul_precision(older)
            torch.backends.cudnn.allow_tf32 = older == "high"
        for where, value in PROGRAMS[program]:
            operator.attrgetter(f"backends.{where}".rstrip("."))(torch).fp32_precision = value

    prepare()
    before = seen_precisions()
    for precision, inside in (("bf16", ("high", True, True)), ("fp32", ("highest", False, False))):
        with hold_cuda_settings("cuda", precision):
            assert tuple(seen_precisions()[-3:]) == inside
            fast = [holder.fp32_precision == "tf32" for holder in (
                torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn,
            )]  # fmt: skip
            assert fast == [inside[1]] * 3
        assert seen_precisions() == before
    hidden = hidden_precisions()
    prepare()
    assert hidden == hidden_precisions()


def test_products_follow_the_program_after_a_call(kernel_settings):
    """Where it set no precision of their own."""
    with hold_cuda_settings("cuda", "fp32"):
        pass
    for value in ("tf32", "ieee"):
        torch.backends.fp32_precision = value
        assert torch.backends.cuda.matmul.fp32_precision == value


def test_the_device_is_no_part_of_the_model_and_may_change_on_resume(quick, lab):
    assert quick("--steps", 4, "--device", "cpu", "--stop-at", 2).code == 0
    quick("--steps", 4, "--resume", "--device", "auto").ok()
    resumed = Path("model.safetensors").read_bytes()
    assert resumed == lab.trained(*lab.quick, "--steps", 4).read_bytes()
    assert b"device" not in resumed


NAMES = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"

WATCH = f"""
import importlib.abc, json, os, sys
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print([os.environ.get(n) for n in {NAMES}], flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
"""
"""Says what the environment is when torch is first looked for."""

ASK = """
from diffuse_cli.app import run
for own in json.load(sys.stdin):
    if os.fork() == 0:
        os.environ |= own
        run()
    os.wait()
"""
"""Runs the command line of this process in each of the environments."""

WAYS = {
    "nothing": ({}, [str(processes.SPINS), None, None]),
    "threads": ({"OMP_NUM_THREADS": "2"}, [str(processes.SPINS), None, "2"]),
    "spins": ({"GOMP_SPINCOUNT": "7"}, ["7", None, None]),
    "policy": ({"OMP_WAIT_POLICY": "active"}, [None, "active", None]),
    "another library": ({"KMP_BLOCKTIME": "5"}, [None, None, None]),
}


def environments(code: str, said: str = "") -> list[str]:
    """What is printed by a process in whose environment is nothing of how threads wait."""
    env = {k: v for k, v in os.environ.items() if k not in processes.WAITING and k not in NAMES}
    env["PYTHONPATH"] = str(ROOT)
    line = [sys.executable, "-c", WATCH + code, "sample", "no-such-model"]
    return subprocess.run(
        line, env=env, input=said, capture_output=True, text=True
    ).stdout.splitlines()


def test_threads_wait_briefly_from_before_torch_unless_the_user_says_how():
    """As the command line alone decides it, by when torch is first looked for: afterwards it would
    be too late. A library leaves the environment alone."""
    lines = environments(ASK, json.dumps([own for own, _ in WAYS.values()]))
    found = dict(zip(WAYS, lines, strict=True))
    assert found == {name: str(expected) for name, (_, expected) in WAYS.items()}
    library = environments("import diffuse_cli.app, diffuse_cli.sampling.job")
    assert library == ["[None, None, None]"]


@pytest.fixture
def second_device(monkeypatch: pytest.MonkeyPatch):
    """A machine that has the device `meta` like a GPU, as far as Accelerate's answer goes."""
    monkeypatch.setattr(devices, "device_type", {"cpu": "cpu", "auto": "meta"}.get)
    monkeypatch.setattr(PartialState, "default_device", torch.device("meta"))
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_each_call_computes_on_the_device_that_it_asks_for(second_device):
    """Not on the one that the first call of the process asked for."""
    for device, found in (("cpu", "cpu"), ("auto", "meta"), ("cpu", "cpu")):
        with open_accelerator("fp32", device) as accelerator:
            assert accelerator.device.type == found


def test_runs_that_take_turns_keep_their_devices(second_device):
    PartialState._reset_state()
    runs = []
    for device in ("cpu", "auto"):
        process_state, stack = RunProcessState(), contextlib.ExitStack()
        with process_state.take_turn():
            accelerator = stack.enter_context(open_accelerator("fp32", device))
        assert PartialState._shared_state == {}  # as in the program
        runs.append((process_state, stack, accelerator))
    for (process_state, stack, accelerator), found in zip(runs, ("cpu", "meta"), strict=True):
        with process_state.take_turn(), stack:
            # Optimizers of Accelerate ask for the state again.
            assert accelerator.device.type == AcceleratorState().device.type == found


def test_runs_that_take_turns_keep_their_settings_of_kernels(kernel_settings, monkeypatch):
    """Between their turns, and after the last one, those of the program count."""
    of = torch.backends
    monkeypatch.setattr(of.cudnn, "benchmark", True)

    def seen() -> tuple[object, ...]:
        flags = of.cudnn.deterministic, of.cudnn.benchmark, of.cuda.cudnn_sdp_enabled()
        return torch.get_float32_matmul_precision(), of.cudnn.allow_tf32, *flags

    program = seen()
    runs = []
    for precision, products in (("fp32", ("highest", False)), ("bf16", ("high", True))):
        process_state, stack = RunProcessState(), contextlib.ExitStack()
        with process_state.take_turn():
            stack.enter_context(hold_cuda_settings("cuda", precision))
        assert seen() == program
        runs.append((process_state, stack, (*products, True, False, False)))
    for process_state, _, own in runs:
        with process_state.take_turn():
            assert seen() == own
        assert seen() == program
    torch.set_float32_matmul_precision("medium")
    of.cudnn.benchmark = False
    later = seen()
    for process_state, stack, own in runs:
        with process_state.take_turn(), stack:
            assert seen() == own
        assert seen() == later
