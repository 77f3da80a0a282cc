"""Find the best sampler, steps and guidance for a model.

Tries every sampler with several numbers of steps, then guidance scales, autoguidance and another
initial noise. Recommends the cheapest setting that is as good as the best.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffuse_cli.commands import eval as evaluation
from diffuse_cli.commands._cli import Console
from diffuse_cli.config.eval_options import TuneConfig
from diffuse_cli.metrics import label, presentation
from diffuse_cli.metrics.features import describe_network
from diffuse_cli.system import Styled, Table, files, outputs, processes, replace_nonfinite

if TYPE_CHECKING:
    from diffuse_cli.evaluation.results import TuningResult
    from diffuse_cli.sampling.setting_search import Trial

CONFIG = TuneConfig
EXAMPLES = (
    "diffuse tune model.safetensors photos -o tuned.safetensors",
    "diffuse tune model.safetensors photos --samplers unipc,ddim --steps 10,20",
)

HEADS = (
    "sampler", "steps", "start", "guidance", "weak guidance", "noise levels", "evaluations",
    "seconds",
)  # fmt: skip


def run(config: TuneConfig, console: Console) -> None:
    """Tune, and print what was tried and recommended. With --report, also evaluate that."""
    from diffuse_cli.evaluation.tune import make_eval_config, tune

    with outputs.claim_option(config.report, ".html", config.overwrite, "--report") as report:
        if report is None:
            tuned = console.follow(tune(config))
            if processes.rank() == 0:
                values = {"subject": config.subject, "data": config.data, **to_json(tuned)}
                console.show(values, list_parts(tuned))
            return
        from diffuse_cli.evaluation.evaluation_run import evaluate
        from diffuse_cli.evaluation.report import page
        from diffuse_cli.system.accelerator import open_accelerator

        with open_accelerator(config.precision, config.device) as accelerator:
            tuned = console.follow(tune(config, accelerator))
            chosen = make_eval_config(config, tuned.recommended)
            scores = console.follow(evaluate(chosen, accelerator))
        if scores is None:
            return
        values = {**scores.to_json(chosen), "sweep": to_json(tuned)}
        files.write_text(report, page(chosen, scores, replace_nonfinite(values), tuned, config))
    console.show(values, [*list_parts(tuned), "", *evaluation.list_parts(scores)])


def to_json(tuned: TuningResult) -> dict[str, object]:
    """Return the result as plain values."""
    values = dataclasses.asdict(tuned)
    del values["words"]
    return {**values, **{n: str(values[n]) if values[n] else None for n in ("out", "plot")}}


def list_parts(tuned: TuningResult) -> list[str | Table]:
    """Return a row for each setting, the recommendation, and the files written."""
    keys = [tuned.metric]
    keys += [key for key in ("frechet_distance", "recall") if key in tuned.rows[0].values]
    rows = [(*HEADS, *map(label, keys)), *(_cells(row, keys) for row in tuned.rows)]
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    part = tuned.words.name_part(tuned.part)
    return [
        Table([*zip(*columns, strict=True)]),
        f"n = {tuned.n:,} generated against {tuned.real:,} real ({part}) for each; "
        f"{describe_network(tuned.features)}; seconds per {tuned.words.one} on {tuned.device}",
        Styled(f"recommended: {tuned.recommended}", "title"),
        *(files.show(path) for path in (tuned.plot, tuned.out) if path),
    ]


def _cells(row: Trial, keys: Sequence[str]) -> tuple[str, ...]:
    setting = row.setting
    return (
        setting.sampler,
        f"{setting.steps}",
        setting.start or "",
        *(
            "" if scale is None else f"{scale:g}"
            for scale in (setting.guidance, setting.weak_guidance)
        ),
        "{:g} to {:g}".format(*setting.guidance_interval) if setting.guidance_interval else "",
        f"{row.evaluations}",
        f"{row.seconds:.3g}",
        *(presentation.format_measurement(row.values, key) for key in keys),
    )
