"""Betas from a file: read once, checked, kept as numbers; and the rescale to zero terminal SNR."""

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import mostly_slow
from edited_models import change_description
from networks import plan

from diffuse_cli.config.options import read_toml, to_toml
from diffuse_cli.config.parsers import parse_betas
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.config.train_options import TrainConfig, to_file
from diffuse_cli.core import SCHEDULES
from diffuse_cli.core.schedules import zero_terminal_snr
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import make_denoiser, make_process
from diffuse_cli.models.model_file import StoredModel
from diffuse_cli.system.errors import ModelFileError, UsageError
from diffuse_cli.training.configuration import configure
from diffuse_cli.training.plan import prepare_plan
from diffuse_cli.training.run_directory import RunDirectory

BETAS = (0.001, 0.25, 1 / 3)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.txt").write_text("".join(f"{beta!r}\n" for beta in BETAS))
    return tmp_path


# -- the file -------------------------------------------------------------------------------------


WRITTEN = [
    "0.001\n0.25\n0.3333333333333333\n", "0.001, 0.25,\r\n0.3333333333333333",
    "1e-3 0.25\t3.333333333333333e-1", "\ufeff\n\n0.001\n\n0.25\n0.3333333333333333\n\n",
    "[0.001, 0.25,\n 0.3333333333333333]",
]  # fmt: skip


@pytest.mark.parametrize("text", WRITTEN)
def test_every_way_to_write_betas(folder, text):
    (folder / "x").write_text(text, encoding="utf-8")
    assert parse_betas("x") == parse_betas(list(BETAS)) == parse_betas(BETAS) == BETAS
    assert all(type(beta) is float for beta in parse_betas([0.5, 1]))


WRONG = [
    (b"0.1\n0.2\nabc\n", "line 3: 'abc' is not a number"),
    (b"0.1\n0.2 0.3 1.5\n", r"line 2: a beta must be in \(0, 1\], not 1.5"),
    *((content, "line 2: a beta must be in") for content in (b"0.1\n0\n", b"1\ninf", b"1\n-0.1")),
    (b"nan\n0.2\n", "line 1: a beta must be in"), (b"[0.1, NaN]", "entry 2: a beta must be in"),
    (b'[0.1, "0.2"]', "entry 2: '0.2' is not a number"), (b"[0.1,\n0.2", "line 2: "),
    (b"[0.1, true]", "entry 2: True is not a number"), (b"[" * 100_000, "a list within a list"),
    (b"[0.1, [0.2]]", r"entry 2: \[0.2\] is not a number"), (b"\xff\xfe0\x00", "decode"),
    (b"[0.1, 1" + b"0" * 400 + b"]", "entry 2: a beta must be in"),
    (b"0.5", "2 to 100,000 betas, not 1"), (b"", "2 to 100,000 betas, not 0"),
    (b"0.5 " * 100_001, "2 to 100,000 betas, not 100,001"),
    (b" " * 10_000_001, "more than 10,000,000 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_file_is_named_with_its_line(folder, content, words):
    (folder / "wrong.txt").write_bytes(content)
    with pytest.raises(UsageError, match=f"--betas 'wrong.txt': .*{words}") as caught:
        DiffusionConfig(betas="wrong.txt")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [0.5, True, {"a": 1}, [0.1, "0.2"], [0.1], [0.1, 2.0], [[0.1]]])
def test_what_is_not_a_list_of_betas_is_refused(value):
    with pytest.raises(UsageError, match="--betas"):
        DiffusionConfig(betas=value)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="the system names no open files")
@pytest.mark.parametrize("text", [b"0.1 0.2", b"betas = [0.1, 0.2]"])
def test_a_pipe_of_the_shell_is_read_once(text):
    """As `--betas <(command)`, `--config <(command)` and `--config /dev/stdin` need."""
    reading, writing = os.pipe()
    os.write(writing, text)
    os.close(writing)
    path = f"/dev/fd/{reading}"
    found = read_toml(path) if b"=" in text else {"betas": path}
    assert configure({"data": "x"}, found).betas == (0.1, 0.2)
    os.close(reading)


# -- with the other options -----------------------------------------------------------------------


def test_betas_decide_the_number_of_timesteps_and_stand_for_the_schedule():
    config = DiffusionConfig(betas=BETAS)
    assert (config.num_timesteps, config.schedule) == (3, None)
    assert DiffusionConfig(betas=BETAS, num_timesteps=3) == config
    assert DiffusionConfig(betas=BETAS, schedule="linear") == config
    with pytest.raises(UsageError, match="--num-timesteps 1000 is not the number of --betas, 3"):
        DiffusionConfig(betas=BETAS, num_timesteps=1000)
    assert DiffusionConfig().num_timesteps == 1000
    with pytest.raises(UsageError, match=r"beta_1 = 0\.5 leaves alpha_bar at 0"):
        next(prepare_plan(TrainConfig(data="absent", betas=(1.0, 0.5)), None))


@pytest.mark.parametrize("rescaled", [False, True])
def test_the_process_is_that_of_the_betas_then_rescaled(rescaled):
    own = make_process(DiffusionConfig(betas=BETAS, zero_terminal_snr=rescaled))
    assert own.betas.tolist() == pytest.approx(zero_terminal_snr(BETAS) if rescaled else BETAS)
    for name, schedule in SCHEDULES.items():
        size = {"num_timesteps": 20, "target": "v"}
        config = DiffusionConfig(schedule=name, zero_terminal_snr=rescaled, **size)
        expected = zero_terminal_snr(schedule(20)) if rescaled else schedule(20)
        assert make_denoiser(None, config).process.betas.tolist() == expected


@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("zero_terminal_snr", [True, False])
def test_the_network_is_shown_t_itself_where_times_are_not_rescaled(rescaled, zero_terminal_snr):
    config = {"num_timesteps": 4, "target": "v", "zero_terminal_snr": zero_terminal_snr}
    process = make_process(DiffusionConfig(**config, rescale_timesteps=rescaled))
    assert process.timesteps.tolist() == [k * (250 if rescaled else 1) for k in range(4)]


def test_a_flag_beats_the_file_in_either_direction(folder):
    (folder / "two.txt").write_text("0.1 0.2")
    both = {"betas": list(BETAS), "schedule": "cosine", "num_timesteps": 3}
    assert configure({"data": "x"}, both).betas == BETAS
    typed = configure({"data": "x", "schedule": "linear"}, both)
    assert (typed.betas, typed.schedule, typed.num_timesteps) == (None, "linear", 3)
    for filed in (both, {"schedule": "linear", "num_timesteps": 50}):
        typed = configure({"data": "x", "betas": "two.txt"}, filed)
        assert (typed.betas, typed.schedule, typed.num_timesteps) == ((0.1, 0.2), None, 2)
    with pytest.raises(UsageError, match="--num-timesteps 7 is not the number of --betas"):
        configure({"data": "x", "num_timesteps": 7}, both)


def test_resume_takes_the_betas_of_the_run(folder):
    (folder / "two.txt").write_text("0.1 0.2")
    run = RunDirectory("m.safetensors")
    run.config.parent.mkdir(parents=True)
    stored = configure({"data": "x", "betas": "b.txt", "out": "m.safetensors"})
    run.config.write_text(to_toml(to_file(stored)))
    given = {"data": "x", "out": "m.safetensors", "resume": True}
    assert configure(given).betas == BETAS
    assert configure({**given, "betas": "b.txt", "num_timesteps": 3}).betas == BETAS
    assert configure(given, {"betas": list(BETAS), "schedule": "cosine"}).betas == BETAS
    for wrong in ({"betas": "two.txt"}, {"schedule": "cosine"}, {"num_timesteps": 4}):
        with pytest.raises(UsageError, match=f"--{next(iter(wrong)).replace('_', '-')}"):
            configure({**given, **wrong})


# -- the model file -------------------------------------------------------------------------------

UNET = plan(size=4, channels=1, width=4, groups=2, multipliers=(1,), blocks=1, attention=())


def saved(path, betas=BETAS):
    blueprint = UNET.blueprint(DiffusionConfig(betas=betas, zero_terminal_snr=True))
    training = to_file(TrainConfig(data="x", betas=betas), control=False, places=False)
    weights = UNET.build().state_dict()
    model_file.save(path, StoredModel(blueprint=blueprint, ema=weights, training=training))
    return model_file.load(path)


def test_a_model_file_keeps_its_betas(folder):
    loaded = saved(folder / "m.safetensors")
    assert loaded.blueprint.diffusion == DiffusionConfig(betas=BETAS, zero_terminal_snr=True)
    assert loaded.blueprint.denoiser(None).process.betas.tolist() == zero_terminal_snr(BETAS)
    assert configure({"data": "x", "init": "m.safetensors"}).betas == BETAS
    other = configure({"data": "x", "init": "m.safetensors", "schedule": "linear"})
    assert (other.betas, other.schedule) == (None, "linear")
    most = tuple(torch.linspace(1e-4, 2e-4, 100_000, dtype=torch.float64).tolist())
    assert saved(folder / "m.safetensors", most).blueprint.diffusion.betas == most
    named = replace(loaded, training={**loaded.training, "betas": "b.txt"})
    model_file.save(folder / "m.safetensors", named)
    with pytest.raises(ModelFileError):  # a path, which is not read
        model_file.load(folder / "m.safetensors")


HOSTILE = [
    "b.txt", "/dev/zero", [math.nan, 0.5], [0.5, 2.0], [0.5, "0.5"], [0.5] * 1_000_000, [], [0.5],
    5, {"a": 0.5}, [None, 0.5], [True, 0.5], [1.0, 0.5, 0.5], [[0.5, 0.5]], None,
]  # fmt: skip


@pytest.mark.parametrize("betas", mostly_slow(HOSTILE, always=6), ids=lambda v: str(v)[:12])
def test_hostile_betas_are_rejected(folder, betas):
    path = folder / "m.safetensors"
    saved(path)
    changes = {"betas": betas, "num_timesteps": len(betas) if isinstance(betas, list) else 3}
    changed = change_description(path.read_bytes(), lambda own: own["diffusion"].update(changes))
    path.write_bytes(changed)
    with pytest.raises(ModelFileError, match=r"m\.safetensors") as caught:
        model_file.load(path)
    assert len(str(caught.value)) < 1000


# -- training -------------------------------------------------------------------------------------


def test_diffuse_trains_on_the_numbers_of_a_file_and_does_not_need_it_again(train, step_takes):
    step_takes(1.0)
    assert DiffusionConfig.from_dict({"betas": "b.txt"}).betas == BETAS
    options = ("--steps", 2, "--betas", "b.txt", "--zero-terminal-snr")
    Path("dry.toml").write_text(train(*options, "--dry-run").ok().out)
    train(*options).ok()
    Path("b.txt").unlink()
    train("--config", "dry.toml", "-o", "again.safetensors").ok()
    assert Path("again.safetensors").read_bytes() == Path("model.safetensors").read_bytes()
    assert model_file.load("model.safetensors").blueprint.diffusion.betas == BETAS
