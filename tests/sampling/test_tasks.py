"""`inpaint`, `upscale`, `restore`, `vary` and `interpolate` as a user runs them."""

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import in_process, manifest, pixels
from covering_array import covering
from edited_models import altered
from file_operations import ends_at, killed_while
from lab import write_images
from PIL import Image

from diffuse_cli.config.sample_options import DrawConfig
from diffuse_cli.core import RESTORATIONS
from diffuse_cli.core.degradations import parse
from diffuse_cli.sampling import tasks
from diffuse_cli.sampling.model_loading import load_denoiser, load_guide
from diffuse_cli.sampling.sampling_settings import resolve_settings
from diffuse_cli.sampling.tasks.variations import measure_psnr, slerp
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.system.events import finish

QUICK = ("--steps", 4, "--sampler", "ddim", "--precision", "fp32", "-q")
methods = pytest.mark.parametrize("method", list(RESTORATIONS))


@pytest.fixture
def picture(diffuse, lab):
    """An image and masks of it here, and an image of 4x4."""
    shutil.copy(lab["images"] / "light" / "001.png", "a.png")
    shutil.copy(lab["masks"] / "hole.png", "hole.png")
    Image.fromarray(np.asarray(Image.open("hole.png"))[:4, :4] // 2 + 60).save("tiny.png")


def model_numbers(levels):
    return torch.from_numpy(levels).double()[None, None] / 127.5 - 1


# -- what is seen is kept -------------------------------------------------------------------------


@methods
def test_known_pixels_and_means_are_kept_to_the_last_level(diffuse, model, picture, method):
    """Those that a mask keeps, and the means of an upscaled image."""
    line = ("-n", 3, "--method", method, *QUICK)
    diffuse("inpaint", model, "a.png", "--mask", "hole.png", *line).ok()
    before, hole = np.asarray(Image.open("a.png"), int), np.asarray(Image.open("hole.png")) > 0
    after = [pixels("inpainted", k) for k in range(3)]
    for image in after:
        assert (image[~hole] == before[~hole]).all()
        assert (image[hole] != before[hole]).mean() > 0.5
    assert (after[0] != after[1]).any()
    diffuse("upscale", model, "tiny.png", "--factor", 2, *line).ok()
    small = np.asarray(Image.open("tiny.png"), float)
    after = [pixels("upscaled", k) for k in range(3)]
    for large in after:
        assert large.shape == (8, 8)
        assert np.abs(large.reshape(4, 2, 4, 2).mean((1, 3)) - small).max() <= 1
    assert (after[0] != after[1]).any()


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_drawn_where_no_mask_is_given(diffuse, model, picture, kind):
    """As with a mask of it; what hardly shows is drawn, too."""
    before, hole = Image.open("a.png"), Image.open("hole.png")
    erased = before.copy()
    if kind == "P":
        levels = np.asarray(before) // 2 + 1
        Image.fromarray(levels).save("a.png")
        levels = np.where(np.asarray(hole) > 0, 0, levels).astype(np.uint8)
        erased = Image.fromarray(levels, "P")
        erased.putpalette([v for v in range(256) for _ in range(3)])
        erased.save("erased.png", transparency=0)
    else:
        alpha = np.where(np.asarray(hole) > 0, 60, 255).astype(np.uint8)
        erased.putalpha(Image.fromarray(alpha))
        erased.convert(kind).save("erased.png")
    assert diffuse("inpaint", model, "a.png", "--mask", "hole.png", "-n", 2, *QUICK).code == 0
    diffuse("inpaint", model, "erased.png", "-n", 2, "-o", "b", *QUICK).ok()
    for k in range(2):
        assert (pixels("b", k) == pixels("inpainted", k)).all()


def test_what_is_transparent_is_fitted_as_the_picture_is(diffuse, model, picture):
    """Cropped alike; what pads it is kept, and so is what is hardly transparent."""
    erased = Image.new("LA", (32, 16), (90, 250))
    erased.paste((0, 0), (8, 0, 16, 16))
    erased.save("wide.png")
    for fit, left in (("crop", 0), ("pad", 2), ("stretch", 2)):
        diffuse("inpaint", model, "wide.png", "--fit", fit, "-n", 1, "-o", fit, *QUICK).ok()
        found = pixels(fit, 0)
        rows = slice(2, 6) if fit == "pad" else slice(None)
        kept = np.ones((8, 8), bool)
        kept[rows, max(0, left - 1) : 5] = False  # its border is drawn, too
        assert set(found[kept]) <= {91, 92, 93, 94, 255}, fit
        assert (np.abs(found[rows, left:4] - 92) > 8).mean() > 0.3, fit


@methods
def test_a_larger_picture_is_finished_in_windows(diffuse, model, picture, method):
    """With --size; without it the picture is shrunk, and how to keep it is said."""
    noise = np.random.default_rng(5).integers(0, 256, (12, 20), np.uint8)
    Image.fromarray(noise).save("large.png")
    hole = np.zeros((12, 20), np.uint8)
    hole[3:9, 5:15] = 255
    Image.fromarray(hole).save("large-hole.png")
    line = ("inpaint", model, "large.png", "--mask", "large-hole.png", "-n", 2, *QUICK)
    diffuse(*line, "--size", "12x20", "--method", method, "--json").ok()
    for k in range(2):
        found = pixels("inpainted", k)
        assert (found[hole == 0] == noise[hole == 0]).all()
    if method != "ddnm":
        return
    ran = diffuse(*line[:-1], "-o", "small").ok()
    assert "12 high x 20 wide: resized to 8x8" in ran.err
    assert ". To keep it, pass --size 12x20" in ran.err
    assert pixels("small", 0).shape == (8, 8)


def test_upscaling_and_variations_go_beyond_the_models_size(diffuse, model, picture):
    """4x4 becomes 16x16 with a model of 8x8, and 8x8 where that is typed."""
    small = np.asarray(Image.open("tiny.png"), int)
    assert diffuse("upscale", model, "tiny.png", *QUICK).code == 0
    found = pixels("upscaled", 0)
    assert found.shape == (16, 16)
    assert np.abs(found.reshape(4, 4, 4, 4).mean((1, 3)) - small).max() <= 1
    typed = ("--factor", 2, "--size", 8, "-o", "less")
    assert diffuse("upscale", model, "tiny.png", *typed, *QUICK).code == 0
    assert pixels("less", 0).shape == (8, 8)
    Image.open("a.png").resize((16, 8)).save("wide.png")
    assert diffuse("vary", model, "wide.png", "--size", "8x16", "--strength", 0.5, *QUICK).code == 0
    assert pixels("varied", 0).shape == (8, 16)


FORMS = ("low-res:2", "mask:half", "mask:strokes", "blur:0.8", "noise:0.3")


@pytest.mark.parametrize(("form", "method"), covering(FORMS, RESTORATIONS, strength=1))
def test_the_result_degraded_again_is_what_was_seen(diffuse, model, picture, form, method):
    """Of each with each, core/test_restoration.py."""
    line = ("restore", model, "a.png", "--degrade", "--degradation", form, "--method", method)
    diffuse(*line, "-n", 2, "--jumps", 2, "--seed", 3, *QUICK).ok()
    if form in ("mask:strokes", "noise:0.3"):
        assert manifest("restored")["degradation"] == form
        assert (pixels("restored") != np.asarray(Image.open("a.png"), int)).mean() > 0.2
        return
    a = parse(form)
    wanted = a.apply(model_numbers(np.asarray(Image.open("a.png"), int)))
    for k in range(2):
        found = a.apply(model_numbers(pixels("restored", k)))
        assert float((found - wanted).abs().max()) <= 2 / 255 + 1e-9  # levels are 2 / 255 apart


def test_what_is_hidden_in_a_degraded_picture_has_no_effect(diffuse, model, picture):
    before = np.asarray(Image.open("a.png")).copy()
    line = ("restore", model, "--degradation", "mask:half", "-n", 1, *QUICK)
    diffuse(*line, "a.png", "-o", "a")
    before[:, 4:] = 7
    Image.fromarray(before).save("b.png")
    diffuse(*line, "b.png", "-o", "b")
    assert (pixels("a", 0) == pixels("b", 0)).all()
    assert Path("a/grid.png").read_bytes() == Path("b/grid.png").read_bytes()
    assert (pixels("a", 0)[:, :4] == before[:, :4]).all()


# -- samples of pictures --------------------------------------------------------------------------


def test_samples_do_not_depend_on_batches_or_on_other_pictures(diffuse, model):
    several = write_images(Path("several"), 3)
    line = ("restore", model, "--degradation", "low-res:2", "--degrade", *QUICK, "-n", 3)
    diffuse(*line, several, "-o", "a")
    diffuse(*line, several, "-o", "b", "--batch-size", 2)
    files = sorted(p.name for p in Path("a").glob("0*.png"))
    assert len(files) == 9
    assert all((Path("a") / f).read_bytes() == (Path("b") / f).read_bytes() for f in files)
    named = manifest("a")["inputs"]
    assert named == ["dark/000.png", "dark/002.png", "light/001.png"]
    diffuse(*line, several / named[1], "-o", "alone", "-n", 2)
    for j in range(2):
        assert (pixels("alone", j) == pixels("a", 3 + j)).all()


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(diffuse, pair, model):
    several = write_images(Path("several"), 3)
    line = ("restore", model, several, "--degradation", "mask:box", "--degrade", "-n", 2, *QUICK)
    assert diffuse(*line, "-o", "one").code == 0
    pair(*line, "-o", "two").ok()
    for k in range(6):
        assert (pixels("one", k) == pixels("two", k)).all()


def test_the_manifest_says_how_and_jumps_take_more_steps(diffuse, model, picture):
    line = ("inpaint", model, "a.png", "--mask", "hole.png", "-n", 2, "--seed", 5, *QUICK[:-1])
    said = {jumps: diffuse(*line, "--jumps", jumps, "-o", jumps).err for jumps in (1, 3)}
    assert "step 4/4" in said[1]
    assert "step 12/12" in said[3]
    assert (pixels("1", 0) != pixels("3", 0)).any()
    ran = diffuse(*line, "--jumps", 3, "-o", "3", "-q", "--json")
    found, images = manifest("3"), ["00000.png", "00001.png"]
    wanted = {
        "task": "inpaint", "method": "pigdm", "degradation": "mask", "jumps": 3, "seed": 5, "n": 2,
        "sampler": "ddim", "steps": 4, "inputs": ["a.png"], "format": "diffuse.samples",
        "precision": "fp32", "images": images,
    }  # fmt: skip
    assert found.items() >= wanted.items()
    digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path("3").iterdir()}
    assert found["files"] == {name: digests[Path("3", name)] for name in (*images, "grid.png")}
    assert ran.json["images"] == [f"3/{name}" for name in images]
    assert ran.json["grid"] == "3/grid.png"
    assert found["model"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    with Image.open("3/grid.png") as grid:
        assert grid.size == (4 * 64 + 3 * 2, 64)  # the picture, what is kept of it, two samples


def test_a_class_is_drawn_where_one_is_named(diffuse, conditional, images, picture):
    line = ("restore", conditional, "a.png", "--degradation", "mask:half", "-n", 2, *QUICK)
    for name, more in (
        ("free", ()),
        ("dark", ("--class", "dark")),
        ("both", ("--class", "dark", "--class", "light")),
        ("mmps", ("--class", "dark", "--class", "light", "--method", "mmps")),
    ):
        diffuse(*line, *more, "-o", name).ok()
    assert "classes" not in manifest("free")
    assert manifest("both")["classes"] == ["dark", "light"]
    assert (pixels("dark", 0) == pixels("both", 0)).all()
    assert (pixels("dark", 1) != pixels("both", 1)).any()
    levels = ("--class", "dark", "--guidance-interval", "0.3,3")
    assert diffuse(*line, *levels, "-o", "levels").code == 0
    assert manifest("levels")["guidance_interval"] == [0.3, 3]
    line = ("interpolate", conditional, "a.png", images / "dark" / "002.png", "-n", 3, "-q")
    for name in ("light", "dark"):
        between = ("--steps", 9, "--class", name, "-o", f"between-{name}")
        assert diffuse(*line, *between).code == 0
    assert (pixels("between-light", 1) != pixels("between-dark", 1)).any()


def test_a_weak_model_guides_a_method_that_takes_gradients(diffuse, weak, picture):
    line = ("restore", weak, "a.png", "--degradation", "mask:half", "-n", 1, *QUICK)
    assert diffuse(*line, "--weak-guidance", 2, "--method", "pigdm").code == 0
    assert manifest("restored")["weak_guidance"] == 2


@pytest.mark.parametrize("guided", [False, True])
def test_gradients_go_through_the_network_and_its_guide(weak, guided):
    """A network in inference mode would give wrong ones without a word: x_0 has x_t in it, too."""
    config = DrawConfig(precision="fp32", device="cpu", guide_with="self" if guided else None)
    with open_accelerator("fp32", "cpu") as accelerator:
        loaded = finish(load_denoiser(weak, "ema", accelerator, "fp32"))
        guide = finish(load_guide(config, loaded, accelerator))
        settings = resolve_settings(config, loaded.model, guide=guide)
    denoise = settings.add_guidance(loaded.denoiser)
    g = torch.Generator().manual_seed(1)
    x, way = torch.randn(2, 2, 1, 8, 8, generator=g)
    x = x.requires_grad_()
    x0 = denoise(x, 60).x0
    (gradient,) = torch.autograd.grad(x0, x, way)
    with torch.no_grad():
        ahead, behind = (denoise(x + step * way, 60).x0 for step in (1e-2, -1e-2))
    found, wanted = (gradient * way).sum(), ((ahead - behind) / 2e-2 * way).sum()
    assert float(found) == pytest.approx(float(wanted), rel=1e-2)
    assert all(not x0.requires_grad for x0 in (ahead, behind))


def test_the_strength_says_how_far_variations_go(diffuse, model, picture):
    before = np.asarray(Image.open("a.png"), int)
    off = []
    for strength in (0, 0.5, 1):
        line = ("vary", model, "a.png", "--strength", strength, "-n", 8, "-o", strength)
        assert diffuse(*line, *QUICK, "--steps", 10).code == 0
        off.append(np.mean([np.abs(pixels(str(strength), k) - before).mean() for k in range(8)]))
    assert off[0] < off[1] < off[2]
    assert off[0] < 15
    assert manifest("0.5")["strength"] == 0.5


# -- interpolate ----------------------------------------------------------------------------------


def test_both_ends_come_back_from_their_noise(diffuse, model, images, picture):
    other = images / "dark" / "002.png"
    ran = diffuse("interpolate", model, "a.png", other, "-n", 5, "--json", "-q").ok()
    found = manifest("interpolated")
    assert all(value is None or value > 40 for value in ran.json["psnr"])
    assert (found["steps"], found["sampler"], found["task"]) == (100, "ddim", "interpolate")
    assert found["inputs"] == ["a.png", "002.png"]
    ends = [np.asarray(Image.open(path), int) for path in ("a.png", other)]
    for k, end in ((0, ends[0]), (4, ends[1])):
        assert np.abs(pixels("interpolated", k) - end).max() <= 2
    means = [pixels("interpolated", k).mean() for k in range(5)]
    assert means[0] > means[2] > means[4]
    with Image.open("interpolated/grid.png") as grid:
        assert grid.size == (5 * 64 + 4 * 2, 64)


def test_interpolation_takes_the_steps_that_there_are(diffuse, lab, picture):
    short = lab.trained(*lab.tiny, "--num-timesteps", 8, "--steps", 1)
    ran = diffuse("interpolate", short, "a.png", "a.png", "-n", 2).ok()
    assert manifest("interpolated")["steps"] == 8
    assert "a.png is reproduced from its noise" in ran.err
    assert (pixels("interpolated", 0) == pixels("interpolated", 1)).all()


def test_the_great_circle_keeps_the_length():
    a, b = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    between = slerp(a, b, torch.linspace(0, 1, 5))
    assert torch.allclose(between[0], a, atol=1e-6)
    assert torch.allclose(between[4], b, atol=1e-5)
    assert torch.allclose(between.flatten(1).norm(dim=1), a.norm(), rtol=0.07)  # straight: 0.7
    assert torch.allclose(slerp(a, a, torch.tensor([0.3]))[0], a)


def test_the_ratio_is_of_the_range_and_the_error():
    a = np.zeros((1, 2, 2), np.uint8)
    assert measure_psnr(a, a, 256) is None
    assert measure_psnr(a, a + 1, 256) == pytest.approx(48.13, abs=0.01)
    silence = np.zeros((1, 4), np.float32)
    assert measure_psnr(silence, silence + 0.1, None) == pytest.approx(20, abs=0.01)


@pytest.mark.parametrize("side", [8, 32])
def test_a_mask_of_ones_is_one_of_white(diffuse, model, side):
    """Also a thin line of a larger mask."""
    Image.new("L", (side, side), 90).save("gray.png")
    line = np.zeros((side, side), np.uint8)
    line[:, side // 2 - 3] = 1
    for name, white in (("white", 255), ("one", 1)):
        Image.fromarray(line * white).save(f"{name}.png")
        mask = ("--mask", f"{name}.png", "-n", 1, "-o", name)
        assert diffuse("inpaint", model, "gray.png", *mask, *QUICK).code == 0
    assert Path("one/00000.png").read_bytes() == Path("white/00000.png").read_bytes()


# -- what cannot be done --------------------------------------------------------------------------


def test_earlier_samples_are_kept_until_new_ones_are_there(diffuse, model, picture):
    line = ("vary", model, "a.png", "-n", 2, *QUICK)
    assert diffuse(*line).code == 0
    before = pixels("varied", 0)
    diffuse("vary", model, "nowhere.png", "--overwrite", *QUICK).fails(3)
    assert (pixels("varied", 0) == before).all()
    assert diffuse(*line, "--seed", 1, "--overwrite", "-n", 1).code == 0
    assert (pixels("varied", 0) != before).any()
    assert not (Path("varied") / "00001.png").exists()
    ran = diffuse("vary", model, "varied/00000.png", "--overwrite", *QUICK, "--json")
    assert (ran.code, ran.json["error"]["code"]) == (2, "output_is_input")


def test_a_model_that_knows_no_picture_without_a_class_asks_for_one(diffuse, conditional, picture):
    altered(conditional, Path("m.safetensors"), training={"label_dropout": 0.0})
    diffuse("vary", "m.safetensors", "a.png", *QUICK).fails(2, "--class is missing", "dark, light")
    assert diffuse("vary", "m.safetensors", "a.png", "--class", "dark", "-n", 1, *QUICK).code == 0


@pytest.mark.slow
def test_a_task_that_is_killed_leaves_whole_files_and_can_be_repeated(diffuse, model, picture):
    line = ["inpaint", model, "a.png", "--mask", "hole.png", "-n", 2, "--steps", 1, "-q"]
    line += ["--method", "ddnm"]  # a process forked after a gradient may not be able to take one
    assert diffuse(*line, "-o", "whole").code == 0
    wanted = {path.name: path.read_bytes() for path in Path("whole").iterdir()}
    moment, kept = 0, set[str]()
    while killed_while(lambda: in_process([*line, "-o", "cut"]), ends_at(moment)):
        found = {p.name: p.read_bytes() for p in Path("cut").glob("[!.]*")}
        assert found.items() <= wanted.items(), moment
        kept |= found.keys()
        if "manifest.json" in found:
            assert found == wanted
        if moment % 3 == 0:
            assert diffuse(*line, "-o", "cut").code == 0, moment
            there = {path.name: path.read_bytes() for path in Path("cut").iterdir()}
            assert {k: v for k, v in there.items() if k != ".lock"} == wanted
        shutil.rmtree("cut", ignore_errors=True)
        moment += 7
    assert moment > 30
    assert kept == wanted.keys()


def test_a_finished_task_is_left_as_it_is_and_one_of_other_settings_is_refused(
    diffuse, model, picture, instead_of_networks
):
    line = ("restore", model, "a.png", "--degradation", "blur:2", "-n", 2, *QUICK[:-1])
    first = diffuse(*line)
    before = {path: path.read_bytes() for path in Path("restored").iterdir()}
    instead_of_networks()
    again = diffuse(*line)
    assert (again.code, again.out) == (0, first.out)
    assert "restored is complete" in again.err
    others = {"--seed 1": "seed", "--degrade": "", "--batch-size 3": "batch size", "-n 3": "n"}
    for options, name in others.items():
        diffuse(*line, *options.split(), "-q").fails(5, f"with other settings: {name}")
    Image.fromarray(255 - np.asarray(Image.open("a.png"))).save("a.png")
    diffuse(*line, "-q").fails(5, "with other settings: pictures")
    assert {path: path.read_bytes() for path in Path("restored").iterdir()} == before


def test_a_mask_that_is_cropped_away_is_named_as_that(diffuse, model, picture):
    Image.new("L", (24, 8), 90).save("wide.png")
    mask = np.zeros((8, 24), np.uint8)
    mask[:, :4] = 255
    Image.fromarray(mask).save("left.png")
    ran = diffuse("inpaint", model, "wide.png", "--mask", "left.png", *QUICK)
    ran.fails(3, "left.png: the part to generate is outside the 8x8 crop. Pass --fit pad")


def test_the_cost_of_windows_is_said(diffuse, model, picture, monkeypatch):
    """The time is that of the process with the most samples: here of four, and a window takes a
    second."""
    Image.new("L", (24, 16), 90).save("large.png")
    line = ("vary", model, "large.png", "--steps", 2, "-n")
    assert "To keep it, pass --size 16x24, which takes 15 times as long" in diffuse(*line, 1).err
    ran = diffuse(*line, 1, "--size", "16x24", "-o", "b")
    assert "16 high x 24 wide in 15 overlapping windows of 8x8: 1 sample takes about " in ran.err
    assert re.search(r"about \d\.\d minutes and \d+\.\d MiB of memory beyond the", ran.err)
    assert "For less, pass fewer --steps" in ran.err  # with one sample and no gradient
    more = ("upscale", model, "large.png", "--factor", 2, "--steps", 2, "-n", 2)
    assert "For less, pass --method ddnm or a smaller -n or fewer --steps" in diffuse(*more).err
    monkeypatch.setattr(tasks, "measure_seconds", lambda denoise, x, t, gradients: float(len(x)))
    monkeypatch.setattr(tasks, "world_size", lambda: 4)
    for count, minutes in ((1, "0.5"), (5, "1.0")):
        ran = diffuse(*line, count, "--strength", 1, "--size", "16x24", "-o", count)
        assert f"about {minutes} minutes" in ran.err


def test_the_size_that_keeps_a_picture_is_said_unless_it_is_too_large(diffuse, model, picture):
    """An input of a model of 8x8 is 4x4 for `low-res:2`."""
    for width in (12, 1200, 5000):
        Image.new("L", (width, 8), 90).save(f"{width}.png")
    line = ("restore", model, "12.png", "--degradation", "low-res:2", "-n", 1, "--steps", 2)
    ran = diffuse(*line)
    assert "8 high x 12 wide: resized to 4x4" in ran.err
    assert ". To keep it, pass --size 16x24, which takes 15 times as long" in ran.err
    assert diffuse(*line, "--size", "16x24", "-o", "kept").code == 0
    assert pixels("kept").shape == (16, 24)
    ran = diffuse("upscale", model, "1200.png", *QUICK)
    ran.fails(2, "--factor 4: the result is 32 high x 4800 wide, and a side is at most")
    ran = diffuse("vary", model, "5000.png", "-n", 1, *QUICK[:-1]).ok()
    assert "8 high x 5000 wide: resized to 8x8" in ran.err
    assert "--size" not in ran.err
