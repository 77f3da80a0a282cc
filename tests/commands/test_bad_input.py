"""Bad input: the exit code of its kind, one line on stderr that helps, nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffuse_cli.config.options import MOST_TOML

SUGGESTIONS = [
    ("trian x", "train"),
    ("train x --schedule cosin", "cosine"),
    ("train x --target epss", "eps"),
    ("train x --preset tinny", "tiny"),
    ("train x --weighting minsnr", "min-snr"),
    ("train x --log tensorbord", "tensorboard"),
    ("sample x --sampler dim", "ddim"),
    ("sample x --weights emma", "ema"),
    ("eval x x --features efficientnet", "efficientnet-lite0"),
    ("convert x --preset adm-46", "adm-64"),
]


@pytest.mark.parametrize(("line", "name"), SUGGESTIONS)
def test_bad_input_is_one_line_with_its_exit_code(diffuse, line, name):
    """More refusals are in `tests/refusals`."""
    ran = diffuse(*line.split(), "-q")
    assert (ran.code, ran.out) == (2, "")
    assert ran.line.startswith("diffuse: ")
    assert f"Did you mean '{name}'?" in ran.line


def test_no_arguments_print_the_help(diffuse):
    ran = diffuse()
    assert (ran.code, ran.out) == (2, "")
    assert "Start:\n" in ran.err
    assert "Start:\n" in diffuse("--help").out
    assert diffuse("--version").out.startswith("diffuse ")


def test_debug_adds_the_traceback_to_an_expected_error(diffuse):
    assert "Traceback" not in diffuse("train", "nowhere").err
    assert "Traceback" in diffuse("train", "nowhere", "--debug").err


def test_a_bug_exits_1_with_its_traceback(train, instead_of_networks):
    instead_of_networks(lambda: 1 / 0)
    ran = train("--steps", 2, "-q")
    assert ran.code == 1
    assert "Traceback" in ran.err
    assert "ZeroDivisionError" in ran.err


@pytest.mark.parametrize(
    "line", ["train DATA --config", "train DATA --betas", "noise-demo x --betas"]
)
def test_what_is_no_regular_file_is_not_read(diffuse, line):
    """A FIFO would be waited for, and a device has no end."""
    os.mkfifo("fifo")
    for path in ("fifo", "/dev/full", "/dev/zero"):
        ran = diffuse(*line.split(), path, "-q")
        assert (ran.code, "it is not a regular file" in ran.line) == (2, True), path


def test_a_configuration_has_a_limit(diffuse):
    Path("large.toml").touch()
    os.truncate("large.toml", MOST_TOML + 1)
    ran = diffuse("train", "DATA", "--config", "large.toml", "-q")
    assert (ran.code, "more than 10,000,000 bytes" in ran.line) == (2, True)
