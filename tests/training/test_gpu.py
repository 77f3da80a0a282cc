"""Training and sampling where there is a GPU; elsewhere nothing here runs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from diffuse_cli.core import NETWORKS, Conditions, Space
from diffuse_cli.core.kernels import arrange_memory, arrange_weights, attend, memory_format
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.system.devices import device_type, has_bfloat16
from training.test_step_on_meta import trainer_of

pytestmark = pytest.mark.gpu


@pytest.fixture
def device():
    return torch.device(device_type())


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = NETWORKS["unet"].build(
        NETWORKS["unet"].Config(width=32, multipliers=(1, 2), blocks=1, attention=(8,)),
        Space(channels=3, size=(16, 16)),
        Conditions(),
    )
    for parameter in made.parameters():  # the last layers begin at zero
        torch.nn.init.normal_(parameter, std=0.05)
    return made


def test_a_network_computes_what_it_does_on_the_processor(net, device):
    x, t = torch.randn(4, 3, 16, 16), torch.tensor([0.0, 10, 500, 999])
    gradients = []
    for where in (torch.device("cpu"), device):
        here = arrange_weights(copy.deepcopy(net).to(where))
        out = here(arrange_memory(x.to(where)), t.to(where))
        out.square().mean().backward()
        gradients.append([out.detach().cpu(), *(p.grad.cpu() for p in here.parameters())])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-4)


def test_weights_are_in_the_order_of_the_device(net, device):
    here = arrange_weights(net.to(device))
    here(
        arrange_memory(torch.randn(2, 3, 16, 16, device=device)), torch.zeros(2, device=device)
    ).mean()
    wanted = memory_format(device.type)
    assert all(p.is_contiguous(memory_format=wanted) for p in here.parameters() if p.ndim == 4)


def test_attention_is_finite_there_and_back_in_half_precision(device):
    if not has_bfloat16(device.type):
        pytest.skip("the device has no bfloat16")
    for tokens in (16, 64, 256, 1024):
        q, k, v = torch.randn(3, 2, 4, tokens, 32, device=device, dtype=torch.bfloat16)
        q = (8 * q).requires_grad_()
        attend(q, k, v).float().square().sum().backward()
        assert q.grad.isfinite().all()


def test_a_step_does_not_wait_for_the_device(device):
    """Copying a number to or from it, as `bool` or `float` do, is an error here. The average reads
    after every fourth step."""
    if device.type != "cuda":
        pytest.skip("only CUDA reports that a program waits")
    with open_accelerator("bf16" if has_bfloat16("cuda") else "fp32") as accelerator:
        more = {"augment": ("zoom", "rotate", "shift", "color")}
        trainer = trainer_of(accelerator, optimizer="muon", classes=True, flip=True, **more)
        for step in (64, 65, 66, 67):  # the first ones fill caches
            trainer.step(step)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in (68, 69, 70):
                trainer.step(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compiled", ["--compile", "--no-compile"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_equals_one_in_one_go(train, precision, compiled):
    flags = ("--steps", 6, "--precision", precision, compiled, "-q")
    whole, parts = Path("whole.safetensors"), Path("parts.safetensors")
    for line in (
        (*flags, "-o", whole),
        (*flags, "-o", parts, "--stop-at", 3),
        (*flags, "-o", parts, "--resume"),
    ):
        train(*line).ok()
    assert whole.read_bytes() == parts.read_bytes()


def test_it_draws_the_same_pictures_twice(model, diffuse):
    found = []
    for out in ("one", "two"):
        diffuse("sample", model, "-n", 4, "--steps", 4, "-o", out, "-q").ok()
        found.append([p.read_bytes() for p in sorted(Path(out).glob("0*.png"))])
    assert found[0] == found[1]
