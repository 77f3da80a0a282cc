"""The page and the animation of `noise-demo --model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from diffuse_cli.commands.noise_demo import demo_page
from diffuse_cli.commands.noise_demo.forward_process import log_snr, over_time
from diffuse_cli.commands.noise_demo.reverse_process import Journey
from diffuse_cli.media import MEDIA, figures
from diffuse_cli.media.figures import FAINT, Sheet
from diffuse_cli.system.events import Progress, Work

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

FORMULA = (
    r"forward: the {one} with noise $\varepsilon$;   reverse, from right to left: what is drawn "
    r"from the same $\varepsilon$;   expected: $E[x_0|x_t]$ by the model"
)
GIVEN = ", which is told what is given"

BLUE, RED, GREEN = (figures.color(i) for i in range(3))


def times_of(journey: Journey, steps: int) -> list[int]:
    """At most `steps` timesteps of a journey, evenly spaced."""
    every = journey.times
    count = min(steps, len(every))
    return [every[round(i * (len(every) - 1) / (count - 1))] for i in range(count)]


def heard(journey: Journey) -> dict[str, Mapping[int, Any]]:
    """The stored samples of each row by timestep."""
    forward, reverse = journey.forward, journey.reverse
    return {
        "forward": forward.x,
        "forward: expected": forward.x0,
        "reverse": reverse.x,
        "reverse: expected": reverse.x0,
    }


def draw(journey: Journey, steps: int) -> Image.Image:
    """The page of a journey, with at most `steps` pictures in a row."""
    times = times_of(journey, steps)
    forward, reverse, near = journey.forward, journey.reverse, journey.reverse_near

    def level(t: int) -> str:
        return rf"$\bar\alpha$ = {figures.readable(journey.process.alpha_bar(t))}"

    def off(t: int) -> str:
        return f"off by {journey.said(journey.missed(t))}"

    def seen(numbers: Mapping[int, Any]) -> Callable[[int], Any]:
        return lambda t: journey.look(numbers[t])

    rows = [
        demo_page.Row("forward", BLUE, seen(forward.x), level),
        demo_page.Row("expected", BLUE, seen(forward.x0), off),
        demo_page.Row("reverse", RED, seen(reverse.x), lambda t: ""),
        demo_page.Row("expected", RED, seen(reverse.x0), lambda t: ""),
    ]
    one = MEDIA[journey.space.medium].ONE
    legend, told = [(f"from the {one}", BLUE)], journey.told
    if told is not None:
        shown, what = told.shown, told.what
        once: dict[int, Any] = {times[0]: shown}
        rows.append(demo_page.Row("given", FAINT, once.get, lambda t: what))
    if near is not None:
        away = near.distances
        rows.append(
            demo_page.Row(
                "nearest", GREEN, seen(near.images), lambda t: f"{journey.said(away[t])} away"
            )
        )
        legend += [(f"from the nearest {one} of DATA", GREEN), ("the same in reverse", RED)]
    plots: list[Callable[[Axes], object]] = [
        partial(_distances, journey=journey),
        partial(log_snr, scene=journey, times=times),
    ]
    formula = FORMULA.replace("{one}", one) + (GIVEN if told else "")
    return demo_page.draw(journey.title, formula, rows, times, legend, plots)


def _distances(axes: Axes, journey: Journey) -> None:
    """How far the expected x_0 is from the image, and from its nearest of DATA, over t / T."""
    times, total = journey.times, journey.num_timesteps
    title = f"expected $x_0$: how far away it is, in {journey.unit} (root mean square)"
    over_time(axes, title)
    x = [t / total for t in times]
    style: dict[str, Any] = {"linewidth": 1.8, "clip_on": False, "zorder": 3}
    missed = [journey.missed(t) for t in times]
    axes.plot(x, missed, color=BLUE, **style)
    for near, color in ((journey.forward_near, GREEN), (journey.reverse_near, RED)):
        if near is not None:
            axes.plot(x, [near.distances[t] for t in times], color=color, **style)
    axes.set_ylim(bottom=0)


# -- the animation --------------------------------------------------------------------------------

SECONDS, HOLD, DPI, WIDTH, GAP, HEAD = 4.0, 1.5, 100, 1.6, 0.14, 0.7
NAMES = ("forward", "expected", "reverse", "expected")


def animate(journey: Journey) -> Work[bytes]:
    """Both ways and what is expected on them, from t = T - 1 to 0."""
    height, width = journey.look(journey.image).shape[-2:]
    zoom = max(1, round(DPI * WIDTH / max(height, width)))
    w, h = zoom * width / DPI, zoom * height / DPI
    pitch = max(w, 0.9) + GAP
    sheet = Sheet(len(NAMES) * pitch + GAP, HEAD + h + GAP, DPI)
    label = sheet.text(len(NAMES) * pitch / 2, 0.26, "", ha="center", fontsize=11)
    lefts = [GAP + i * pitch + (pitch - GAP - w) / 2 for i in range(len(NAMES))]
    for name, left, color in zip(NAMES, lefts, (BLUE, BLUE, RED, RED), strict=True):
        sheet.text(left + w / 2, HEAD - 0.08, name, ha="center", fontsize=9, color=color)
    ways = journey.forward, journey.reverse
    frames = []
    for t in reversed(journey.times):
        label.set_text(f"$t$ = {t} of {journey.num_timesteps}")
        sheet.images.clear()
        shown = [side[t] for way in ways for side in (way.x, way.x0)]
        for left, numbers in zip(lefts, shown, strict=True):
            sheet.image(left, HEAD, journey.look(numbers), zoom)
        frames.append(sheet.render())
        yield Progress("animating", len(frames), len(journey.times))
    return figures.gif(frames, seconds=SECONDS, hold=HOLD)
