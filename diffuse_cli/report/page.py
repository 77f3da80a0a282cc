"""The whole page, from a title down to what it takes to repeat the numbers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffuse_cli import __version__
from diffuse_cli.config import EvalConfig, TuneConfig
from diffuse_cli.data.summary import plural
from diffuse_cli.evaluation import Evaluated
from diffuse_cli.options import to_arguments
from diffuse_cli.report import courses, sections, style
from diffuse_cli.report.elements import Child, Markup, element, join, table
from diffuse_cli.report.sections import paragraph, section
from diffuse_cli.report.sweeps import sweep
from diffuse_cli.report.verdict import verdict
from diffuse_cli.sweeps.recommending import Tuned

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for the page: nothing but what is in it, and no script at all."""


def page(
    config: EvalConfig,
    found: Evaluated,
    numbers: Mapping[str, Any],
    swept: Tuned | None = None,
    asked: TuneConfig | None = None,
) -> str:
    """An HTML file with all that was found. The same evaluation gives the same, but for seconds.

    Args:
        numbers: what `--json` prints, for JSON.
        swept: what `tune` tried before, if it did.
        asked: the configuration of that.
    """
    shown = found.shown
    assert shown is not None
    parts: dict[str, tuple[str, Child]] = {
        "numbers": ("The numbers", sections.numbers(found)),
        "samples": ("Samples", sections.samples(shown, found)),
        "classes": ("Class by class", sections.classes(shown, found)),
        "bits": ("Bits by timestep", courses.bits(found)),
        "training": ("The training", courses.training(found, Path(config.subject))),
        **({"sweep": ("Samplers, steps and guidance", sweep(swept))} if swept else {}),
        "nearest": ("Nearest training images", sections.twins(shown, found)),
        "repeat": ("Repeat this", _repeat(config, found, numbers, asked)),
    }
    links = [element("a", title, href=f"#{name}") for name, (title, _) in parts.items()]
    title = f"Evaluation of {Path(config.subject).name}"
    body = join(
        element("header", element("h1", title), paragraph(_about(config, found))),
        element("div", _verdict(found), class_="verdict"),
        element("nav", links, aria_label="Sections"),
        [section(heading, name, content) for name, (heading, content) in parts.items()],
    )
    head = join(
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="generator", content=f"diffuse {__version__}"),
        element("title", title),
        element("style", Markup(style.css())),
    )
    whole = element(
        "html", element("head", head), element("body", element("main", body)), lang="en"
    )
    return f"<!DOCTYPE html>\n{whole}\n"


def _verdict(found: Evaluated) -> Markup:
    items = []
    for line in verdict(found):
        name, rest = line.split(":", 1)
        items.append(element("li", element("strong", name, ":"), rest))
    return join(element("h2", "In short"), element("ul", items))


def _about(config: EvalConfig, found: Evaluated) -> Markup:
    """What was measured against what."""
    subject, data = element("code", config.subject), element("code", config.data)
    which = " that the model was never trained on" if found.part == "held-out" else ""
    against = [f" measured against {found.real:,} real images from ", data, f"{which}."]
    if not found.model:
        first = "How alike the images in the folder "
        return join(
            first, subject, f" are to real images: {found.generated:,} of them were", against
        )
    model, settings = found.model, found.settings
    channels, height, width = model["shape"]
    colour = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    classes = f" of {len(model['classes'])} classes" if model["classes"] else ""
    guided = f", guidance {settings['guidance']:g}" if "guidance" in settings else ""
    return join(
        "How well the diffusion model ",
        subject,
        " draws images, and how well it predicts them. "
        f"It was trained for {plural(model['step'], 'step')}, has {model['parameters']:,} "
        f"parameters, and draws {colour} images of {width} × {height} pixels{classes}. "
        f"{found.generated:,} images "
        f"that it drew ({settings['sampler']}, {plural(settings['steps'], 'step')}{guided}, seed "
        f"{settings['seed']}) were",
        against,
    )


def _repeat(
    config: EvalConfig, found: Evaluated, numbers: Mapping[str, Any], asked: TuneConfig | None
) -> Markup:
    typed = ["tune", *to_arguments(asked)] if asked else ["eval", *to_arguments(config)]
    command = shlex.join(["diffuse", *typed])
    rows = [[name, _plain(value)] for name, value in _facts(config, found).items()]
    text = json.dumps(numbers, indent=2)
    return join(
        paragraph(
            "This command gives the same numbers on the same machine with the same versions; on "
            "others they may differ in their last digits."
        ),
        element("pre", element("code", command)),
        table(["setting", "value"], rows, class_="settings"),
        element(
            "details",
            element("summary", "All numbers as JSON, as the command prints with --json"),
            element("pre", element("code", text)),
        ),
    )


def _facts(config: EvalConfig, found: Evaluated) -> dict[str, Any]:
    """Everything that the numbers depend on, by a name for people."""
    subject = {"model": config.subject} if found.model else {"generated images": config.subject}
    names = {"data": "fingerprint of the real images",
             "subject": "fingerprint of the generated images"}  # fmt: skip
    made = {f"model made with {k}": v for k, v in found.model.get("versions", {}).items()}
    return {
        **subject,
        "real images": config.data,
        "which of them": {"held-out": "the held-out part", "all": "all"}[found.part],
        "number of images": f"{found.generated:,} generated, {found.real:,} real",
        **{names[key]: value for key, value in found.fingerprints.items()},
        **{name.replace("_", " "): value for name, value in found.settings.items()},
        **{f"feature network: {k.replace('_', ' ')}": v for k, v in found.features.items()},
        **made,
        **found.made_with,
        "training images compared in features": f"at most {config.train_n:,}",
        "seconds": f"{found.seconds:,.1f}",
    }


def _plain(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
