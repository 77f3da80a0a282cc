"""The peers: what people would use instead of this package, and how each is trained and sampled.

diffusers (`UNet2DModel`) and denoising-diffusion-pytorch (`Unet`, `GaussianDiffusion`), each
imported when asked for. `RECIPES` has each at the settings of its own training script, and tuned.
"""

from __future__ import annotations

import copy
import functools
import math
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import to_uint8
from torch import Tensor, nn

from diffuse_cli.runtime import device_type

EVALUATIONS = 25
"""Evaluations of the network a sample: each peer's fast sampler, not its 1000 ancestral steps."""

# -- networks -------------------------------------------------------------------------------------


def diffusers_unet(
    width: int,
    multipliers: Sequence[int],
    blocks: int,
    attention_levels: Collection[int],
    channels: int,
    size: int,
    **options: Any,
) -> nn.Module:
    """`UNet2DModel` with self-attention at the levels of these indices, 0 the highest resolution.

    `options` are further arguments of `UNet2DModel`. Its output is an object with `.sample`.
    """
    from diffusers import UNet2DModel

    attends = [level in attention_levels for level in range(len(multipliers))]
    net: nn.Module = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=blocks,
        block_out_channels=tuple(width * m for m in multipliers),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        **options,
    )
    return net


def ddpm_pytorch_unet(
    dim: int, dim_mults: Sequence[int], channels: int, **options: Any
) -> nn.Module:
    """`Unet` of denoising-diffusion-pytorch; `options` are further arguments of it."""
    from denoising_diffusion_pytorch import Unet

    net: nn.Module = Unet(dim=dim, dim_mults=tuple(dim_mults), channels=channels, **options)
    return net


def levels(size: int) -> int:
    """How many levels the preset `tiny` has for images of this side: it halves down to 8."""
    return max(3, 1 + math.ceil(math.log2(size / 8)))


# -- what each peer is ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A library.

    Attributes:
        package: what is imported.
        build: the channels and the side of the images -> what is trained.
        loss: that and images in [-1, 1] -> its loss.
        draw: that and a number of images -> so many images in [-1, 1].
        sampler: what `draw` uses, in words.
    """

    package: str
    build: Callable[[int, int], nn.Module]
    loss: Callable[[nn.Module, Tensor], Tensor]
    draw: Callable[[nn.Module, int], Tensor]
    sampler: str


def build_diffusers(channels: int, size: int) -> nn.Module:
    """A network in the shape of the preset `tiny`."""
    return diffusers_unet(32, [1] * levels(size), 1, (), channels, size)


def diffusers_loss(net: Any, x0: Tensor) -> Tensor:
    """As `train_unconditional.py`: eps under the linear schedule, every timestep as likely."""
    from diffusers import DDPMScheduler

    scheduler = _once(DDPMScheduler, num_train_timesteps=1000)
    noise = torch.randn_like(x0)
    t = torch.randint(0, 1000, (len(x0),), device=x0.device)
    return F.mse_loss(net(scheduler.add_noise(x0, noise, t), t).sample.float(), noise)


CLIPPED = {"timestep_spacing": "trailing", "thresholding": True, "sample_max_value": 1.0}
"""Trailing times, and x_0 clipped to [-1, 1]: their thresholding, whose largest value is 1."""

SOLVERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "DPM-Solver++ 2M, as it comes": ("DPMSolverMultistepScheduler", {}),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", CLIPPED),
    "DPM-Solver++ 2M SDE": (
        "DPMSolverMultistepScheduler", CLIPPED | {"algorithm_type": "sde-dpmsolver++"},
    ),
    "UniPC": ("UniPCMultistepScheduler", CLIPPED),
    "DDIM": ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    "DDPM": ("DDPMScheduler", {"timestep_spacing": "trailing"}),
}  # fmt: skip
"""Solvers of diffusers: a class, and what differs from the scheduler of the training."""

SOLVER = "DPM-Solver++ 2M"


def diffusers_draw(net: Any, n: int, solver: str = SOLVER) -> Tensor:
    """Images from one of `SOLVERS`."""
    import diffusers

    name, options = SOLVERS[solver]
    trained = diffusers.DDPMScheduler(num_train_timesteps=1000)
    scheduler = getattr(diffusers, name).from_config(trained.config, **options)
    scheduler.set_timesteps(EVALUATIONS)
    side, channels = net.config.sample_size, net.config.in_channels
    x = torch.randn(n, channels, side, side).to(next(net.parameters()).device)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t).sample.float(), t, x).prev_sample
    return x


def build_ddpm_pytorch(channels: int, size: int) -> nn.Module:
    """Its objective (v) and schedule (sigmoid) are its defaults."""
    from denoising_diffusion_pytorch import GaussianDiffusion

    net = ddpm_pytorch_unet(32, [1] * levels(size), channels)
    process: nn.Module = GaussianDiffusion(net, image_size=size, sampling_timesteps=EVALUATIONS)
    return process


def ddpm_pytorch_loss(process: nn.Module, x0: Tensor) -> Tensor:
    """As its Trainer: the process is given images in [0, 1] and does the rest."""
    loss: Tensor = process((x0 + 1) / 2)
    return loss


def ddpm_pytorch_draw(process: Any, n: int) -> Tensor:
    """Its own DDIM sampler."""
    drawn: Tensor = process.sample(batch_size=n)
    return drawn * 2 - 1


PEERS = {
    "diffusers": Peer("diffusers", build_diffusers, diffusers_loss, diffusers_draw, SOLVER),
    "ddpm-pytorch": Peer(
        "denoising_diffusion_pytorch",
        build_ddpm_pytorch,
        ddpm_pytorch_loss,
        ddpm_pytorch_draw,
        "DDIM, eta 0",
    ),
}

# -- how each is trained --------------------------------------------------------------------------


class Average:
    """An average of the weights, every step, with a decay that grows to `largest`."""

    def __init__(self, net: nn.Module, largest: float) -> None:
        self.ema_model = copy.deepcopy(net).requires_grad_(False)
        self.pairs = list(self.ema_model.parameters()), list(net.parameters())
        self.largest, self.updates = largest, 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights."""
        decay = min(self.largest, 1 - (self.updates + 1) ** -0.75)
        torch._foreach_lerp_(*self.pairs, 1 - decay)
        self.updates += 1


def package_average(process: nn.Module) -> Any:
    """The EMA of denoising-diffusion-pytorch's Trainer."""
    from ema_pytorch import EMA

    return EMA(process, beta=0.995, update_every=10)


@dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    Attributes:
        peer: an entry of `PEERS`.
        batch: images a step.
        lr: the largest learning rate.
        optimizer: parameters and learning rate -> optimizer.
        warmup: steps until the learning rate is there; where tuned, a tenth of the time at most.
        decay: epochs over which it falls to 0 on a cosine; 0 is the time there is; None is never.
        average: what is trained -> the average that is sampled from; None samples what is trained.
        tuned: the faster order of memory, and autocast to the precision that is chosen; else as its
            script has it, float32.
        flip: mirror every other image.
        words: the rest, for the reader.
    """

    peer: str
    batch: int
    lr: float
    optimizer: Callable[..., torch.optim.Optimizer]
    warmup: int
    decay: int | None
    average: Callable[[nn.Module], Any] | None
    tuned: bool
    flip: bool
    words: str


DEFAULT_ADAMW = functools.partial(torch.optim.AdamW, betas=(0.95, 0.999), weight_decay=1e-6)
TUNED_ADAMW = functools.partial(torch.optim.AdamW, betas=(0.9, 0.999), weight_decay=0, fused=True)
DEFAULT_ADAM = functools.partial(torch.optim.Adam, betas=(0.9, 0.99))
TUNED_AVERAGE = functools.partial(Average, largest=0.999)

# The batch sizes and rates of what is tuned follow the trials in
# results/time-to-quality-fashion.json.
RECIPES: Mapping[str, Recipe] = {
    "diffusers": Recipe(
        "diffusers", 16, 1e-4, DEFAULT_ADAMW, 500, 100, None, False, False,
        "train_unconditional.py: eps, linear schedule, AdamW (0.95, 0.999), weight decay 1e-6, "
        "cosine decay over 100 epochs, so constant here, no EMA, float32",
    ),
    "diffusers-tuned": Recipe(
        "diffusers", 64, 2e-3, TUNED_ADAMW, 100, 0, TUNED_AVERAGE, True, False,
        "eps, linear schedule, fused AdamW (0.9, 0.999), cosine decay over the budget, EMA 0.999 "
        "with warm-up, the faster of NCHW and channels-last",
    ),
    "ddpm-pytorch": Recipe(
        "ddpm-pytorch", 16, 1e-4, DEFAULT_ADAM, 0, None, package_average, False, True,
        "Trainer: v, sigmoid schedule, Adam (0.9, 0.99), constant, EMA 0.995 every 10, mirrored "
        "images, float32; its pieces in a loop with a clock",
    ),
    "ddpm-pytorch-tuned": Recipe(
        "ddpm-pytorch", 16, 2e-3, TUNED_ADAMW, 100, 0, TUNED_AVERAGE, True, False,
        "v, sigmoid schedule, fused AdamW (0.9, 0.999), cosine decay over the budget, EMA 0.999 "
        "with warm-up, the faster of NCHW and channels-last",
    ),
}  # fmt: skip


def train(
    recipe: Recipe, pixels: np.ndarray[Any, Any], seconds: float, precision: str
) -> tuple[nn.Module, dict[str, Any]]:
    """Train on uint8 (N, C, H, W) in memory until the time is over.

    Returns:
        What is sampled from, and what was done. The clock starts when all is built.
    """
    device = torch.device(device_type())
    layout = faster_order(recipe, pixels, precision)
    net, optimizer = built(recipe, pixels, layout)
    average = recipe.average(net) if recipe.average else None
    images = torch.from_numpy(pixels).to(device)
    parameters = sum(p.numel() for p in net.parameters())
    began, used, step, loss = time.monotonic(), time.process_time(), 0, torch.zeros(())
    while (spent := time.monotonic() - began) < seconds:
        place = step % (len(images) // recipe.batch)
        if place == 0:
            order = torch.randperm(len(images), device=device).split(recipe.batch)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * pace(recipe, step, len(images), spent / seconds)
        loss = take(recipe, net, optimizer, images[order[place]], layout, precision)
        if average:
            average.update()
        step += 1
        if step % 50 == 0:
            print(f"{spent:.0f} s, step {step}, loss {loss.item():.4f}", file=sys.stderr)
    loss.item()  # waits for the device
    spent = time.monotonic() - began
    return average.ema_model if average else net, {
        "parameters": parameters,
        "channels_last": layout == torch.channels_last,
        "batch_size": recipe.batch,
        "steps": step,
        "images_seen": step * recipe.batch,
        "images_per_second": round(step * recipe.batch / spent, 1),
        "training_seconds": round(spent, 1),
        "training_cpu_seconds": round(time.process_time() - used, 1),
    }


def built(
    recipe: Recipe, pixels: np.ndarray[Any, Any], layout: torch.memory_format
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """What is trained on such images, and its optimizer."""
    net = PEERS[recipe.peer].build(pixels.shape[1], pixels.shape[2]).to(device_type())
    net = net.to(memory_format=layout)  # type: ignore[call-overload]
    return net, recipe.optimizer(net.parameters(), lr=recipe.lr)


def take(
    recipe: Recipe,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    layout: torch.memory_format,
    precision: str,
) -> Tensor:
    """A step on uint8 images; its loss."""
    x0 = images.float() / 127.5 - 1
    if recipe.flip:
        x0 = torch.where(torch.rand(len(x0), 1, 1, 1, device=x0.device) < 0.5, x0, x0.flip(-1))
    with autocast(recipe, precision):
        loss = PEERS[recipe.peer].loss(net, x0.contiguous(memory_format=layout))
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def faster_order(
    recipe: Recipe, pixels: np.ndarray[Any, Any], precision: str
) -> torch.memory_format:
    """The order of memory in which a tuned peer is faster; that of its script where it is not."""
    orders = (torch.contiguous_format, torch.channels_last)
    if not recipe.tuned:
        return orders[0]
    seconds = {}
    for layout in orders:
        net, optimizer = built(recipe, pixels, layout)
        images = torch.from_numpy(pixels[: recipe.batch]).to(device_type())
        times = []
        for _ in range(5):
            began = time.monotonic()
            take(recipe, net, optimizer, images, layout, precision).item()
            times.append(time.monotonic() - began)
        seconds[layout] = min(times)
    return min(orders, key=seconds.__getitem__)


def pace(recipe: Recipe, step: int, images: int, share: float) -> float:
    """The learning rate of a step over the largest; `share` of the time is over."""
    rise = (step + 1) / max(1, recipe.warmup)
    if recipe.tuned:
        rise = max(rise, share / 0.1)
    if recipe.decay:
        share = min(1, step * recipe.batch / (recipe.decay * images))
    fall = 1 if recipe.decay is None else (1 + math.cos(math.pi * share)) / 2
    return min(1, rise) * fall


@torch.no_grad()
def sample(
    recipe: Recipe, net: nn.Module, n: int, precision: str, batch: int = 50
) -> np.ndarray[Any, Any]:
    """n images, uint8 (n, C, H, W)."""
    draw, parts = PEERS[recipe.peer].draw, []
    net.eval()
    for first in range(0, n, batch):
        with autocast(recipe, precision):
            parts.append(to_uint8(draw(net, min(batch, n - first))))
        print(f"{first + len(parts[-1])} of {n} images", file=sys.stderr)
    return np.concatenate(parts)


def autocast(recipe: Recipe, precision: str) -> torch.autocast:
    """The faster precision where a peer is tuned."""
    return torch.autocast(device_type(), torch.bfloat16, recipe.tuned and precision == "bf16")


@functools.cache
def _once(make: Callable[..., Any], **options: Any) -> Any:
    return make(**options)
