"""The baselines: libraries to use instead of this package, and how each is trained and sampled.

diffusers (`UNet2DModel`) and denoising-diffusion-pytorch (`Unet`, `GaussianDiffusion`), each
imported when asked for. A `Recipe` has the options of their libraries that `time_to_quality.py`
searches through.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import to_uint8
from torch import Tensor, nn

from diffuse_cli.commands.convert.diffusers_unet import find_unsupported_network, unet_fields
from diffuse_cli.config.sample_options import SAMPLING_STEPS
from diffuse_cli.core import Conditions, Space, losses
from diffuse_cli.core.muon import Muon
from diffuse_cli.core.optimizers import BETAS
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system.devices import device_type
from diffuse_cli.training.configuration import complete_config, configure

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


def baseline_blueprint(recipe: Recipe, channels: int, size: int) -> Blueprint:
    """Return `tiny` without patches, with the channels of a recipe.

    The last channels of the recipe are repeated for the levels that remain. If the recipe has
    patches, the network is that of images with more channels.
    """
    channels, size = channels * recipe.patch**2, size // recipe.patch
    plain = blueprint("tiny", channels, size, patch=1)
    if recipe.channels is None:
        return plain
    config: Any = plain.config
    levels = len(config.multipliers)
    widths = (recipe.channels + recipe.channels[-1:] * levels)[:levels]
    multipliers = tuple(width // widths[0] for width in widths)
    own = {"width": widths[0], "multipliers": multipliers, "groups": config.groups}
    return blueprint("tiny", channels, size, patch=1, **own)


def describe_differences(like: Blueprint, patch: int, *fixed: str) -> dict[str, str]:
    """Return why a baseline has other parameters than ours, empty if it has the same.

    Args:
        patch: the side of its patches.
        fixed: differences of its library.
    """
    space, words = like.space, list(fixed)
    ours: Any = blueprint("tiny", space.channels // patch**2, space.size[0] * patch).config
    if ours.patch != 1:
        words.append("no Wiener filter" if patch == ours.patch else "no patches")
    if like.config != blueprint("tiny", space.channels, space.size[0], patch=1).config:
        words.append("channels from the search")
    return {"parameters": ", ".join(words)} if words else {}


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
    """Settings of a baseline, each an option of its library or of torch.

    Attributes:
        peer: an entry of `PEERS`.
        target: what the network predicts: v, eps or x0.
        schedule: an entry of the peer's schedules.
        min_snr: gamma of the min-SNR weighting; None for no weighting. "sigmoid" is that of ours,
            for diffusers, where a weighting is the user's code.
        optimizer: an entry of `OPTIMIZERS`.
        lr: the largest learning rate, after a warm-up, before a cosine decay to 0.
        batch: images per step.
        attention: heads and their width, in the network of denoising-diffusion-pytorch.
        channels: the channels of each level, the last ones repeated. None for those of ours.
        patch: the side of the patches that become channels by `torch.pixel_unshuffle`.
        solver: an entry of the peer's solvers.
    """

    peer: str
    target: str = "v"
    schedule: str = "cosine"
    min_snr: float | str | None = 5.0
    optimizer: str = "adamw"
    lr: float = 2e-3
    batch: int = 16
    attention: tuple[int, int] = (4, 32)
    channels: tuple[int, ...] | None = None
    patch: int = 1
    solver: str = "2M"


WARM_UP, RISE = 100, 0.1
"""Steps of warm-up, which takes at most this fraction of the time, as ours does."""


def adamw(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return AdamW for all weights."""
    return torch.optim.AdamW(net.parameters(), lr=lr, betas=BETAS, weight_decay=0.01, fused=True)


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


OPTIMIZERS: Mapping[str, Callable[[nn.Module, float], Any]] = {"adamw": adamw, "muon": muon}


# -- peers ----------------------------------------------------------------------------------------


class Diffusers:
    """`UNet2DModel` in a loop as `train_unconditional.py` has it, with the options of its library.

    Attributes:
        differs: what differs from ours and is no option, by what differs.
        net: what is trained.
        average: what is sampled from.
    """

    package = "diffusers"
    schedules: Mapping[str, Mapping[str, Any]] = {
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
        "linear": {"beta_schedule": "linear"},
        "linear, zero terminal SNR": {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
    }
    solvers: Mapping[str, tuple[str, Mapping[str, Any]]] = {
        "2M": ("DPMSolverMultistepScheduler", {}),
        "2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        "2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        "2M leading": ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}),
        "UniPC": ("UniPCMultistepScheduler", {}),
        "UniPC 3": ("UniPCMultistepScheduler", {"solver_order": 3}),
        "DDIM": ("DDIMScheduler", {}),
        "DDPM": ("DDPMScheduler", {}),
    }
    targets: Mapping[str, str] = {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}

    def __init__(self, recipe: Recipe, like: Blueprint) -> None:
        from diffusers import DDPMScheduler
        from diffusers.training_utils import EMAModel, compute_snr

        self.recipe, self.size = recipe, like.space
        self.differs = describe_differences(like, recipe.patch)
        # Without dropout, training mode would only copy inputs of convolutions.
        self.net = diffusers_unet(like).eval()
        chosen = self.schedules[recipe.schedule]
        self.scheduler = DDPMScheduler(1000, prediction_type=self.targets[recipe.target], **chosen)
        snr = compute_snr(self.scheduler, torch.arange(1000))
        self.weights = weigh(snr, recipe).to(device_type())
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
        target = {"eps": lambda: noise, "x0": lambda: x0}.get(
            self.recipe.target, lambda: self.scheduler.get_velocity(x0, noise, t)
        )()
        loss = F.mse_loss(out, target, reduction="none").mean((1, 2, 3))
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
        if hasattr(scheduler, "set_begin_index"):  # else it searches t, which Karras' sigmas repeat
            scheduler.set_begin_index(0)
        x = torch.randn(n, *self.size.shape, device=device_type())
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample.float(), t, x).prev_sample
        return F.pixel_shuffle(x, self.recipe.patch)


CLIPPED = {"thresholding": True, "sample_max_value": 1.0, "lambda_min_clipped": -5.1}
"""x_0 clipped to [-1, 1]: their thresholding, whose largest value is 1; and the first log-SNR that
diffusers' documentation advises for the cosine schedule."""


def weigh(snr: Tensor, recipe: Recipe) -> Tensor:
    """Return the weight of the squared error of the target at each timestep.

    At an SNR of 0, where it may be 0 or undefined, it is the mean of the others, as in ours.
    """
    if recipe.min_snr is None:
        return torch.ones_like(snr)
    sigmoid = recipe.min_snr == "sigmoid"
    own = losses.sigmoid(snr) if sigmoid else losses.min_snr(snr, recipe.min_snr)
    own = own / {"eps": snr, "v": snr + 1}.get(recipe.target, torch.ones_like(snr))
    return own.where(snr > 0, own[snr > 0].mean())


def draw_like(x0: Tensor) -> Tensor:
    """Return noise in the order of memory of images. Drawn in that order, it takes longer."""
    return torch.randn(x0.shape, device=x0.device).contiguous(memory_format=torch.channels_last)


class DDPMPytorch:
    """`GaussianDiffusion` in a loop as its Trainer has it, with the options of its library.

    Attributes as those of `Diffusers`.
    """

    package = "denoising_diffusion_pytorch"
    schedules: Mapping[str, Mapping[str, Any]] = {
        name: {"beta_schedule": name} for name in ("cosine", "linear", "sigmoid")
    }
    solvers: Mapping[str, float] = {"DDIM": 0.0, "DDIM, eta 0.5": 0.5, "DDIM, eta 1": 1.0}
    targets: Mapping[str, str] = {"v": "pred_v", "eps": "pred_noise", "x0": "pred_x0"}

    def __init__(self, recipe: Recipe, like: Blueprint) -> None:
        from denoising_diffusion_pytorch import GaussianDiffusion
        from ema_pytorch import EMA

        heads, width = recipe.attention
        self.recipe = recipe
        blocks = "two blocks and linear attention at each level, which are no options"
        self.differs = {
            "groups": "RMSNorm over all channels, which is no option",
            **describe_differences(like, recipe.patch, blocks),
        }
        self.net: Any = GaussianDiffusion(
            ddpm_pytorch_unet(like, attn_heads=heads, attn_dim_head=width),
            image_size=like.space.size[0],
            objective=self.targets[recipe.target],
            min_snr_loss_weight=recipe.min_snr is not None,
            min_snr_gamma=recipe.min_snr or 5.0,
            sampling_timesteps=EVALUATIONS,
            **self.schedules[recipe.schedule],
        )
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
        net.ddim_sampling_eta = self.solvers[self.recipe.solver]
        drawn: Tensor = net.sample(batch_size=n)
        return drawn * 2 - 1


PEERS: Mapping[str, type[Diffusers] | type[DDPMPytorch]] = {
    "diffusers": Diffusers,
    "ddpm-pytorch": DDPMPytorch,
}

# -- training and sampling ------------------------------------------------------------------------


def train(
    recipe: Recipe, pixels: np.ndarray[Any, Any], seconds: float, seed: int = 0
) -> tuple[Diffusers | DDPMPytorch, nn.Module, dict[str, Any]]:
    """Train on uint8 (N, C, H, W) in memory for so many seconds of this process.

    Returns:
        The baseline, the network to sample from, and the facts of training. The clock
        starts when all is built.
    """
    device = device_type()
    like = baseline_blueprint(recipe, *pixels.shape[1:3])
    torch.manual_seed(seed)
    peer, optimizer = built(recipe, like)
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


def built(recipe: Recipe, like: Blueprint) -> tuple[Diffusers | DDPMPytorch, Any]:
    """Return a baseline and its optimizer, channels-last as ours (2 % faster for both)."""
    peer = PEERS[recipe.peer](recipe, like)
    peer.net = peer.net.to(device_type()).to(memory_format=torch.channels_last)
    return peer, OPTIMIZERS[recipe.optimizer](peer.net, recipe.lr)


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
