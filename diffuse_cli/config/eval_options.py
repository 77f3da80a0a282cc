"""Options of `eval`, `tune`, `ema` and `compare`."""

from __future__ import annotations

from dataclasses import dataclass

from diffuse_cli.config import parsers, sample_options, shared_options
from diffuse_cli.config.options import (
    Options,
    changed_flags,
    find_changed_flag,
    option,
)
from diffuse_cli.system import UsageError

TUNED_STEPS, TUNED_GUIDANCE = (5, 10, 20, 50), (1.0, 1.5, 2.0, 3.0, 4.0)
TUNED_WEAK = (1.25, 1.5, 2.0, 3.0, 4.0)
"""Settings that `tune` tries by default."""

FEW_STEPS = (1, 2, 4, 8)
"""The steps that `tune` tries by default with a distilled model."""


@dataclass(frozen=True, kw_only=True)
class FeatureConfig(Options):
    """The network whose features images are compared in."""

    features: str = option(
        "efficientnet-lite0",
        "Feature network for images (arrays and sounds use random features).",
        table="metrics.features.FEATURES",
    )
    feature_weights: str | None = option.measuring.optional(
        "Weights file of the feature network.",
        parse=parsers.parse_file,
        place=True,
        shown="from the folder DIFFUSE_WEIGHTS, else downloaded",
    )


@dataclass(frozen=True, kw_only=True)
class ImageSetsConfig(
    FeatureConfig,
    sample_options.ComputeConfig,
    sample_options.SeedConfig,
    shared_options.ConditionsConfig,
    shared_options.ReadingConfig,
):
    """Numbers of generated and real images, and how to compare them."""

    n: int = option(1000, "Number of generated images, and of real images.", low=2, high=10_000_000)
    background: str | None = option.data.optional(
        shared_options.BACKGROUND, parse=parsers.parse_color, shown="the model's"
    )
    fit: str | None = option.data.optional(
        shared_options.FIT, table="media.FITS", shown="the model's"
    )


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(ImageSetsConfig):
    """The model, and the real images to compare with."""

    subject: str = option.model()
    data: str = option.argument("DATA", "Real images, in any form that train reads.")
    overwrite: bool = option.overwrite()


@dataclass(frozen=True, kw_only=True)
class BoundConfig(Options):
    """Estimate of the variational bound."""

    timesteps: int | str = option(
        8, "Timesteps per image for the variational bound, or 'all'.", parse=parsers.parse_timesteps
    )
    respaced: int | None = option.measuring.optional(
        "Compute the variational bound over N of the model's timesteps.",
        low=2,
        high=100_000,
        shown="all",
    )


@dataclass(frozen=True, kw_only=True)
class BoundPlotConfig(BoundConfig):
    """The variational bound, a plot of it, and the likelihood by the probability-flow equation."""

    plot: str | None = option.output.optional(
        "Plot the variational bound by timestep.", place=True, metavar="FILE.png"
    )
    ode_steps: int | None = option.measuring.optional(
        "Also measure likelihood-ode, in N steps of its solver.",
        low=2,
        high=100_000,
        shown="64 for --metrics likelihood-ode",
    )


@dataclass(frozen=True, kw_only=True)
class MembersConfig(Options):
    """Ensembles of a model conditioned on images, or of a folder."""

    members: int | None = option.measuring.optional(
        "Also measure ensembles of N samples per condition (in a folder NAME-00, NAME-01, ...).",
        low=2,
        high=1000,
        shown="16 for --metrics ensembles",
    )


OF_MODELS = (
    shared_options.ConditionsConfig,
    BoundPlotConfig,
    sample_options.StartConfig,
    sample_options.SamplerConfig,
    sample_options.VarianceConfig,
)
OF_FOLDERS = (shared_options.AxesConfig,)
"""Options of `eval` that only a model takes, and that only a folder of samples takes."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(
    shared_options.AxesConfig,
    MeasureConfig,
    MembersConfig,
    BoundPlotConfig,
    sample_options.StartConfig,
    sample_options.DrawConfig,
    sample_options.VarianceConfig,
):
    """A model, or a folder of images, measured against real images."""

    subject: str = option.argument(
        "MODEL_OR_FOLDER", "Model, run directory, or folder of generated images."
    )
    metrics: tuple[str, ...] | None = option.optional(
        "Compute only these metrics, generating images only if needed.",
        table="metrics.METRICS",
        parse=parsers.parse_listed,
        shown="all that suit the data, except likelihood-ode and ensembles",
    )
    report: str | None = option.optional(
        "Write a page of samples, metrics and plots, with commands that reproduce them.",
        place=True,
        metavar="FILE.html",
    )
    train_n: int = option.measuring(
        5000,
        "Training images whose features are searched for copies (0: no training images).",
        low=0,
        high=10_000_000,
    )
    pairs: str | None = option.output.optional(
        "Show generated images next to their nearest training images.",
        place=True,
        metavar="FILE.png",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("report", "pairs", "plot"):
            if self.metrics is not None and getattr(self, name):
                text = f"--{name} and --metrics exclude each other: it shows what all of them found"
                raise UsageError(text, "Leave one of them out", code="options_conflict")
        for name, metric in (("ode_steps", "likelihood-ode"), ("members", "ensembles")):
            if getattr(self, name) and self.metrics and metric not in self.metrics:
                flag = f"--{name.replace('_', '-')}"
                text = f"{flag} has no effect: --metrics leaves out {metric}"
                raise UsageError(text, f"Leave out {flag}", code="option_needs")


@dataclass(frozen=True, kw_only=True)
class TuneConfig(
    MeasureConfig,
    sample_options.GuideConfig,
    sample_options.TrajectoryConfig,
    sample_options.WeightsConfig,
):
    """Samplers, steps and guidance scales of a model, compared."""

    samplers: tuple[str, ...] | None = option.optional(
        "Samplers to try.",
        table="core.samplers.SAMPLERS",
        parse=parsers.parse_listed,
        shown="all that suit the model",
    )
    steps: tuple[int, ...] | None = option.optional(
        "Numbers of steps to try with each sampler.",
        parse=parsers.parse_ints,
        shown=f"{','.join(map(str, TUNED_STEPS))}, "
        f"or {','.join(map(str, FEW_STEPS))} for a distilled model",
    )
    guidance: tuple[float, ...] | None = option.optional(
        "Guidance scales to try: all samplers at the first, the best at each.",
        parse=parsers.parse_scales,
        shown=f"the model's, then {','.join(f'{scale:g}' for scale in TUNED_GUIDANCE)}",
    )
    weak_guidance: tuple[float, ...] | None = option.sampling.optional(
        "Autoguidance scales to try, with --guide-with or the early EMA checkpoint.",
        parse=parsers.parse_scales,
        shown=f"{','.join(f'{scale:g}' for scale in TUNED_WEAK)} where there is one, "
        "and 2,3 at noise levels 0.3 to 3 without conditions",
    )
    try_starts: bool = option.sampling(
        True, "Also try --start gaussian with the best sampler, if the model supports it."
    )
    out: str | None = option.optional(
        "Write the model with the recommended setting, for sample and eval to use.",
        flag="-o",
        place=True,
        metavar="FILE",
    )
    plot: str | None = option.output.optional(
        "Plot KID against seconds per image.", place=True, metavar="FILE.png"
    )
    report: str | None = option.optional(
        "Evaluate the recommended setting, and write a page of all results.",
        place=True,
        metavar="FILE.html",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        flag = find_changed_flag(
            self, sample_options.TrajectoryConfig, sample_options.WeightsConfig
        )
        if self.guide_with not in (None, sample_options.OWN):
            flag = "--guide-with"
        if self.out is not None and flag:
            text = f"-o: a model file cannot record {flag}, with which the setting was measured"
            hint = f"Leave out -o or {flag}"
            raise UsageError(text, hint, code="options_conflict", option="-o")


@dataclass(frozen=True, kw_only=True)
class EmaConfig(MeasureConfig, sample_options.StartConfig, sample_options.DrawConfig):
    """Averages of many lengths of one training run, compared."""

    metric: str = option(
        "kid",
        "Criterion: KID of generated images, or loss of held-out images.",
        table=("kid", "held-out"),
    )
    out: str | None = option.optional(
        "Write a model file with the best EMA weights.", flag="-o", metavar="FILE"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        flag = find_changed_flag(
            self, sample_options.SamplerConfig, sample_options.StartConfig, FeatureConfig
        )
        if self.metric == "held-out" and flag:
            text = f"{flag} has no effect: --metric held-out generates no images"
            raise UsageError(text, f"Leave out {flag}", code="option_needs")


@dataclass(frozen=True, kw_only=True)
class CompareConfig(
    ImageSetsConfig,
    MembersConfig,
    BoundConfig,
    sample_options.StartConfig,
    sample_options.DrawConfig,
    sample_options.WeightsConfig,
):
    """Two runs or models, side by side."""

    a: str = option.model("A")
    b: str = option.model("B")
    data: str | None = option.optional(
        "Real images, to also evaluate both models from the same noise.",
        metavar="[DATA]",
        argument=True,
    )
    report: str | None = option.optional(
        "Write a page with the settings and curves of both.", metavar="FILE.html"
    )
    overwrite: bool = option.overwrite()

    def __post_init__(self) -> None:
        super().__post_init__()
        changed = changed_flags(self)
        flags = [changed[name] for name in changed if name not in ("a", "b", "report", "overwrite")]
        if self.data is None and flags:
            text = f"{flags[0]} needs DATA, images to evaluate both on"
            raise UsageError(text, code="option_needs", option=flags[0])
