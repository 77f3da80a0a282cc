"""What each command can be asked to do, as frozen dataclasses of options.

Names of table entries (`--schedule cosine`) are checked where their table is looked up.
"""

from __future__ import annotations

from diffuse_cli.config.converting import ConvertConfig as ConvertConfig
from diffuse_cli.config.demo import DemoConfig as DemoConfig
from diffuse_cli.config.distilling import DistillConfig as DistillConfig
from diffuse_cli.config.drawing import DISTILLED_STEPS as DISTILLED_STEPS
from diffuse_cli.config.drawing import GAUSSIAN as GAUSSIAN
from diffuse_cli.config.drawing import GUIDANCE as GUIDANCE
from diffuse_cli.config.drawing import LEARNED as LEARNED
from diffuse_cli.config.drawing import NOISE as NOISE
from diffuse_cli.config.drawing import OWN as OWN
from diffuse_cli.config.drawing import SAMPLER as SAMPLER
from diffuse_cli.config.drawing import SAMPLING_STEPS as SAMPLING_STEPS
from diffuse_cli.config.drawing import STARTS as STARTS
from diffuse_cli.config.drawing import WEAK_GUIDANCE as WEAK_GUIDANCE
from diffuse_cli.config.drawing import ComputeConfig as ComputeConfig
from diffuse_cli.config.drawing import DrawConfig as DrawConfig
from diffuse_cli.config.drawing import GuideConfig as GuideConfig
from diffuse_cli.config.drawing import SampleConfig as SampleConfig
from diffuse_cli.config.drawing import SamplerChoice as SamplerChoice
from diffuse_cli.config.drawing import SamplerConfig as SamplerConfig
from diffuse_cli.config.drawing import StartConfig as StartConfig
from diffuse_cli.config.drawing import TrajectoryConfig as TrajectoryConfig
from diffuse_cli.config.drawing import WeightsConfig as WeightsConfig
from diffuse_cli.config.measuring import LEARNED_STEPS as LEARNED_STEPS
from diffuse_cli.config.measuring import TUNED_GUIDANCE as TUNED_GUIDANCE
from diffuse_cli.config.measuring import TUNED_STEPS as TUNED_STEPS
from diffuse_cli.config.measuring import TUNED_WEAK as TUNED_WEAK
from diffuse_cli.config.measuring import BoundConfig as BoundConfig
from diffuse_cli.config.measuring import CompareConfig as CompareConfig
from diffuse_cli.config.measuring import EmaConfig as EmaConfig
from diffuse_cli.config.measuring import EvalConfig as EvalConfig
from diffuse_cli.config.measuring import FeatureConfig as FeatureConfig
from diffuse_cli.config.measuring import MeasureConfig as MeasureConfig
from diffuse_cli.config.measuring import PlottedBoundConfig as PlottedBoundConfig
from diffuse_cli.config.measuring import TuneConfig as TuneConfig
from diffuse_cli.config.model import DiffusionConfig as DiffusionConfig
from diffuse_cli.config.pushing import PushConfig as PushConfig
from diffuse_cli.config.reading import InfoConfig as InfoConfig
from diffuse_cli.config.tasks import InpaintConfig as InpaintConfig
from diffuse_cli.config.tasks import InterpolateConfig as InterpolateConfig
from diffuse_cli.config.tasks import PictureConfig as PictureConfig
from diffuse_cli.config.tasks import RestoreConfig as RestoreConfig
from diffuse_cli.config.tasks import RestoringConfig as RestoringConfig
from diffuse_cli.config.tasks import UpscaleConfig as UpscaleConfig
from diffuse_cli.config.tasks import VaryConfig as VaryConfig
from diffuse_cli.config.training import NETWORK as NETWORK
from diffuse_cli.config.training import TrainConfig as TrainConfig
