"""The baselines: libraries to use instead of this package, with the recipe of `diffuse`.

diffusers (`UNet2DModel`) and denoising-diffusion-pytorch (`Unet`, `GaussianDiffusion`), each
imported when asked for, in a training loop as their users write it. Target, schedule, weighting,
optimizer, learning rate and batch size are those that `diffuse` chooses.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import to_uint8
from torch import Tensor, nn

from diffuse_cli.commands.convert.diffusers_fields import find_unsupported_network, unet_fields
from diffuse_cli.config.sample_options import SAMPLING_STEPS
from diffuse_cli.core import Conditions, Space, losses
from diffuse_cli.core.muon import Muon
from diffuse_cli.core.optimizers import BETAS
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system.devices import device_type
from diffuse_cli.training.configuration import configure
from diffuse_cli.training.decisions import complete_config

EVALUATIONS = SAMPLING_STEPS
"""Evaluations of the network per sample: as many as ours takes by default."""

EMA_DECAY = 0.999
"""The largest decay of every average, ours too."""

# -- networks -------------------------------------------------------------------------------------


def blueprint(preset: str, channels: int, size: int, **unet: Any) -> Blueprint:
    """Return our network of a preset, with these settings instead of its own."""
    typed = {"data": "", "preset": preset, "precision": "fp32", "wiener": False}
    chosen = configure(typed, {"unet": unet})
    return complete_config(chosen, Space(channels=channels, size=(size, size)), Conditions())[1]


def without_patches(own: Blueprint) -> Blueprint:
    """Return our network as that of smaller images, whose channels are the values of patches."""
    config: Any = own.config
    size = tuple(side // config.patch for side in own.space.size)
    space = replace(own.space, channels=own.space.channels * config.patch**2, size=size)
    return replace(own, space=space, config=replace(config, patch=1))


def diffusers_unet(like: Blueprint) -> nn.Module:
    """Build the `UNet2DModel` that is our network: same layers, groups and parameters.

    The layers that are zero at first in ours are zero, too. Its output is an object with `.sample`.

    Raises:
        ValueError: `UNet2DModel` has no option for a part of our network, such as patches.
    """
    from diffusers import UNet2DModel

    lacks = find_unsupported_network(like.config, like.space.size)  # type: ignore[arg-type]
    if missing := [f"{name} = {value}" for name, value, _ in lacks]:
        raise ValueError(f"UNet2DModel has no option for {', '.join(missing)}")
    options = {k: v for k, v in unet_fields(like).items() if not k.startswith("_")}
    net: nn.Module = UNet2DModel(**options)
    for name, layer in net.named_modules():
        if name.endswith(("conv2", "to_out.0", "conv_out")):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return net


def ddpm_pytorch_unet(like: Blueprint, **options: Any) -> nn.Module:
    """Build the `Unet` of denoising-diffusion-pytorch that is as wide and deep as our network.

    Its blocks (two per level), norms (RMSNorm) and linear attention at each level are not options.
    """
    from denoising_diffusion_pytorch import Unet

    config: Any = like.config
    net: nn.Module = Unet(
        dim=config.width,
        dim_mults=tuple(config.multipliers),
        channels=like.space.channels,
        dropout=config.dropout,
        **options,
    )
    return net


# -- recipes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What `diffuse` chooses: besides v, the cosine schedule, the sigmoid weight and Muon.

    Attributes:
        lr: the largest learning rate, after a warm-up, before a cosine decay to 0.
        batch: images per step.
        width: channels of the network.
        patch: the side of the patches that become channels by `torch.pixel_unshuffle`.
        solver: an entry of `Diffusers.solvers`.
    """

    lr: float
    batch: int
    width: int = 32
    patch: int = 1
    solver: str = "UniPC"


def recipe_of_ours(channels: int, side: int, batch: int = 32, width: int = 32) -> Recipe:
    """Return what `diffuse` chooses for square images in steps of `batch` images."""
    typed = {"data": "", "preset": "tiny", "batch_size": batch, "width": width}
    space = Space(channels=channels, size=(side, side))
    config, own = complete_config(configure(typed), space, Conditions())
    assert config.lr is not None
    return Recipe(config.lr, batch, width, getattr(own.config, "patch", 1))


WARM_UP, RISE = 100, 0.1
"""Steps of warm-up, which takes at most this fraction of the time, as ours does."""


ENDS = {
    "conv_in", "conv_out", "time_embedding", "time_emb_proj",
    "init_conv", "final_conv", "time_mlp", "mlp",
}  # fmt: skip
"""Modules that read images and times, or write the output: AdamW moves them, as in ours."""


def muon(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return ours: Muon for the matrices between a network's ends, AdamW for the rest.

    `torch.optim.Muon` moves one matrix at a time, which takes longer.
    """
    matrices = [
        layer.weight
        for name, layer in net.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and ENDS.isdisjoint(name.split("."))
    ]
    known = set(map(id, matrices))
    others = [p for p in net.parameters() if id(p) not in known]
    return Muon(matrices, others, lr=lr, betas=BETAS, weight_decay=0.01)


# -- peers ----------------------------------------------------------------------------------------


class Diffusers:
    """`UNet2DModel` in a loop as `train_unconditional.py` has it.

    Attributes:
        differs: what differs from ours and is no option, by what differs.
        net: what is trained.
        average: what is sampled from.
    """

    package = "diffusers"
    solvers: Mapping[str, tuple[str, Mapping[str, Any]]] = {
        "UniPC": ("UniPCMultistepScheduler", {}),
        "2M": ("DPMSolverMultistepScheduler", {}),
        "2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    }

    def __init__(self, recipe: Recipe, own: Blueprint) -> None:
        from diffusers import DDPMScheduler
        from diffusers.training_utils import EMAModel, compute_snr

        self.recipe, self.size = recipe, without_patches(own).space
        self.differs = {"parameters": "no Wiener filter"} if recipe.patch > 1 else {}
        # Without dropout, training mode would only copy inputs of convolutions.
        self.net = diffusers_unet(without_patches(own)).eval()
        self.scheduler = DDPMScheduler(
            1000, prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"
        )
        self.weights = weigh(compute_snr(self.scheduler, torch.arange(1000))).to(device_type())
        self.make = functools.partial(
            EMAModel, decay=EMA_DECAY, use_ema_warmup=True, power=0.75, foreach=True
        )
        self.ema: Any = None

    def loss(self, x0: Tensor) -> Tensor:
        """Return the loss of images in [-1, 1]."""
        x0 = F.pixel_unshuffle(x0, self.recipe.patch)
        x0 = x0.contiguous(memory_format=torch.channels_last)
        noise = draw_like(x0)
        t = torch.randint(0, 1000, (len(x0),), device=x0.device)
        out = self.net(self.scheduler.add_noise(x0, noise, t), t).sample.float()
        v = self.scheduler.get_velocity(x0, noise, t)
        loss = F.mse_loss(out, v, reduction="none").mean((1, 2, 3))
        return (loss * self.weights[t]).mean()

    def follow(self) -> None:
        """Move the average."""
        self.ema = self.ema or self.make(self.net.parameters())
        self.ema.step(self.net.parameters())

    def finish(self) -> nn.Module:
        """Return the network with the average of its weights."""
        net = copy.deepcopy(self.net).eval()
        self.ema.copy_to(net.parameters())
        return net

    def draw(self, net: nn.Module, n: int) -> Tensor:
        """Return n images in [-1, 1]."""
        import diffusers

        name, options = self.solvers[self.recipe.solver]
        made = getattr(diffusers, name)
        chosen = {"timestep_spacing": "trailing", "clip_sample": True, **CLIPPED, **options}
        scheduler = made.from_config(self.scheduler.config, **chosen)
        scheduler.set_timesteps(EVALUATIONS)
        x = torch.randn(n, *self.size.shape, device=device_type())
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample.float(), t, x).prev_sample
        return F.pixel_shuffle(x, self.recipe.patch)


CLIPPED = {"thresholding": True, "sample_max_value": 1.0, "lambda_min_clipped": -5.1}
"""x_0 clipped to [-1, 1]: their thresholding, whose largest value is 1; and the first log-SNR that
diffusers' documentation advises for the cosine schedule."""


def weigh(snr: Tensor) -> Tensor:
    """Return the sigmoid weight of the squared error of v at each timestep.

    At an SNR of 0, where it is undefined, it is the mean of the others, as in ours.
    """
    own = losses.sigmoid(snr) / (snr + 1)
    return own.where(snr > 0, own[snr > 0].mean())


def draw_like(x0: Tensor) -> Tensor:
    """Return noise in the order of memory of images. Drawn in that order, it takes longer."""
    return torch.randn(x0.shape, device=x0.device).contiguous(memory_format=torch.channels_last)


class DDPMPytorch:
    """`GaussianDiffusion` in a loop as its Trainer has it, at a size without patches.

    Attributes as those of `Diffusers`.
    """

    package = "denoising_diffusion_pytorch"

    def __init__(self, recipe: Recipe, own: Blueprint) -> None:
        from denoising_diffusion_pytorch import GaussianDiffusion
        from ema_pytorch import EMA

        self.recipe = replace(recipe, solver="DDIM")
        self.differs = {
            "groups": "RMSNorm over all channels, which is no option",
            "parameters": "two blocks and linear attention at each level, which are no options",
        }
        self.net: Any = GaussianDiffusion(
            ddpm_pytorch_unet(own, attn_heads=1, attn_dim_head=32),
            image_size=own.space.size[0],
            objective="pred_v",
            sampling_timesteps=EVALUATIONS,
            beta_schedule="cosine",
        )
        bars = self.net.alphas_cumprod
        self.net.loss_weight = weigh(bars / (1 - bars))
        self.make = functools.partial(
            EMA, beta=EMA_DECAY, power=0.75, update_every=1, update_after_step=0,
            include_online_model=False, use_foreach=True,
        )  # fmt: skip
        self.ema: Any = None

    def loss(self, x0: Tensor) -> Tensor:
        """Return the loss of images in [-1, 1]; the process is given them in [0, 1]."""
        loss: Tensor = self.net((x0 + 1) / 2, noise=draw_like(x0))
        return loss

    def follow(self) -> None:
        """Move the average."""
        self.ema = self.ema or self.make(self.net)
        self.ema.update()

    def finish(self) -> nn.Module:
        """Return the process with the average of its weights."""
        found: nn.Module = self.ema.ema_model.eval()
        return found

    def draw(self, net: Any, n: int) -> Tensor:
        """Return n images in [-1, 1]."""
        drawn: Tensor = net.sample(batch_size=n)
        return drawn * 2 - 1


PEERS: Mapping[str, type[Diffusers] | type[DDPMPytorch]] = {
    "diffusers": Diffusers,
    "ddpm-pytorch": DDPMPytorch,
}

# -- training and sampling ------------------------------------------------------------------------


def train(
    name: str, recipe: Recipe, pixels: np.ndarray[Any, Any], seconds: float, seed: int = 0
) -> tuple[Diffusers | DDPMPytorch, nn.Module, dict[str, Any]]:
    """Train an entry of `PEERS` on uint8 (N, C, H, W) for so many seconds of this process.

    Returns:
        The baseline, the network to sample from, and the facts of training. The clock
        starts when all is built.
    """
    device = device_type()
    torch.manual_seed(seed)
    own = blueprint("tiny", *pixels.shape[1:3], width=recipe.width)
    peer, optimizer = built(name, recipe, own)
    images = torch.from_numpy(pixels).to(device)
    began, wall, step = time.process_time(), time.monotonic(), 0
    while (spent := time.process_time() - began) < seconds:
        place = step % (len(images) // recipe.batch)
        if place == 0:
            order = torch.randperm(len(images), device=device).split(recipe.batch)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * pace(step, spent / seconds)
        take(peer, optimizer, images[order[place]])
        peer.follow()
        step += 1
    spent = time.process_time() - began
    return peer, peer.finish(), {
        "parameters": sum(p.numel() for p in peer.net.parameters()),
        "steps": step,
        "images_per_second": round(step * recipe.batch / spent, 1),
        "training_cpu_seconds": round(spent, 1),
        "training_seconds": round(time.monotonic() - wall, 1),
    }  # fmt: skip


def built(name: str, recipe: Recipe, own: Blueprint) -> tuple[Diffusers | DDPMPytorch, Any]:
    """Return a baseline and its optimizer, channels-last as ours (2 % faster for both)."""
    peer = PEERS[name](recipe, own)
    peer.net = peer.net.to(device_type()).to(memory_format=torch.channels_last)
    return peer, muon(peer.net, recipe.lr)


def take(peer: Diffusers | DDPMPytorch, optimizer: Any, images: Tensor) -> float:
    """Take a step on uint8 images, and return its loss."""
    x0 = (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
    with autocast():
        loss = peer.loss(x0)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(peer.net.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def pace(step: int, share: float) -> float:
    """Return the learning rate of a step over the largest; `share` of the time is over."""
    rise = max((step + 1) / WARM_UP, share / RISE)
    return min(1, rise) * (1 + math.cos(math.pi * min(1, share))) / 2


BATCH = 50
"""Images that are drawn at a time."""


@torch.no_grad()
def sample(
    peer: Diffusers | DDPMPytorch, net: nn.Module, n: int, seed: int = 0
) -> np.ndarray[Any, Any]:
    """Return n images, uint8 (n, C, H, W)."""
    torch.manual_seed(1000 + seed)
    with autocast():
        parts = [to_uint8(peer.draw(net, BATCH).float()) for _ in range(0, n, BATCH)]
    return np.concatenate(parts)[:n]


@functools.cache
def precision() -> str:
    """Return the precision that ours chooses on this machine."""
    space = Space(channels=1, size=(32, 32))
    with torch.enable_grad():
        return str(complete_config(configure({"data": ""}), space, Conditions())[0].precision)


def autocast() -> torch.autocast:
    """Return a context of that precision."""
    return torch.autocast(device_type(), torch.bfloat16, precision() == "bf16")


# -- what is equal --------------------------------------------------------------------------------


def facts(net: nn.Module, evaluations: int, arithmetic: str) -> dict[str, Any]:
    """Return what must be equal among contenders, of a network and how it is sampled."""
    norms = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    return {
        "groups": sorted({m.num_groups for m in norms}) or None,
        "parameters": sum(p.numel() for p in net.parameters()),
        "evaluations": evaluations,
        "arithmetic": arithmetic,
    }


@contextmanager
def counting(net: nn.Module) -> Iterator[list[str]]:
    """Collect the precision of the first convolution of each evaluation of a network."""
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    seen: list[str] = []
    names = {torch.bfloat16: "bf16", torch.float32: "fp32"}
    handle = first.register_forward_hook(lambda _module, _args, out: seen.append(names[out.dtype]))
    try:
        yield seen
    finally:
        handle.remove()
