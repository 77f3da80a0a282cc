"""The Python interface: `import diffuse_cli as diffuse`.

`load`, `train` and `evaluate` take the options of their commands as keywords, with the names that
configuration files use. Errors are `DiffuseError`. Functions print nothing and do not end the
program. They send notices to the logger `diffuse`, and `train` yields them as events.
"""

from diffuse_cli.api.generated_samples import Samples as Samples
from diffuse_cli.api.models import Evaluation as Evaluation
from diffuse_cli.api.models import Model as Model
from diffuse_cli.api.models import evaluate as evaluate
from diffuse_cli.api.models import load as load
from diffuse_cli.api.training_run import TrainingEvent as TrainingEvent
from diffuse_cli.api.training_run import train as train
from diffuse_cli.core import Denoiser as Denoiser
from diffuse_cli.core import Space as Space
from diffuse_cli.system import DataError as DataError
from diffuse_cli.system import DiffuseError as DiffuseError
from diffuse_cli.system import DivergedError as DivergedError
from diffuse_cli.system import ModelFileError as ModelFileError
from diffuse_cli.system import Notice as Notice
from diffuse_cli.system import OutputError as OutputError
from diffuse_cli.system import Progress as Progress
from diffuse_cli.system import Table as Table
from diffuse_cli.system import UsageError as UsageError
from diffuse_cli.system.errors import BusyError as BusyError
from diffuse_cli.training.run_events import Compared as Compared
from diffuse_cli.training.run_events import Previewed as Previewed
from diffuse_cli.training.run_events import Started as Started
from diffuse_cli.training.run_events import Step as Step
from diffuse_cli.training.run_events import Trained as Trained
from diffuse_cli.training.run_events import Validated as Validated
