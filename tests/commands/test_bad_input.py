"""Bad input: the exit code of its kind, one line on stderr that helps, nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffuse_cli.config.options import MOST_TOML

MISTAKES = [
    ("trian x", "Did you mean 'train'?"),
    ("train x --schedule cosin", "Did you mean 'cosine'?"),
    ("train x --target epss", "Did you mean 'eps'?"),
    ("train x --preset tinny", "Did you mean 'tiny'?"),
    ("train x --weighting minsnr", "Did you mean 'min-snr'?"),
    ("train x --log tensorbord", "Did you mean 'tensorboard'?"),
    ("train x --learning_rate 1", "Did you mean '--lr'?"),
    ("train x --batch_size 1", "Did you mean '--batch-size'?"),
    ("train x --num_epochs 3", "Set --steps: N epochs are N x images / batch size"),
    ("train x --steps 1.5", "--steps must be a whole number, not '1.5'"),
    ("sample x --sampler dim", "Did you mean 'ddim'?"),
    ("sample x --weights emma", "Did you mean 'ema'?"),
    ("sample x --schedule linear", "It is an option of train, noise-demo, convert"),
    ("eval x x --features efficientnet", "Did you mean 'efficientnet-lite0'?"),
    ("tune x y --samplers ddim,dpm++", "mean '--samplers dpmpp-2m'?"),
    ("info x --learning-rate 1", "there is no option --learning-rate. See diffuse"),
    ("convert x --preset adm-46", "Did you mean 'adm-64'?"),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES)
def test_bad_input_is_one_line_with_its_exit_code(diffuse, line, said):
    """More refusals are in `tests/refusals`."""
    ran = diffuse(*line.split(), "-q").fails(2, said)
    assert ran.out == ""
    assert ran.line.startswith("diffuse: ")


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
        diffuse(*line.split(), path, "-q").fails(2, "it is not a regular file")


def test_a_configuration_has_a_limit(diffuse):
    Path("large.toml").touch()
    os.truncate("large.toml", MOST_TOML + 1)
    diffuse("train", "DATA", "--config", "large.toml", "-q").fails(2, "more than 10,000,000 bytes")
