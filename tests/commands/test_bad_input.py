"""Bad input: the exit code of its kind, one line on stderr that helps, nothing written."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from diffuse_cli import app
from diffuse_cli.config.options import MOST_TOML

DATA = "DATA"
"""Stands for the folder of images in a command line."""


@pytest.fixture
def here(tmp_path, images, model):
    """A folder with one of each wrong thing."""
    (tmp_path / DATA).symlink_to(images)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("not an image")
    rubbish = tmp_path / "rubbish"
    rubbish.mkdir()
    (rubbish / "a.png").write_text("not an image")
    (rubbish / "b.png").write_bytes(b"")
    shutil.copy(model, tmp_path / "good.safetensors")
    (tmp_path / "text.safetensors").write_text("a model, honestly")
    (tmp_path / "short.safetensors").write_bytes(model.read_bytes()[:-100])
    (tmp_path / "header.safetensors").write_bytes(model.read_bytes()[:500])
    (tmp_path / "pickle.pkl").write_bytes(pickle.dumps({"a": 1}))
    torch.save({"a": torch.zeros(3)}, tmp_path / "torch.pt")
    (tmp_path / "not.toml").write_text("steps = = 3")
    (tmp_path / "unknown.toml").write_text("stepps = 3")
    (tmp_path / "type.toml").write_text('steps = "many"')
    (tmp_path / "net.toml").write_text("[unet]\nwidht = 8")
    (tmp_path / "file").write_text("in the way")
    return tmp_path


TABLE = [
    # data
    ("train nowhere", 3, "nowhere"),
    ("train empty", 3, "empty"),
    ("train text.png", 3, "text.png"),
    ("train rubbish", 3, "1 empty file"),
    ("train DATA/dark/000.png", 3, "000.png"),
    ("eval good.safetensors nowhere", 3, "nowhere"),
    ("eval good.safetensors empty", 3, "empty"),
    ("eval empty DATA", 3, "empty"),
    ("train", 2, "DATA"),
    ("sample", 2, "MODEL"),
    ("eval", 2, "missing"),
    ("eval good.safetensors", 2, "DATA"),
    # numbers
    *((f"train DATA --steps {v}", 2, "--steps") for v in ("0", "nan", "1e99", "abc", "-5", "''")),
    *((f"train DATA --lr {v}", 2, "--lr") for v in ("nan", "inf", "1e99", "abc", "-1")),
    *((f"train DATA --size {v}", 2, "--size") for v in ("0", "30x", "abc", "x8", "8x8x8", "99999")),
    *((f"train DATA --batch-size {v}", 2, "--batch-size") for v in ("0", "2.5")),
    ("train DATA --accumulation 9 --batch-size 8", 2, "--accumulation"),
    ("train DATA --seed -1", 2, "--seed"),
    ("train DATA --minutes 0", 2, "--minutes"),
    ("train DATA --background nocolor", 2, "--background"),
    ("sample good.safetensors -n 0", 2, "-n"),
    ("sample good.safetensors --steps 101", 2, "--steps"),
    ("sample good.safetensors --eta 2", 2, "--eta"),
    ("sample good.safetensors --sampler ddpm --eta 0.5", 2, "--eta"),
    ("eval good.safetensors DATA -n 1", 2, "-n"),
    ("eval good.safetensors DATA --timesteps 1", 2, "--timesteps"),
    ("eval good.safetensors DATA --timesteps some", 2, "--timesteps"),
    ("eval good.safetensors DATA --steps 101", 2, "--steps"),
    # names
    ("train DATA --schedule cosin", 2, "Did you mean 'cosine'?"),
    ("train DATA --target epss", 2, "Did you mean 'eps'?"),
    ("train DATA --preset tinny", 2, "Did you mean 'tiny'?"),
    ("train DATA --variance smal", 2, "Did you mean 'small'?"),
    ("train DATA --loss simpel", 2, "Did you mean 'simple'?"),
    ("train DATA --weighting minsnr", 2, "Did you mean 'min-snr'?"),
    ("train DATA --precision fp23", 2, "Did you mean 'fp32'?"),
    ("train DATA --log tensorbord", 2, "Did you mean 'tensorboard'?"),
    ("sample good.safetensors --sampler dim", 2, "Did you mean 'ddim'?"),
    ("sample good.safetensors --spacing trail", 2, "Did you mean 'trailing'?"),
    ("sample good.safetensors --weights emma", 2, "Did you mean 'ema'?"),
    ("eval good.safetensors DATA --features efficientnet", 2, "Did you mean 'efficientnet-lite0'?"),
    ("train DATA --stepps 3", 2, "--steps"),
    ("trian DATA", 2, "train"),
    # options that do not go together
    ("train DATA --size 30 --preset tiny", 2, "--size 30x30"),
    ("train DATA --resume --overwrite", 2, "--overwrite"),
    ("train DATA --init good.safetensors --preset tiny", 2, "--preset"),
    ("train DATA --loss vlb --weighting min-snr", 2, "--weighting"),
    ("train DATA -o model.bin", 2, ".safetensors"),
    # files
    ("train DATA --config nowhere.toml", 2, "nowhere.toml"),
    ("train DATA --config not.toml", 2, "not.toml"),
    ("train DATA --config unknown.toml", 2, "Did you mean 'steps'?"),
    ("train DATA --config type.toml", 2, "--steps"),
    ("train DATA --config net.toml", 2, "Did you mean 'width'?"),
    ("train DATA --config empty", 2, "empty"),
    ("train DATA --init text.safetensors", 4, "text.safetensors"),
    ("train DATA --init nowhere.safetensors", 4, "nowhere.safetensors"),
    *(
        (f"sample {name}", 4, name)
        for name in (
            "nowhere.safetensors",
            "text.safetensors",
            "short.safetensors",
            "header.safetensors",
            "pickle.pkl",
            "torch.pt",
            "DATA",
            "empty",
        )
    ),
    ("eval nowhere DATA", 4, "nowhere"),
    ("eval short.safetensors DATA", 4, "short.safetensors"),
    ("eval pickle.pkl DATA", 4, "pickle.pkl"),
    ("eval torch.pt DATA", 4, "torch.pt"),
    # outputs
    ("train DATA -o good.safetensors", 5, "--overwrite"),
    ("train DATA -o file/model.safetensors", 5, "file"),
    ("sample good.safetensors -o file", 5, "file"),
    ("sample good.safetensors -o file/out", 5, "file"),
]


@pytest.mark.parametrize(("line", "code", "says"), TABLE, ids=[line for line, _, _ in TABLE])
def test_bad_input_is_one_line_with_its_exit_code(here, diffuse, line, code, says):
    before = sorted(here.rglob("*"))
    ran = diffuse(*("" if word == "''" else word for word in line.split()), "-q")
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert says in ran.line
    assert ran.line.startswith("diffuse: ")
    assert sorted(here.rglob("*")) == before


def test_rubbish_is_counted_by_reason_and_named(here, diffuse):
    line = diffuse("train", "rubbish", "-q").line
    assert "1 empty file" in line
    assert "1 not an image" in line


def test_no_arguments_print_the_help(diffuse):
    ran = diffuse()
    assert ran.code == 2
    assert "Start:\n" in ran.err
    assert ran.out == ""


def test_help_and_version_are_results(diffuse):
    assert "Start:\n" in diffuse("--help").out
    assert diffuse("--version").out.startswith("diffuse ")
    assert "--stop-at" in diffuse("train", "--help").out


def test_only_the_command_that_is_run_is_made(diffuse, monkeypatch):
    made, make = [], app.Commands.__getitem__
    monkeypatch.setattr(
        app.Commands, "__getitem__", lambda self, name: made.append(name) or make(self, name)
    )
    for line, names in ((["--version"], []), (["trian"], []), (["info", "nowhere"], ["info"])):
        made.clear()
        diffuse(*line)
        assert made == names


def test_debug_adds_the_traceback_to_an_expected_error(diffuse):
    assert "Traceback" not in diffuse("train", "nowhere").err
    assert "Traceback" in diffuse("train", "nowhere", "--debug").err


def test_a_bug_exits_1_with_its_traceback(train, instead_of_networks):
    instead_of_networks(lambda: 1 / 0)
    ran = train("--steps", 2, "-q")
    assert ran.code == 1
    assert "Traceback" in ran.err
    assert "ZeroDivisionError" in ran.err


def test_a_failed_start_leaves_no_run_directory(diffuse, tmp_path):
    (tmp_path / "empty").mkdir()
    assert diffuse("train", "empty").code == 3
    assert not Path("model.run").exists()


def test_options_of_a_config_with_crlf_and_a_byte_order_mark_count(train, tmp_path):
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbfsteps = 0\r\n")
    assert "--steps must be at least 1" in train("--config", path).line


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
    with Path("large.toml").open("wb") as file:
        file.truncate(MOST_TOML + 1)
    ran = diffuse("train", "DATA", "--config", "large.toml", "-q")
    assert (ran.code, "more than 10,000,000 bytes" in ran.line) == (2, True)
