"""What each command can be asked to do, as frozen dataclasses of options.

Names of table entries (`--schedule cosine`) are checked where their table is looked up.
"""

from __future__ import annotations

from diffuse_cli.config.distill_options import DistillConfig as DistillConfig
from diffuse_cli.config.eval_options import LEARNED_STEPS as LEARNED_STEPS
from diffuse_cli.config.eval_options import TUNED_GUIDANCE as TUNED_GUIDANCE
from diffuse_cli.config.eval_options import TUNED_STEPS as TUNED_STEPS
from diffuse_cli.config.eval_options import TUNED_WEAK as TUNED_WEAK
from diffuse_cli.config.eval_options import CompareConfig as CompareConfig
from diffuse_cli.config.eval_options import EmaConfig as EmaConfig
from diffuse_cli.config.eval_options import EvalConfig as EvalConfig
from diffuse_cli.config.eval_options import FeatureConfig as FeatureConfig
from diffuse_cli.config.eval_options import MeasureConfig as MeasureConfig
from diffuse_cli.config.eval_options import PlottedBoundConfig as PlottedBoundConfig
from diffuse_cli.config.eval_options import TuneConfig as TuneConfig
from diffuse_cli.config.exchange_options import ConvertConfig as ConvertConfig
from diffuse_cli.config.exchange_options import PushConfig as PushConfig
from diffuse_cli.config.noise_demo_options import DemoConfig as DemoConfig
from diffuse_cli.config.sample_options import DISTILLED_STEPS as DISTILLED_STEPS
from diffuse_cli.config.sample_options import GAUSSIAN as GAUSSIAN
from diffuse_cli.config.sample_options import GUIDANCE as GUIDANCE
from diffuse_cli.config.sample_options import LEARNED as LEARNED
from diffuse_cli.config.sample_options import NOISE as NOISE
from diffuse_cli.config.sample_options import OWN as OWN
from diffuse_cli.config.sample_options import SAMPLER as SAMPLER
from diffuse_cli.config.sample_options import SAMPLING_STEPS as SAMPLING_STEPS
from diffuse_cli.config.sample_options import STARTS as STARTS
from diffuse_cli.config.sample_options import WEAK_GUIDANCE as WEAK_GUIDANCE
from diffuse_cli.config.sample_options import DrawConfig as DrawConfig
from diffuse_cli.config.sample_options import SampleConfig as SampleConfig
from diffuse_cli.config.sample_options import SamplerChoice as SamplerChoice
from diffuse_cli.config.sample_options import SamplerConfig as SamplerConfig
from diffuse_cli.config.sample_options import StartConfig as StartConfig
from diffuse_cli.config.sample_options import WeightsConfig as WeightsConfig
from diffuse_cli.config.shared_options import DiffusionConfig as DiffusionConfig
from diffuse_cli.config.shared_options import InfoConfig as InfoConfig
from diffuse_cli.config.task_options import InpaintConfig as InpaintConfig
from diffuse_cli.config.task_options import InterpolateConfig as InterpolateConfig
from diffuse_cli.config.task_options import PictureConfig as PictureConfig
from diffuse_cli.config.task_options import RestoreConfig as RestoreConfig
from diffuse_cli.config.task_options import RestoringConfig as RestoringConfig
from diffuse_cli.config.task_options import UpscaleConfig as UpscaleConfig
from diffuse_cli.config.task_options import VaryConfig as VaryConfig
from diffuse_cli.config.train_options import NETWORK as NETWORK
from diffuse_cli.config.train_options import TrainConfig as TrainConfig
