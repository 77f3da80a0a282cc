"""`diffuse train`: what it writes, what it refuses to replace, where its options come from."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import MODEL, RUN, log_rows
from lab import QUICK, write_images
from PIL import Image
from safetensors.torch import load_file

import diffuse_cli
from diffuse_cli.system.events import Notice
from diffuse_cli.training.batches import Batches
from diffuse_cli.training.trainer import Trainer


def files_of(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_train_writes_the_model_and_its_run_directory(quick):
    assert quick("--steps", 6, "--save-every", 2, "--preview-every", 3, "--log-every", 2).code == 0
    assert MODEL.exists()
    assert tomllib.loads((RUN / "config.toml").read_text())["steps"] == 6
    checkpoints = sorted(p.name for p in (RUN / "checkpoints").iterdir())
    assert checkpoints == ["step-00000004", "step-00000006"]
    manifest = json.loads((RUN / "checkpoints/step-00000006/manifest.json").read_text())
    assert {"model.safetensors", "ema.safetensors", "optimizer.safetensors"} <= {*manifest["files"]}
    assert [m["step"] for m in log_rows() if "loss" in m] == [2, 4, 6]
    assert [m["step"] for m in log_rows() if "held_out_loss" in m] == [3, 6]
    previews = sorted(p.name for p in (RUN / "previews").iterdir())
    assert previews == ["step-00000003.png", "step-00000006.png"]
    assert not (RUN / "cache").exists()
    assert not list(Path().rglob("*.tmp"))


def test_train_says_what_it_chose_and_what_to_type_next(train, diffuse):
    line = ("--accumulation", 2, "--size", "6x8", "--lr", 0.01, "-o", "deep/er/x.safetensors")
    ran = train("--steps", 4, "--stop-at", 2, *line)
    lines = ran.err.splitlines()
    chosen = next(k for k, line in enumerate(lines) if line.startswith("training "))
    found = diffuse("info", "deep/er/x.safetensors", "--json").json
    assert lines[chosen] == (
        f"training unet, preset tiny, {found['parameters']:,} parameters; "
        "images at 6 high x 8 wide, cropped at the center by up to 25 %; "
        "batch 8 in 2 parts, learning rate 0.01, "
        "fp32 on cpu; 4 steps"
    )
    assert all("step 2" not in line for line in lines[: chosen + 1])
    assert lines[-1] == "Generate images with: diffuse sample deep/er/x.safetensors"
    assert ran.out == "deep/er/x.safetensors\n"
    assert Path("deep/er/x.run/config.toml").exists()
    assert [path.name for path in Path().iterdir()] == ["deep"]


@pytest.mark.parametrize("lost", [None, MODEL, RUN], ids=["whole", "no model", "no run"])
def test_a_second_train_is_refused_before_any_computing(quick, monkeypatch, lost):
    quick("--steps", 2)
    if lost:
        lost.rename("lost")
    before = files_of(Path())
    monkeypatch.setattr(Trainer, "step", Mock(side_effect=AssertionError))
    quick("--steps", 2).fails(5, "--overwrite", "--resume")
    assert {**files_of(Path()), RUN / "lock": None} == {**before, RUN / "lock": None}


def test_overwrite_starts_again(quick, model_of_4):
    quick("--steps", 5, "--seed", 1, "--save-every", 2, "--log-every", 1)
    assert quick("--steps", 4, "--overwrite", "--log-every", 1).code == 0
    assert [m["step"] for m in log_rows() if "loss" in m] == [1, 2, 3, 4]
    assert [p.name for p in (RUN / "checkpoints").iterdir()] == ["step-00000004"]
    assert MODEL.read_bytes() == model_of_4


def test_overwrite_that_cannot_start_leaves_what_was_there(quick, diffuse, lab):
    quick("--steps", 2)
    before = files_of(Path())
    assert diffuse("train", lab["empty"], "--overwrite").code == 3
    assert files_of(Path()) == before


# -- options --------------------------------------------------------------------------------------


def test_dry_run_is_toml_with_the_costs_and_writes_nothing(train, untimed):
    ran = train("--steps", 5, "--dry-run").ok()
    config = tomllib.loads(ran.out)
    assert config["steps"] == 5
    assert config["size"] == [8, 8]
    assert config["unet"]["width"] == 8
    costs, seen = ran.out.splitlines()[:2]
    assert costs.startswith("# ")
    assert "parameters" in costs
    assert re.fullmatch(r"# 8x8: 40 images in .*, each of 54 images 0\.741 times", seen)
    assert not list(Path().iterdir())


# -- the same bytes -------------------------------------------------------------------------------


def test_equal_seeds_give_equal_bytes_and_others_do_not(quick, model_of_4):
    for seed in (0, 1):
        assert quick("--steps", 4, "--overwrite", "--seed", seed).code == 0
        assert (MODEL.read_bytes() == model_of_4) == (seed == 0)


@pytest.mark.parametrize(
    "option",
    ["--workers 1", "--log-every 1 --preview-every 2 --save-every 1", "--log tensorboard"],
)
def test_what_cannot_change_the_weights_does_not(quick, option, model_of_4):
    ran = quick("--steps", 4, *option.split()).ok()
    assert MODEL.read_bytes() == model_of_4
    if "tensorboard" in option:
        (look,) = re.findall(r"tensorboard --logdir (\S+)$", ran.err, re.MULTILINE)
        assert list(Path(look).rglob("events.out.tfevents*"))
        assert Path(look) == RUN / "logs"


@pytest.fixture
def model_of_4(lab):
    return lab.trained(*lab.quick, "--steps", 4).read_bytes()


# -- --init ---------------------------------------------------------------------------------------


def test_init_starts_from_the_weights_and_the_configuration_of_a_model(diffuse, images, model):
    tiny = ("--steps", 1, "--warmup", 0, "--lr", 0, "--weight-decay", 0)
    diffuse("train", images, "--init", model, *tiny).ok()
    before, after = load_file(model), load_file(MODEL)
    names = [name for name in before if not name.startswith("raw.")]
    assert all(after[name].equal(before[name]) for name in names)
    config = tomllib.loads((RUN / "config.toml").read_text())
    assert (config["num_timesteps"], config["batch_size"], config["unet"]["width"]) == (100, 8, 8)


# -- odd data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "sizes", "said"), [(12, 9, True), (12, 3, False), (3, 3, True), (2, 2, False)]
)
def test_a_handful_of_images_of_all_sizes_is_said_before_training(
    diffuse, tmp_path, count, sizes, said
):
    folder = tmp_path / "my docs"
    folder.mkdir()
    for k in range(count):
        Image.new("L", (8 + k % sizes, 8), k).save(folder / f"{k}.png")
    ran = diffuse("train", "my docs", "--config", QUICK, "--size", 8, "--steps", 1).ok()
    line = f"only {count} images of {sizes} sizes in my docs: if they show different"
    assert (line in ran.err) == said
    if said:
        assert ran.err.index(line) < ran.err.index("1 step")
        todo = ran.err[ran.err.index("diffuse info ") :].split("\n")[0]
        assert diffuse(*shlex.split(todo)[1:], "-q").code == 0


def test_images_of_a_program_are_looked_at_by_no_command(tmp_path):
    images = [Image.new("L", (8 + k, 8), k) for k in range(5)]
    out = str(tmp_path / "model.safetensors")
    events = diffuse_cli.train(images, out=out, steps=1, size=8, config=QUICK)
    said = [event.text for event in events if isinstance(event, Notice)]
    (notice,) = (text for text in said if "only 5 images of 5 sizes" in text)
    assert "diffuse info" not in notice


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_images_than_a_batch_train(diffuse, tmp_path, count):
    few = write_images(tmp_path / "few", count)
    ran = diffuse("train", few, "--config", QUICK, "--steps", 3).ok()
    assert ("copies of it" in ran.err) == (count == 1)
    assert "held-out" not in ran.err


def test_the_held_out_images_are_in_no_batch(quick, monkeypatch):
    seen = []
    samples = Batches.samples
    monkeypatch.setattr(
        Batches, "samples", lambda self, i: seen.append((self, i)) or samples(self, i)
    )
    quick("--steps", 7, "--preview-every", 100)
    batches = seen[0][0]
    trained = {int(k) for _, indices in seen[:7] for k in indices}
    assert trained == {*map(int, batches.plan.data.train)}
    assert len(batches.plan.data.held_out) == 6
    assert not trained & {*map(int, batches.plan.data.held_out)}
