"""Expected failures, each kind with its exit code.

A command prints a failure as one line: the problem, with its path or option, and a hint for the
next step. Any other exception is a bug and ends with a traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TypeVar

from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.registry import lookup as known

T = TypeVar("T")


CODES: Mapping[str, str] = {
    # the command line
    "unknown_command": "There is no such command.",
    "unknown_option": "The command has no such option.",
    "missing_argument": "A required argument or option is missing.",
    "invalid_option": "An option is wrong in another way than the codes below.",
    "invalid_value": "The value of an option cannot be read or is out of range.",
    "unknown_name": "The value of an option is not a name that it knows.",
    "options_conflict": "Options exclude each other.",
    "option_needs": "An option needs another option, or another value of one.",
    "option_unsuited": "An option does not suit the data or the model.",
    "config_unreadable": "A configuration file is missing or damaged.",
    "unknown_setting": "A configuration file has a key that no option has.",
    "package_missing": "An optional package is not installed.",
    "device_missing": "The device or its precision is not available.",
    "out_of_memory": "The memory does not suffice.",
    # the data
    "data_missing": "The data does not exist.",
    "data_empty": "The data has no usable sample.",
    "data_unreadable": "The data, or a part of it, is damaged.",
    "data_unsupported": "The data has a format that diffuse does not read.",
    "data_mixed": "Samples do not belong together: their media, channels or sizes differ.",
    "data_mismatch": "The data does not suit the model or the other data.",
    "data_changed": "Files changed or disappeared while they were used.",
    "data_too_large": "A file or a sample exceeds a limit.",
    "too_few_samples": "There are too few samples.",
    "metadata_unreadable": "A file of metadata is missing or damaged.",
    "metadata_mismatch": "Metadata does not suit the samples or the model.",
    "unusable_data": "The data cannot be used for another reason.",
    # models and runs
    "model_missing": "There is no such model.",
    "model_damaged": "A model file is damaged.",
    "model_unsupported": "The file is a model of another program, or of a newer version.",
    "model_mismatch": "Two models, or a model and a request, do not suit each other.",
    "model_lacks": "The model has no such part: weights, labels or a measurement.",
    "weights_missing": "The weights of a feature network are missing.",
    "weights_damaged": "The weights of a feature network are not those that are published.",
    "checkpoint_missing": "A run has no usable checkpoint.",
    "run_missing": "There is no run to resume.",
    "run_differs": "An option or the data differs from the run that is resumed.",
    "run_finished": "The run has already taken its steps.",
    "unusable_model": "The model cannot be used for another reason.",
    # the Hub
    "hub_missing": "The Hub has no such repository or file.",
    "hub_failed": "The Hub or the network failed.",
    "hub_denied": "The Hub needs a token, or refuses it.",
    # outputs
    "output_exists": "The output exists and --overwrite is not set.",
    "output_foreign": "The output holds files that diffuse did not write there.",
    "output_is_input": "The output is also an input.",
    "output_unsuited": "The name of the output does not suit its content.",
    "output_unwritable": "The output cannot be written.",
    "disk_full": "The disk has too little space.",
    "output_failed": "Other input or output failed.",
    # a run
    "diverged": "The loss, the gradient or samples stopped being finite.",
    "busy": "Another run holds the output.",
    "process_lost": "Another process of the run is gone.",
    "interrupted": "SIGINT arrived.",
    "terminated": "SIGTERM arrived.",
    "failed": "Something else failed.",
}
"""Codes of errors and their meanings. With --json, scripts read them from stdout."""

FLAG = re.compile(r"--[a-z][a-z-]*[a-z]")


class DiffuseError(Exception):
    """An expected failure.

    Args:
        code: an entry of `CODES`, or else the most general one of the class.
        option: the flag or argument that is wrong, or else the first flag of the message.
        path: the file or folder that is wrong.

    Attributes:
        message: the problem, with its path or option.
        hint: the next step.
    """

    exit_code = 1
    code = "failed"

    of_all = True
    """Whether all processes of a run have this error, so that only the first prints it."""

    def __init__(
        self, message: str, hint: str = "", *, code: str = "", option: str = "", path: object = ""
    ) -> None:
        super().__init__(message)
        self.message, self.hint, self.path = message, hint, str(path)
        self.code = code or self.code
        flag = FLAG.search(message)
        self.option = option or (flag[0] if flag else "")

    def to_dict(self) -> dict[str, str | None]:
        """Return the error as plain values, with None for unknown fields."""
        names = ("code", "option", "path", "message", "hint")
        return {name: getattr(self, name) or None for name in names}

    def mark_local(self) -> Self:
        """Mark this as an error of one process, which each process prints, and return it."""
        self.of_all = False
        return self

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        return f"{self.message}{'' if self.message.endswith(('.', '?', '!')) else '.'} {self.hint}"


class UsageError(DiffuseError):
    """A wrong option, value or configuration file."""

    exit_code = 2
    code = "invalid_option"


class DataError(DiffuseError):
    """DATA or IMAGE is missing or unusable."""

    exit_code = 3
    code = "unusable_data"


INSTALL = "in the folder of diffuse's source, run `pip install '.[{extra}]'`"
"""Advice for installing diffuse with an extra. No package index has it yet."""


def extra_package(
    name: str, extra: str, message: str, error: Callable[[str, str], DiffuseError] = DataError
) -> Any:
    """Import a package of one of our extras.

    Args:
        message: the purpose of the package, for the error.

    Raises:
        DiffuseError: the package, or a library that it loads, is not installed.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        failure = error(message, f"Install it: {INSTALL.format(extra=extra)}")
        failure.code = "package_missing"
        raise failure from None


class ModelFileError(DiffuseError):
    """A model file is missing or invalid."""

    exit_code = 4
    code = "unusable_model"


class OutputError(DiffuseError):
    """An output already exists or cannot be written, or other I/O failed."""

    exit_code = 5
    code = "output_unwritable"


class DivergedError(DiffuseError):
    """The loss, the gradient or samples stopped being finite."""

    exit_code = 6
    code = "diverged"


class BusyError(DiffuseError):
    """Another run holds the output."""

    exit_code = 75
    code = "busy"


class LostError(DiffuseError):
    """Another process of this run is gone."""

    exit_code = 76
    code = "process_lost"
    of_all = False


class Interrupted(DiffuseError):
    """SIGINT arrived."""

    exit_code = 130
    code = "interrupted"


class Terminated(DiffuseError):
    """SIGTERM arrived."""

    exit_code = 143
    code = "terminated"


def flag(name: str) -> str:
    """Return an argument's name as the flag that sets it."""
    return "--" + name.replace("_", "-")


def to_usage_error(error: InvalidArgument, name: Callable[[str], str] = flag) -> UsageError:
    """Return an error of the core as a `UsageError` that names the flag of its argument."""
    option = name(error.argument) if error.argument else ""
    text = error.message(option)
    return UsageError(text, error.hint, code=error.code, option=option)


@contextlib.contextmanager
def translate_errors(name: Callable[[str], str] = flag) -> Iterator[None]:
    """Turn an error of the core inside the block into a `UsageError`."""
    try:
        yield
    except InvalidArgument as error:
        raise to_usage_error(error, name) from error


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """Return `table[name]`.

    Args:
        what: the option that sets the name, for the error.

    Raises:
        UsageError: there is no such entry. The hint lists the names.
    """
    try:
        return known(table, name, what)
    except InvalidArgument as error:
        text = error.message(what)
        option = what.partition(" ")[0]
        raise UsageError(text, error.hint, code=error.code, option=option) from error
