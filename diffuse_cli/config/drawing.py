"""How images are drawn from a model, and how they are measured."""

from __future__ import annotations

from dataclasses import dataclass

from diffuse_cli.errors import UsageError
from diffuse_cli.options import OVERWRITE, Config, option
from diffuse_cli.parsing import (
    MODEL_WEIGHTS,
    parse_color,
    parse_interval,
    parse_ints,
    parse_listed,
    parse_names,
    parse_scales,
    parse_timesteps,
    parse_weights,
)

SAMPLER, SAMPLING_STEPS = "unipc", 20
"""Chosen by the sweep of benchmarks/samplers.py."""

GUIDANCE = 2.0
"""The guidance scale of a model with classes where none is given."""

MOST_STEPS, STRONGEST = 100_000, 100
"""The largest number of steps and guidance scale that can be asked for."""

SWEPT_STEPS, SWEPT_GUIDANCE = (5, 10, 20, 50), (1.0, 1.5, 2.0, 3.0, 4.0)
"""What `--sweep` tries where nothing is given."""


@dataclass(frozen=True)
class Setting(Config):
    """What a sweep chooses: a sampler, its steps, and the guidance of a model with classes."""

    sampler: str = option(help="Sampler.")
    steps: int = option(help="Steps.", low=1, high=MOST_STEPS)
    guidance: float | None = option(None, "Guidance scale.", low=0, high=STRONGEST)

    def __str__(self) -> str:
        guided = "" if self.guidance is None else f", guidance {self.guidance:g}"
        return f"{self.sampler}, {self.steps} {'step' if self.steps == 1 else 'steps'}{guided}"


@dataclass(frozen=True, kw_only=True)
class DrawConfig(Config):
    """How images are drawn from a model."""

    steps: int | None = option(
        None,
        "Steps, each of one network evaluation; of two with heun.",
        low=1,
        high=MOST_STEPS,
        shown=f"the model's, or {SAMPLING_STEPS}",
    )
    sampler: str | None = option(
        None, "Sampler.", table="samplers", shown=f"the model's, or {SAMPLER}"
    )
    spacing: str = option("trailing", "Which timesteps are visited.", table="spacings")
    eta: float | None = option(
        None, "Noise of ddim: 0 none, 1 that of ddpm.", low=0, high=1, shown="0"
    )
    order: int | None = option(None, "Order of unipc.", low=2, high=3, shown="2")
    threshold: float | None = option(
        None,
        "Percentile, for example 0.995, by which each estimate of the image is scaled back into "
        "range (dynamic thresholding), instead of being clipped.",
        low=0.01,
        high=1,
        shown="",
    )
    seed: int = option(0, "Seed of the noise.", low=0, high=2**63 - 1)
    batch_size: int = option(64, "Images at a time; does not change them.", low=1, high=100_000)
    precision: str = option("auto", "Precision of the arithmetic.", table="precisions")
    guidance: float | None = option(
        None,
        "Guidance scale of a model with classes: 1 is the conditional model, 0 the unconditional.",
        low=0,
        high=STRONGEST,
        shown=f"the model's, or {GUIDANCE:g}; 1 where no class was left out in training",
    )
    guidance_interval: tuple[float, float] | None = option(
        None,
        "Noise levels sigma/alpha at which guidance acts; elsewhere its scale is 1.",
        parse=parse_interval,
        metavar="LOW,HIGH",
        shown="all",
    )

    @property
    def knobs(self) -> dict[str, float | None]:
        """What only some samplers take, None where it is not given."""
        return {"eta": self.eta, "order": self.order}


@dataclass(frozen=True, kw_only=True)
class SampleConfig(DrawConfig):
    """Images from a model file."""

    model: str = option(help="Model file.", argument=True, place=True, metavar="MODEL")
    n: int = option(16, "Number of images.", flag="-n", low=1, high=10_000_000)
    classes: tuple[str, ...] = option(
        (),
        "Class to draw; repeat it for several, which take turns.",
        flag="--class",
        parse=parse_names,
        metavar="NAME",
        shown="every class in turn",
    )
    weights: str = option("ema", "Averaged weights, or the raw ones.", table="weights")
    out: str = option("samples", "Folder for the images.", flag="-o", metavar="FOLDER")
    grid: bool = option(True, "Write grid.png.")
    gif: bool = option(False, "Write denoising.gif.")
    overwrite: bool = option(False, OVERWRITE)


@dataclass(frozen=True, kw_only=True)
class EvalConfig(DrawConfig):
    """A model, or a folder of images, measured against real images."""

    subject: str = option(
        help="Model file, or folder of generated images.",
        argument=True,
        place=True,
        metavar="MODEL_OR_FOLDER",
    )
    data: str = option(
        help="Folder or zip of real images.", argument=True, place=True, metavar="DATA"
    )
    n: int = option(1000, "Images on each side.", flag="-n", low=2, high=10_000_000)
    timesteps: int | str = option(
        50, "Timesteps of the bound an image, or 'all'.", parse=parse_timesteps, metavar="N|all"
    )
    respaced: int | None = option(
        None,
        "Take the bound over so many of the model's timesteps, as a process of its own.",
        low=2,
        high=100_000,
        shown="all of them",
    )
    features: str = option("efficientnet-lite0", "Feature network.", table="features")
    weights: tuple[str, ...] = option(
        (),
        "The model's averaged weights, or the raw ones; or a file with the weights of the feature "
        "network. Repeat it to give both.",
        parse=parse_weights,
        metavar="ema|raw|FILE",
        shown="ema; those of features from the folder DIFFUSE_WEIGHTS, or downloaded",
    )
    background: str | None = option(
        None,
        "Colour behind transparent images.",
        parse=parse_color,
        metavar="COLOR",
        shown="the model's",
    )
    train_n: int = option(
        5000,
        "Training images that generated ones are compared with in features; in pixels all are. "
        "0 for no comparison with training images.",
        low=0,
        high=10_000_000,
    )
    plot: str | None = option(
        None,
        "Write a plot: of the bound by timestep; with --sweep, of KID against seconds.",
        metavar="FILE.png",
        shown="",
    )
    sweep: bool = option(
        False,
        "Measure samplers, steps and guidance scales, and recommend the cheapest that is as good "
        "as the best.",
        control=True,
    )
    sweep_samplers: tuple[str, ...] | None = option(
        None,
        "Samplers that --sweep tries.",
        table="samplers",
        parse=parse_listed,
        metavar="NAME,...",
        shown="all",
    )
    sweep_steps: tuple[int, ...] | None = option(
        None,
        "Steps that --sweep tries with each.",
        parse=parse_ints,
        metavar="N,...",
        shown=",".join(map(str, SWEPT_STEPS)),
    )
    sweep_guidance: tuple[float, ...] | None = option(
        None,
        "Guidance scales that --sweep tries with the sampler and steps that it found.",
        parse=parse_scales,
        metavar="SCALE,...",
        shown=f"{','.join(f'{scale:g}' for scale in SWEPT_GUIDANCE)} for a model with classes",
    )
    ema_sweep: bool = option(
        False,
        "Measure averages of many lengths, made from what train --ema-lengths kept, and name the "
        "best.",
        control=True,
    )
    ema_metric: str | None = option(
        None, "What --ema-sweep measures them by.", table="ema_metrics", shown="kid"
    )
    out: str | None = option(
        None,
        "Write a model file: with the best length; with --sweep, with the recommended setting, "
        "which is then what sample and eval draw with.",
        flag="-o",
        metavar="FILE",
        shown="",
    )
    pairs: str | None = option(
        None,
        "Write a page of the generated images that are nearest to training images, beside those.",
        metavar="FILE.png",
        shown="",
    )
    report: str | None = option(
        None,
        "Write a page with the samples, every number and plot, and what it takes to repeat them.",
        metavar="FILE.html",
        shown="",
    )
    overwrite: bool = option(False, OVERWRITE)
    strict: bool = option(False, "End on the first bad file instead of skipping it.", control=True)
    workers: int | None = option(
        None, "Threads that read images.", low=1, high=256, shown="all cores"
    )

    @property
    def model_weights(self) -> str:
        """Which of the model's weights are measured: `ema` or `raw`."""
        return next((name for name in self.weights if name in MODEL_WEIGHTS), "ema")

    @property
    def feature_weights(self) -> str | None:
        """The file of the feature network's weights, where one is named."""
        return next((name for name in self.weights if name not in MODEL_WEIGHTS), None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sweep and self.ema_sweep:
            raise UsageError("--sweep and --ema-sweep exclude each other", "Leave one of them out")
        needs = {
            "--ema-metric": (self.ema_metric, "--ema-sweep", self.ema_sweep),
            "-o": (self.out, "--ema-sweep or --sweep", self.ema_sweep or self.sweep),
            "--sweep-samplers": (self.sweep_samplers, "--sweep", self.sweep),
            "--sweep-steps": (self.sweep_steps, "--sweep", self.sweep),
            "--sweep-guidance": (self.sweep_guidance, "--sweep", self.sweep),
        }
        for flag, (given, needed, there) in needs.items():
            if given is not None and not there:
                raise UsageError(f"{flag} goes with {needed}", "Give both, or neither")
