"""What each command can be asked to do, as frozen dataclasses of options.

Names of table entries (`--schedule cosine`) are checked where their table is looked up, so this
room knows nothing of the core.
"""

from __future__ import annotations

from diffuse_cli.config.converting import ConvertConfig
from diffuse_cli.config.demo import DemoConfig
from diffuse_cli.config.drawing import (
    GUIDANCE,
    SAMPLER,
    SAMPLING_STEPS,
    ComputeConfig,
    DrawConfig,
    SampleConfig,
    SamplerChoice,
    SamplerConfig,
    TrajectoryConfig,
    WeightsConfig,
)
from diffuse_cli.config.info import InfoConfig
from diffuse_cli.config.measuring import (
    TUNED_GUIDANCE,
    TUNED_STEPS,
    BoundConfig,
    EmaConfig,
    EvalConfig,
    FeatureConfig,
    MeasureConfig,
    TuneConfig,
)
from diffuse_cli.config.model import DiffusionConfig
from diffuse_cli.config.training import TrainConfig

__all__ = [
    "GUIDANCE",
    "SAMPLER",
    "SAMPLING_STEPS",
    "TUNED_GUIDANCE",
    "TUNED_STEPS",
    "BoundConfig",
    "ComputeConfig",
    "ConvertConfig",
    "DemoConfig",
    "DiffusionConfig",
    "DrawConfig",
    "EmaConfig",
    "EvalConfig",
    "FeatureConfig",
    "InfoConfig",
    "MeasureConfig",
    "SampleConfig",
    "SamplerChoice",
    "SamplerConfig",
    "TrainConfig",
    "TrajectoryConfig",
    "TuneConfig",
    "WeightsConfig",
]
