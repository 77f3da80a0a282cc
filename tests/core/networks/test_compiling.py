"""`--compile`: torch traces every network whole, and what it traces computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import batch, plan, randomized

BACKENDS = {"resnet": "aot_eager"}
"""Of the others only the first half of compiling is tested, which takes half the time."""

UNET = {"width": 16, "groups": 4, "multipliers": (1, 2), "blocks": 1, "attention": (8,), "size": 16}

NETS: dict[str, dict[str, Any]] = {
    "resnet": UNET,
    "as in DDPM": {**UNET, "scale_shift": False, "downsample_padding": 0},
    "convnext": {**UNET, "block": "convnext", "num_classes": 3},
    "signals": {**UNET, "size": (16,)},
    "patches": {**UNET, "patch": 2},
    "transformer": {"network": "vit", "width": 24, "depth": 2, "head_width": 12, "patch": 4},
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.usefixtures("fresh_traces")
def test_compiling_changes_no_output_and_no_gradient(name: str):
    made = plan(**NETS[name])
    net, (x, t) = randomized(made).train(), batch(made)
    label = torch.tensor([0, 2]) if made.num_classes else None
    found = []
    for each in (net, torch.compile(net, backend=BACKENDS.get(name, "eager"), fullgraph=True)):
        net.zero_grad()
        out = each(x, t) if label is None else each(x, t, label)
        out.square().mean().backward()
        found.append([out.detach(), *(p.grad for p in net.parameters())])
    for plainly, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plainly, rtol=1e-4, atol=1e-5)


@pytest.fixture
def fresh_traces() -> Any:
    """Nothing traced by one test is kept for the next."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
