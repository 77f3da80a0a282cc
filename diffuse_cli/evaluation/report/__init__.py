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
from diffuse_cli.evaluation.results import EvaluationResult, TuningResult, strip_folders
from diffuse_cli.pages.templates import render, render_page

COLORS = {1: "grey", 3: "color"}


def page(
    config: EvalConfig,
    result: EvaluationResult,
    numbers: Mapping[str, Any],
    swept: TuningResult | None = None,
    tune_config: TuneConfig | None = None,
) -> str:
    """Render an evaluation as HTML. A repeated evaluation differs only in the seconds.

    Args:
        numbers: the object that `--json` prints.
        swept: the result of `tune` before the evaluation, or None.
        tune_config: the configuration of `tune`.
    """
    images = result.images
    assert images is not None
    parts: dict[str, tuple[str, dict[str, Any]]] = {
        "samples": ("Samples", sections.samples(result, images)),
        "numbers": ("Metrics", sections.numbers(result)),
        "distributions": ("Channels and frequencies", sections.distributions(result)),
        **(
            {"answers": ("Conditions and results", sections.paired_images(images))}
            if images.paired_images
            else {}
        ),
        "classes": ("Class by class", sections.classes(result, images)),
        "bits": ("Bits by timestep", sections.bits(result)),
        "training": ("Training", sections.training(result, Path(config.subject))),
        **({"sweep": ("Samplers, steps and guidance", sections.sweep(swept))} if swept else {}),
        "nearest": (f"Nearest training {result.words.many}", sections.nearest(result, images)),
        "repeat": ("Repeat this", _repeat(config, result, numbers, tune_config)),
    }
    every = {"words": result.words, "model": result.model}
    return render_page(
        "page",
        f"Evaluation of {place_name(config.subject)}",
        subject=place_name(config.subject),
        data=place_name(config.data),
        result=result,
        color=COLORS if result.words.one == "image" else {},
        plural=plural,
        verdict=[remark for remark in result.remarks if remark.level != "note"],
        sections=[
            (name, title, render(name, **every, **data)) for name, (title, data) in parts.items()
        ],
    )


def _repeat(
    config: EvalConfig,
    result: EvaluationResult,
    numbers: Mapping[str, Any],
    tune_config: TuneConfig | None,
) -> dict[str, Any]:
    name = "tune" if tune_config else "eval"
    typed = [name, *to_arguments(tune_config or config, places=False)]
    return {
        "command": shlex.join(["diffuse", *typed]),
        "facts": {name: _format_value(value) for name, value in _facts(config, result).items()},
        "json": json.dumps(strip_folders(numbers), indent=2),
    }


def _facts(config: EvalConfig, result: EvaluationResult) -> dict[str, Any]:
    """Return everything that the metrics depend on, by readable names."""
    many = result.words.many
    subject = {"model" if result.model else f"generated {many}": place_name(config.subject)}
    names = {key: f"fingerprint of {text.format(many=many)}" for key, text in FINGERPRINTS.items()}
    versions = {f"model made with {k}": v for k, v in result.model.get("versions", {}).items()}
    return {
        **subject,
        f"real {many}": place_name(config.data),
        "which of them": {"held-out": "the held-out part", "all": "all"}[result.part],
        f"number of {many}": f"{result.generated:,} generated, {result.real:,} real",
        **{names[key]: value for key, value in result.fingerprints.items()},
        **{name.replace("_", " "): value for name, value in result.settings.items()},
        **{f"feature network: {k.replace('_', ' ')}": v for k, v in result.features.items()},
        **versions,
        **result.made_with,
        **(
            {f"training {many} compared in features": f"at most {config.train_n:,}"}
            if "memorized_features" in result.values
            else {}
        ),
        "seconds": f"{result.seconds:,.1f}",
    }


def _format_value(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
