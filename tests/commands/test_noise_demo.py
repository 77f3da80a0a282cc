"""noise-demo's work: the right pictures in the right places, warnings, refusals, same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from diffuse_cli.commands import noise_demo
from diffuse_cli.commands.noise_demo import forward_process
from diffuse_cli.commands.noise_demo.demo_page import HOLD, PAGE, Layout
from diffuse_cli.config.task_options import DemoConfig
from diffuse_cli.core import SCHEDULES, Process, Space
from diffuse_cli.media import figures
from diffuse_cli.system.errors import OutputError
from diffuse_cli.system.events import Notice, Progress, finish
from diffuse_cli.system.rng import draw_noise


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a grey square, a colored oblong, and a transparent picture."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(1)
    Image.fromarray(draw.integers(0, 256, (28, 28), np.uint8)).save("grey.png")
    Image.fromarray(draw.integers(0, 256, (20, 36, 3), np.uint8)).save("color.png")
    Image.new("RGBA", (12, 12), (0, 0, 0, 0)).save("clear.png")
    return tmp_path


def run(image: str = "grey.png", **options: Any) -> tuple[tuple[Path, ...], list[Any]]:
    events: list[Any] = []
    work = noise_demo.demonstrate(DemoConfig(image=image, **options))
    return finish(work, events.append), events


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> list[forward_process.Scene]:
    """The scenes that are drawn, without drawing them."""
    kept: list[forward_process.Scene] = []

    def draw(scene: forward_process.Scene, steps: int) -> Image.Image:
        kept.append(scene)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(forward_process.Scene, "draw", draw)
    return kept


def warnings_of(events: list[Any]) -> list[str]:
    return [e.text for e in events if isinstance(e, Notice) and e.warning]


def count_of(page: np.ndarray, pixels: np.ndarray, zoom: int) -> int:
    """How often (C, H, W), `zoom` times enlarged, stands in the page to the last dot."""
    tile = np.broadcast_to(pixels.transpose(1, 2, 0), (*pixels.shape[1:], 3))
    large = tile.repeat(zoom, 0).repeat(zoom, 1)
    h, w = large.shape[:2]
    places = np.argwhere((page[: 1 - h, : 1 - w] == large[0, 0]).all(2))
    for y, x in [(i * h // 7, i * w // 9) for i in range(1, 7)]:
        places = places[(page[places[:, 0] + y, places[:, 1] + x] == large[y, x]).all(1)]
    return sum(np.array_equal(page[y : y + h, x : x + w], large) for y, x in places)


@pytest.mark.parametrize(
    ("image", "schedules", "size"),
    [("grey.png", ("cosine",), None), ("color.png", ("linear", "cosine"), (24, 16))],
)  # fmt: skip
def test_every_cell_is_the_forward_process(
    image: str, schedules: tuple[str, ...], size: tuple[int, int] | None
) -> None:
    (path,), _ = run(image, schedule=schedules, steps=4, num_timesteps=100, seed=7, size=size)
    page = np.asarray(Image.open(path))
    picture = Image.open(image)
    if size is not None:
        picture = ImageOps.fit(picture, size[::-1], Image.Resampling.BICUBIC)
    levels = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
    space = Space(channels=len(levels), size=levels.shape[1:])
    x0 = space.to_model(torch.tensor(levels))
    zoom = Layout.of(len(schedules), 4, *x0.shape[1:]).zoom
    noise = draw_noise(7, "noise-demo", shape=x0.shape)
    for name in schedules:
        bars = Process(SCHEDULES[name](100)).alpha_bars
        for t in (0, 33, 66, 99):
            x_t = float(bars[t].sqrt()) * x0 + float((1 - bars[t]).sqrt()) * noise
            assert count_of(page, space.to_stored(x_t).numpy(), zoom) == 1, (name, t)
    assert count_of(page, space.to_stored(noise * 0.7).numpy(), zoom) == 0


def test_same_request_same_bytes() -> None:
    """Whatever the matplotlibrc says. Another seed shows other noise:
    `test_every_cell_is_the_forward_process` knows which."""
    options = {"gif": True, "steps": 2, "num_timesteps": 3, "schedule": ("cosine",)}
    (first, moving), _ = run("color.png", **options)
    before = first.read_bytes(), moving.read_bytes()
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "red"}):
        run("color.png", overwrite=True, **options)
    assert (first.read_bytes(), moving.read_bytes()) == before
    assert not Image.open(first).info


@pytest.mark.usefixtures("scenes")
def test_gif_stands_beside_the_picture_moves_and_loops(folder: Path) -> None:
    two = ("linear", "cosine")
    paths, events = run("color.png", out="deep/a.png", gif=True, schedule=two, num_timesteps=12)
    assert paths == (Path("deep/a.png"), Path("deep/a.gif"))
    with Image.open(paths[1]) as moving:
        assert moving.n_frames == 12
        assert moving.info["loop"] == 0
        first = np.asarray(moving.convert("RGB"))
        moving.seek(11)
        assert moving.info["duration"] > 1000 * HOLD
        last = np.asarray(moving.convert("RGB"))
    assert (first != last).any(2).mean() > 0.1
    progress = [e for e in events if isinstance(e, Progress)]
    assert progress[-1].done == progress[-1].total == 12
    assert sorted(p.name for p in (folder / "deep").iterdir()) == ["a.gif", "a.png"]


@pytest.mark.usefixtures("scenes")
def test_large_animation_stays_small() -> None:
    draw = np.random.default_rng(2)
    Image.fromarray(draw.integers(0, 256, (300, 300, 3), np.uint8)).save("large.png")
    (_, moving), _ = run("large.png", gif=True, schedule=("linear", "cosine"), num_timesteps=8)
    assert moving.stat().st_size < 3_000_000 * 8 / forward_process.FRAMES


@pytest.mark.parametrize(
    ("size", "options", "shown", "more"),
    [
        ((1024, 1024), {}, (125, 125), "250x250"),
        ((3000, 2000), {"schedule": ("cosine",)}, (171, 256), "342x512"),
        ((3000, 2000), {"schedule": ("cosine",), "steps": 64}, (83, 125), "166x250"),
        ((160, 130), {}, (102, 125), "130x160"),
        ((125, 100), {}, (100, 125), ""),
        ((3000, 2000), {"size": (40, 300)}, (40, 300), ""),
    ],
)
def test_a_large_image_is_shown_smaller_and_says_so(
    scenes: list[forward_process.Scene],
    size: tuple[int, int],
    options: dict[str, Any],
    shown: tuple[int, int],
    more: str,
) -> None:
    Image.new("RGB", size).save("large.png")
    _, events = run("large.png", **options)
    assert scenes[0].space.size == shown
    texts = [e.text for e in events if isinstance(e, Notice) and "shown at" in e.text]
    assert len(texts) == bool(more)
    if more:
        assert texts[0].startswith("large.png is ")
        assert texts[0].endswith(f"; pass --size {more} for more detail")
        height, width = map(int, more.split("x"))
        run("large.png", **{**options, "size": (height, width), "overwrite": True})
        assert scenes[1].space.size == (height, width)


@pytest.mark.usefixtures("scenes")
def test_warning_where_the_image_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    weak = [0.03] * 100
    monkeypatch.setitem(SCHEDULES, "weak", lambda num_timesteps: weak[:num_timesteps])
    (warning,) = warnings_of(run(schedule=("weak", "cosine"), steps=2, num_timesteps=100)[1])
    assert warning.startswith("x_99 still has a part of the image: weak 21.8% (log-SNR -3.0).")
    assert f"weak {100 * 0.97**50:.1f}%" in warning
    assert "cosine" not in warning
    assert "--zero-terminal-snr" in warning


@pytest.mark.usefixtures("scenes")
def test_one_warning_names_all_that_end_too_early() -> None:
    (warning,) = warnings_of(run(num_timesteps=2, steps=2)[1])
    assert all(f"{name} " in warning for name in ("linear", "cosine", "laplace"))
    assert not any(f"{name} " in warning for name in ("constant", "sqrt"))
    again = {"steps": 2, "overwrite": True}
    assert not warnings_of(run(num_timesteps=2, zero_terminal_snr=True, **again)[1])
    assert not warnings_of(run(schedule=("linear", "cosine"), num_timesteps=1000, **again)[1])


# -- what is shown --------------------------------------------------------------------------------


Shown = Callable[..., forward_process.Scene]


@pytest.fixture
def shown(scenes: list[forward_process.Scene]) -> Shown:
    """What options show."""

    def show(**options: Any) -> forward_process.Scene:
        run(overwrite=True, **options)
        return scenes.pop()

    return show


def test_without_a_schedule_all_are_shown(shown: Shown) -> None:
    scene = shown()
    assert list(scene.processes) == list(SCHEDULES)
    for name, make in SCHEDULES.items():
        assert scene.processes[name].betas.tolist() == make(1000)
    assert list(shown(schedule=("sqrt", "linear")).processes) == ["sqrt", "linear"]


def test_the_rescale_applies_to_every_row(shown: Shown, folder: Path) -> None:
    (folder / "own.txt").write_text("0.1 0.2 0.3")
    scene = shown(zero_terminal_snr=True, betas="own.txt")
    assert all(float(p.alpha_bars[-1]) == 0 for p in scene.processes.values())
    assert scene.title.endswith("T = 3,  zero terminal SNR")


def test_a_log_snr_of_minus_infinity_is_drawn_at_the_lower_edge(shown: Shown) -> None:
    scene = shown(zero_terminal_snr=True, num_timesteps=20)
    axes = figures.Sheet(4, 3, 50).axes(1, 1, 2, 1)
    lines = forward_process.log_snr(axes, scene.processes, [0])
    assert len(lines) == len(SCHEDULES)
    for line, process in zip(lines, scene.processes.values(), strict=True):
        *before, last = np.asarray(line.get_ydata()).tolist()
        assert before == pytest.approx([process.log_snr(t) for t in range(19)])
        assert last == axes.get_ylim()[0] < min(before)


def test_the_right_plot_reads_both_variances(shown: Shown) -> None:
    scene = shown(num_timesteps=20)
    axes = figures.Sheet(4, 3, 50).axes(1, 1, 2, 1)
    forward_process.variances(axes, scene.processes, [0])
    for line, process in zip(axes.lines, scene.processes.values(), strict=True):
        assert np.asarray(line.get_ydata()) == pytest.approx(process.alpha_bars.numpy())
    axes.figure.canvas.draw()
    (right,) = axes.child_axes
    height = axes.transData.transform((0, 0.3))[1]
    assert right.transData.transform((0, 0.7))[1] == pytest.approx(height)


def test_the_picture_is_fitted_and_laid_on_the_background(shown: Shown) -> None:
    scene = shown(image="color.png", size=(36, 36), fit="pad", background="navy")
    levels = scene.space.to_stored(scene.x0[None])[0]
    assert levels[:, 0, 0].tolist() == [0, 0, 128]
    own = np.asarray(Image.open("color.png")).transpose(2, 0, 1)
    assert levels[:, 8:28].numpy().tolist() == own.tolist()
    scene = shown(image="clear.png", background="#0000ff")
    assert scene.space.to_stored(scene.x0[None])[0, :, 5, 5].tolist() == [0, 0, 255]


@pytest.mark.usefixtures("scenes")
def test_what_is_wrong_with_the_picture_is_a_warning() -> None:
    Image.open("color.png").save("odd.png", icc_profile=b"x" * 200)
    _, events = run("odd.png", schedule=("cosine",))
    assert warnings_of(events) == ["odd.png: broken color profile, which is ignored"]


def test_a_tiff_of_floats_is_an_array(shown: Shown) -> None:
    field = np.random.default_rng(3).normal(9, 2, (12, 16)).astype(np.float32)
    Image.fromarray(field).save("field.tif")
    scene = shown(image="field.tif")
    assert (scene.space.medium, scene.space.levels, scene.space.size) == ("array", None, (12, 16))
    assert np.allclose(scene.space.to_stored(scene.x0[None])[0, 0], field, atol=1e-4)


def test_a_file_of_betas_is_a_row_of_its_name(shown: Shown, folder: Path) -> None:
    (folder / "own.txt").write_text("0.1\n0.2\n0.3\n")
    scene = shown(schedule=("linear",), betas="own.txt", num_timesteps=3)
    assert list(scene.processes) == ["linear", "own.txt"]
    assert scene.processes["own.txt"].betas.tolist() == [0.1, 0.2, 0.3]
    assert scene.num_timesteps == 3
    (folder / "linear").write_text("0.1 0.2")
    scene = shown(schedule=("linear",), betas="linear")
    assert list(scene.processes) == ["linear", "linear (file)"]


BETAS = {"betas": "$_of {betas}^.txt"}
ONE = {"schedule": ("cosine",)}


@pytest.mark.parametrize(
    ("shape", "options", "tallest"),
    [
        ((28, 28), {"zero_terminal_snr": True, **BETAS}, 1.75),  # a line each
        ((28, 28), {"steps": 14, **BETAS}, 9),  # two lines each
        ((1, 1), ONE, 9),
        ((200, 3), {"steps": 12, **ONE}, 9),
        ((3, 700), {"steps": 30, **ONE}, 9),
        ((30, 20), {"steps": 64, **ONE}, 9),
        ((9, 9), {"num_timesteps": 2, "schedule": ("linear", "cosine")}, 9),
    ],
)
def test_rows_and_odd_shapes_fit_on_a_page(
    folder: Path, shape: tuple[int, int], options: dict[str, Any], tallest: float
) -> None:
    (folder / "$_of {betas}^.txt").write_text(" ".join(["0.01"] * 40))
    name = f"od$d_{{ {'long ' * 20}.png"
    Image.fromarray(np.zeros(shape, np.uint8)).save(name)
    (path,), _ = run(name, out="a.png", **options)
    page = np.asarray(Image.open(path).convert("L"))
    edges = [page[0], page[-1], page[:, 0], page[:, -1]]
    assert all((edge == 255).all() for edge in edges), "something is cut off"
    assert page.shape[0] < tallest * page.shape[1]


@pytest.mark.parametrize("shape", [(28, 28), (36, 20), (200, 3), (3, 200)])
def test_the_pictures_of_nine_rows_are_no_higher_than_a_page(shape: tuple[int, int]) -> None:
    lines = Layout.of(9, 8, *shape)
    assert 9 * lines.line <= PAGE + 1e-9
    assert lines.height * shape[1] == pytest.approx(lines.width * shape[0])


def test_an_existing_animation_is_refused_before_anything_is_read(folder: Path) -> None:
    (folder / "grey.noise-demo.gif").write_bytes(b"mine")
    (folder / "grey.png").unlink()
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        run(gif=True)
    assert (folder / "grey.noise-demo.gif").read_bytes() == b"mine"
