"""`--compile`: torch traces every network whole, and what it traces computes the same."""

import pytest
import torch
from conftest import mostly_slow
from networks import batch, plan, randomized

UNET = {"width": 16, "groups": 4, "multipliers": (1, 2), "blocks": 1, "attention": (8,), "size": 16}

NETS = [
    {"network": "vit", "width": 24, "depth": 2, "head_width": 12, "patch": 4},
    {**UNET, "block": "convnext", "num_classes": 3},
    {**UNET, "scale_shift": False, "downsample_padding": 0},
    {**UNET, "size": (16,)},
    {**UNET, "patch": 2},
]
CASES = [(UNET, "eager"), *((net, "eager") for net in NETS), (UNET, "aot_eager")]
"""Networks, and the backend: `eager` is the first half of compiling."""


@pytest.mark.parametrize(("settings", "backend"), mostly_slow(CASES), ids=range(len(CASES)))
@pytest.mark.usefixtures("fresh_traces")
def test_compiling_changes_no_output_and_no_gradient(settings, backend):
    made = plan(**settings)
    net, (x, t) = randomized(made).train(), batch(made)
    label = torch.tensor([0, 2]) if made.num_classes else None
    found = []
    for each in (net, torch.compile(net, backend=backend, fullgraph=True)):
        net.zero_grad()
        out = each(x, t) if label is None else each(x, t, label)
        out.square().mean().backward()
        found.append([out.detach(), *(p.grad for p in net.parameters())])
    for plainly, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plainly, rtol=1e-4, atol=1e-5)


@pytest.fixture
def fresh_traces():
    """Nothing traced by one test is kept for the next."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
