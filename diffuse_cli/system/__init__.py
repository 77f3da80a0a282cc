"""System services: files, locks, signals, random numbers, devices and the Hugging Face Hub.

You can import errors, events and how paths are shown from here.
"""

from diffuse_cli.system.errors import DataError as DataError
from diffuse_cli.system.errors import DiffuseError as DiffuseError
from diffuse_cli.system.errors import DivergedError as DivergedError
from diffuse_cli.system.errors import Interrupted as Interrupted
from diffuse_cli.system.errors import ModelFileError as ModelFileError
from diffuse_cli.system.errors import OutputError as OutputError
from diffuse_cli.system.errors import Terminated as Terminated
from diffuse_cli.system.errors import UsageError as UsageError
from diffuse_cli.system.errors import extra_package as extra_package
from diffuse_cli.system.errors import flag as flag
from diffuse_cli.system.errors import lookup as lookup
from diffuse_cli.system.errors import to_usage_error as to_usage_error
from diffuse_cli.system.errors import translate_errors as translate_errors
from diffuse_cli.system.events import Notice as Notice
from diffuse_cli.system.events import Progress as Progress
from diffuse_cli.system.events import StopRequest as StopRequest
from diffuse_cli.system.events import Styled as Styled
from diffuse_cli.system.events import Table as Table
from diffuse_cli.system.events import Work as Work
from diffuse_cli.system.events import finish as finish
from diffuse_cli.system.events import format_duration as format_duration
from diffuse_cli.system.events import plural as plural
from diffuse_cli.system.events import replace_nonfinite as replace_nonfinite
from diffuse_cli.system.files import shorten as shorten
from diffuse_cli.system.files import show as show
from diffuse_cli.system.memory import is_out_of_memory as is_out_of_memory
from diffuse_cli.system.memory import raise_if_full as raise_if_full

__version__ = "0.1.0"
