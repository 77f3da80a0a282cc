"""HTML report of an evaluation."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffuse_cli.config.eval_options import EvalConfig, TuneConfig
from diffuse_cli.config.options import place_name, to_arguments
from diffuse_cli.data.summary import plural
from diffuse_cli.evaluation.image_sets import FINGERPRINTS
from diffuse_cli.evaluation.report import sections
from diffuse_cli.evaluation.results import EvaluationResult, strip_folders
from diffuse_cli.evaluation.tune.candidates import TuningResult
from diffuse_cli.pages.templates import render, render_page

COLORS = {1: "grey", 3: "color"}


def page(
    config: EvalConfig,
    found: EvaluationResult,
    numbers: Mapping[str, Any],
    swept: TuningResult | None = None,
    asked: TuneConfig | None = None,
) -> str:
    """Render an evaluation as HTML. A repeated evaluation differs only in the seconds.

    Args:
        numbers: the object that `--json` prints.
        swept: the result of `tune` before the evaluation, or None.
        asked: the configuration of `tune`.
    """
    shown = found.shown
    assert shown is not None
    parts: dict[str, tuple[str, dict[str, Any]]] = {
        "samples": ("Samples", sections.samples(found, shown)),
        "numbers": ("Metrics", sections.numbers(found)),
        "distributions": ("Channels and frequencies", sections.distributions(found)),
        **(
            {"answers": ("Conditions and results", sections.answers(shown))}
            if shown.answers
            else {}
        ),
        "classes": ("Class by class", sections.classes(found, shown)),
        "bits": ("Bits by timestep", sections.bits(found)),
        "training": ("Training", sections.training(found, Path(config.subject))),
        **({"sweep": ("Samplers, steps and guidance", sections.sweep(swept))} if swept else {}),
        "nearest": (f"Nearest training {found.words.many}", sections.nearest(found, shown)),
        "repeat": ("Repeat this", _repeat(config, found, numbers, asked)),
    }
    every = {"words": found.words, "model": found.model}
    return render_page(
        "page",
        f"Evaluation of {place_name(config.subject)}",
        subject=place_name(config.subject),
        data=place_name(config.data),
        found=found,
        color=COLORS if found.words.one == "image" else {},
        plural=plural,
        verdict=[remark for remark in found.remarks if remark.level != "note"],
        sections=[
            (name, title, render(name, **every, **data)) for name, (title, data) in parts.items()
        ],
    )


def _repeat(
    config: EvalConfig,
    found: EvaluationResult,
    numbers: Mapping[str, Any],
    asked: TuneConfig | None,
) -> dict[str, Any]:
    name = "tune" if asked else "eval"
    typed = [name, *to_arguments(asked or config, places=False)]
    return {
        "command": shlex.join(["diffuse", *typed]),
        "facts": {name: _format_value(value) for name, value in _facts(config, found).items()},
        "json": json.dumps(strip_folders(numbers), indent=2),
    }


def _facts(config: EvalConfig, found: EvaluationResult) -> dict[str, Any]:
    """Return everything that the metrics depend on, by readable names."""
    many = found.words.many
    subject = {"model" if found.model else f"generated {many}": place_name(config.subject)}
    names = {key: f"fingerprint of {of.format(many=many)}" for key, of in FINGERPRINTS.items()}
    made = {f"model made with {k}": v for k, v in found.model.get("versions", {}).items()}
    return {
        **subject,
        f"real {many}": place_name(config.data),
        "which of them": {"held-out": "the held-out part", "all": "all"}[found.part],
        f"number of {many}": f"{found.generated:,} generated, {found.real:,} real",
        **{names[key]: value for key, value in found.fingerprints.items()},
        **{name.replace("_", " "): value for name, value in found.settings.items()},
        **{f"feature network: {k.replace('_', ' ')}": v for k, v in found.features.items()},
        **made,
        **found.made_with,
        **(
            {f"training {many} compared in features": f"at most {config.train_n:,}"}
            if "memorized_features" in found.values
            else {}
        ),
        "seconds": f"{found.seconds:,.1f}",
    }


def _format_value(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
