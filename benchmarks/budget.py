"""Where does the time of our training step go, and how near is each part to the roof?

A profile of a few steps of the DDPM CIFAR-10 network, part by part: a profiler's event belongs to
the part of the outermost event around it that has one. The least work of each part is counted on
diffusers' network of the same architecture: GFLOP of convolutions and matrix products, and for the
rest the bytes that its passes over memory must move. The roof is what `roofline.py` reaches with
that work in the same process; a share above 1 means that work was saved, or
stayed in the caches. Run by `train_step.py --budget`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import roofline
import steps as stepping
import torch
from accelerate import Accelerator
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from diffuse_cli.training import trainer as training
from diffuse_cli.training.ema_weights import EVERY

STEPS = EVERY
"""Steps that are profiled: one moves the average."""

FORWARD, BACKWARD = "convolution, forward", "convolution, backward"
NORM, ATTENTION, LINEAR = "normalization and activation", "attention", "linear layers"
DROPOUT, COPIES, ADDITIONS = "dropout", "copies and casts", "additions"
OPTIMIZER, CLIP, AVERAGE, DRAWS, REST = "optimizer", "clip", "average", "draws", "rest"

PARTS: tuple[tuple[str, str], ...] = (
    (rf"^({CLIP}|{AVERAGE}|{DRAWS})$", ""),
    (r"^Optimizer\.|^aten::_fused_adam", OPTIMIZER),
    (r"(?i)conv.*backward", BACKWARD),
    (r"(?i)conv", FORWARD),
    (r"(?i)norm|silu|gelu", NORM),
    (r"(?i)scaled_dot_product|scaleddotproduct|softmax|(::|^)bmm(backward|$)", ATTENTION),
    (r"(?i)drop|bernoulli", DROPOUT),
    (r"(?i)linear|addmm|(::|^)mm(backward|$)", LINEAR),
    (r"^aten::(to|_to_copy|copy_|clone|contiguous|cat|pad|flip|constant_pad_nd|upsample\w+|slice\w*)$"
     r"|^(ToCopy|Clone|Cat|Slice|ConstantPad|Upsample)\w*$|AccumulateGrad", COPIES),
    (r"^aten::add_?$|^AddBackward", ADDITIONS),
)  # fmt: skip
"""Patterns of event names, the first that fits counting; an empty part is the name itself."""


def part_of(event: Any) -> str:
    """The part of a step that an event belongs to."""
    around = [event]
    while around[-1].cpu_parent is not None:
        around.append(around[-1].cpu_parent)
    for each in reversed(around):
        # The engine's own event is around what it adds up too: the node within it says more.
        if each.name.startswith("autograd::engine::evaluate_function") and each is not event:
            continue
        for pattern, part in PARTS:
            if re.search(pattern, each.name):
                return part or str(each.name)
    return REST


def mark(owner: Any, name: str, part: str) -> Any:
    """Let the profiler see a function of `owner` as `part`; returns what was there."""
    inner = getattr(owner, name)

    def marked(*args: Any, **options: Any) -> Any:
        with record_function(part):
            return inner(*args, **options)

    setattr(owner, name, marked)
    return inner


def profiled(step: stepping.Act, trainer: Any, cuda: bool) -> tuple[dict[str, float], float]:
    """Seconds of each part of a step, and of the step under the profiler."""
    mark(trainer.updater, "norm", CLIP)
    mark(trainer.ema, "follow", AVERAGE)
    draws = mark(training, "training_draws", DRAWS)
    kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]
    with profile(activities=kinds) as found:
        taken = sum(stepping.timed(step) for _ in range(STEPS)) / STEPS
    training.training_draws = draws
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    seconds: defaultdict[str, float] = defaultdict(float)
    for event in found.events():
        seconds[part_of(event)] += getattr(event, own) / 1e6 / STEPS
    seconds[REST] = max(0.0, taken - (sum(seconds.values()) - seconds[REST]))
    return dict(seconds), taken


# -- the least work -------------------------------------------------------------------------------


def work(net: nn.Module, batch: int, size: int) -> Counter[str | int]:
    """What a forward pass computes, counted on the meta device: FLOP of convolutions by the side of
    their output, of linear layers and of attention; elements of norms, dropout, residual sums and
    concatenations."""
    counts: Counter[str | int] = Counter()

    def count(module: nn.Module, inputs: Any, out: Any, name: str) -> None:
        if isinstance(module, nn.Conv2d):
            each = 2 * module.weight[0].numel()
            counts[out.shape[-1]] += each * out.numel()
        elif isinstance(module, nn.Linear):
            counts["linear"] += 2 * module.in_features * out.numel()
        elif isinstance(module, nn.GroupNorm):
            counts["norm"] += out.numel()
            if "up_blocks" in name and name.endswith("norm1"):
                counts["cat"] += out.numel()
        elif isinstance(module, nn.Dropout) and module.p and out.dim() == 4:
            counts["dropout"] += out.numel()
        elif type(module).__name__ in ("ResnetBlock2D", "Attention"):
            counts["added"] += out.numel()
            if type(module).__name__ == "Attention":
                counts["attention"] += 4 * out.numel() * out.shape[-1] * out.shape[-2]

    for name, module in net.named_modules():
        module.register_forward_hook(partial(count, name=name))
    net.to("meta")(torch.zeros(batch, 3, size, size, device="meta"), torch.zeros(1, device="meta"))
    return counts


def least(
    counts: Counter[str | int], parameters: int, roof: dict[str, Any], half: bool
) -> Iterator[tuple[str, float]]:
    """Each part with its seconds at the roof."""
    small, large = (row["copy"] * 1e9 for row in roof["memory_gb_per_s"])
    convolutions = roof["convolution_gflop_per_s"]
    matmul = roof["matmul"][0]["gflop_per_s"] * 1e9
    size = 2 if half else 4

    def at(side: int, way: str) -> float:
        near = min(abs(row["side"] - side) for row in convolutions)
        rates = [row[way] for row in convolutions if abs(row["side"] - side) == near]
        return float(max(rates)) * 1e9

    sides = {side: n for side, n in counts.items() if isinstance(side, int)}
    yield FORWARD, sum(n / at(side, "forward") for side, n in sides.items())
    yield BACKWARD, sum(2 * n / at(side, "backward") for side, n in sides.items())
    # Forward: statistics, then read and write. Backward: x and dy, again, and write.
    yield NORM, counts["norm"] * size * 8 / small
    yield ATTENTION, 3 * counts["attention"] / matmul
    yield LINEAR, 3 * counts["linear"] / matmul
    # Read and write both ways, and a mask of a byte an element written and read.
    yield DROPOUT, counts["dropout"] * (4 * size + 2) / small
    # Two read and one written, and as much where the gradients of both ways meet.
    yield ADDITIONS, counts["added"] * size * 6 / small
    # Concatenations, read and written both ways; and weights and gradients in half precision.
    yield COPIES, counts["cat"] * size * 4 / small + half * parameters * 12 / large
    # Weight, gradient and two moments are read; all but the gradient are written.
    yield OPTIMIZER, parameters * 4 * 7 / large
    yield CLIP, parameters * 4 * 3 / large
    yield AVERAGE, parameters * 4 * 3 / large / EVERY


def measure(batch: int, precision: str, accelerator: Accelerator) -> dict[str, Any]:
    """The budget of a step: each part's milliseconds, share of the step, and share of the roof."""
    import train_step

    device = accelerator.device
    roof = roofline.measure(batch, (precision.replace("fp16", "bf16"),), device.type)
    chosen = stepping.plan(
        train_step.SIZE, preset="ddpm-cifar10", batch_size=batch, precision=precision
    )
    step, trainer = stepping.ours(chosen, accelerator)
    times = stepping.interleave({"diffuse": step}, 2 * STEPS)["diffuse"]
    plain = stepping.typical(times, EVERY)
    seconds, taken = profiled(step, trainer, device.type == "cuda")
    counts = work(train_step.network(train_step.DIFFUSERS), batch, train_step.SIZE)
    parameters = sum(p.numel() for p in trainer.net.parameters())
    roofs = dict(least(counts, parameters, roof, precision != "fp32"))
    return {
        "seconds": stepping.significant(plain),
        "profiled_seconds": stepping.significant(taken),
        "seconds_at_the_roof": stepping.significant(sum(roofs.values())),
        "parts": list(rows(seconds, roofs, taken)),
        "roofline": roof,
    }


def rows(
    seconds: dict[str, float], roofs: dict[str, float], taken: float
) -> Iterator[dict[str, Any]]:
    """The parts, the longest first and the rest last."""
    for part, spent in sorted(seconds.items(), key=lambda item: (item[0] == REST, -item[1])):
        row: dict[str, Any] = {"part": part, "ms": round(spent * 1e3, 2)}
        row["share_of_step"] = round(spent / taken, 4)
        if part in roofs and spent > 0:
            row["ms_at_the_roof"] = round(roofs[part] * 1e3, 2)
            row["share_of_roof"] = round(roofs[part] / spent, 3)
        yield row
