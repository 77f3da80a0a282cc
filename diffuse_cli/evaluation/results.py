"""Result of an evaluation, and its verdict: one sentence in plain words, before the metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse_cli.config.eval_options import EvalConfig
from diffuse_cli.config.options import place_name
from diffuse_cli.config.sample_options import SamplerChoice
from diffuse_cli.evaluation.examples import ReportImages
from diffuse_cli.metrics import Remark, Values, Words, presentation, select_numbers
from diffuse_cli.metrics.features import KIDS
from diffuse_cli.sampling.setting_search import Trial

PLACES = ("subject", "data", "plot", "pairs", "report", "out")
"""Keys of the JSON of `eval` and `tune` that are paths of this machine."""


def strip_folders(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object that `--json` prints for publication, with file names instead of paths."""
    named = {k: place_name(v) for k, v in numbers.items() if k in PLACES and isinstance(v, str)}
    swept = {k: strip_folders(v) for k, v in numbers.items() if k == "sweep"}
    return {**numbers, **named, **swept}


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation, with the settings that comparisons need.

    Attributes:
        values: the metrics by key.
        classes: the metrics and counts of each class on both sides.
        terms: the variational bound by timestep, for a model.
        details: further results of the metrics, by their names.
        real, generated: the number of images on each side.
        part: the part of the real images: `held-out` or `all`.
        features: the feature network, see `FeatureNetwork.describe`.
        settings: the settings of sampling and of the variational bound.
        fingerprints: the fingerprints of DATA, and of a measured folder.
        made_with: versions and the machine.
        plot, pairs, report: the paths of the bound's plot, the page of nearest training images
            and the report, or None.
        remarks: sentences on the meaning of the metrics.
        words: the names of the medium's samples.
        images: the images of the report, or None.
    """

    values: dict[str, float]
    classes: dict[str, dict[str, float]]
    terms: list[dict[str, Any]]
    details: dict[str, Any]
    real: int
    generated: int
    part: str
    features: dict[str, str]
    settings: dict[str, Any]
    seconds: float
    model: dict[str, Any]
    fingerprints: dict[str, str]
    made_with: dict[str, str]
    plot: Path | None
    pairs: Path | None
    report: Path | None
    remarks: list[Remark]
    words: Words
    images: ReportImages | None

    @property
    def verdict(self) -> str:
        """Verdict in plain words, see `summarize`."""
        count = min(self.real, self.generated)
        return summarize(self.values, self.remarks, self.words, count=count, model=bool(self.model))

    def to_json(self, config: EvalConfig) -> dict[str, object]:
        """Return the metrics, and the settings that comparisons need."""
        values = dataclasses.asdict(dataclasses.replace(self, images=None, remarks=[]))
        del values["images"], values["words"]
        values["remarks"] = [str(remark) for remark in self.remarks if remark.warns]
        numbers = values.pop("values")
        counts = {"real": values.pop("real"), "generated": values.pop("generated")}
        for name in ("plot", "pairs", "report"):
            values[name] = str(values[name]) if values[name] else None
        return {"subject": config.subject, "data": config.data, "n": counts, **numbers, **values}


@dataclass(frozen=True)
class TuningResult:
    """Settings that were tried, and the recommended setting.

    Attributes:
        rows: the settings in the order of measurement.
        metric: the key of the metric that decides. Lower is better.
        n, real: the number of images generated for each setting, and of real images.
        part: the part of the data with the real images: `held-out` or `all`.
        features: the name and weights hash of the feature network, and its resizing.
        settings: the settings that all rows have in common.
        device: the device of the timings.
        words: the names of the medium's samples.
        out, plot: the paths of the model file with the recommendation and of the plot, or None.
    """

    rows: tuple[Trial, ...]
    recommended: SamplerChoice
    metric: str
    n: int
    real: int
    part: str
    features: dict[str, str]
    settings: dict[str, Any]
    device: str
    out: Path | None
    plot: Path | None
    words: Words


CLOSE = 0.15
"""The largest KID that counts as close, as a fraction of the KID of blurred real images. After ten
minutes of training, garments that look real are at 0.10, and CIFAR-10, where subjects cannot be
recognized, at 0.32."""


FEWEST = 30
"""Fewer samples on a side are too few to call them close."""


def summarize(
    values: Values, remarks: Sequence[Remark], words: Words, *, count: int, model: bool
) -> str:
    """Summarize an evaluation, or return an empty string if it has no KID.

    Samples are called close only if no metric is farther from its reference than its tolerance.

    Args:
        remarks: the sentences of the metrics, which include signs of copies.
        words: the names of the medium's samples.
        count: the number of samples on the smaller side.
        model: whether a model was measured, which can be trained longer.
    """
    many, levels = words.many, {r.level for r in remarks if r.kind == "memorization"}
    if "serious" in levels:
        return f"Copies: generated {many} repeat training {many}"
    key = next((key for key in KIDS if key in values), None)
    if key is None:
        return ""
    if f"{key}_standard_error" not in values:
        return f"Too few {many} for a verdict: at least 4 are needed on each side"
    # A model whose members are too alike can have been trained too long.
    alike = any(r.kind == "under-dispersive" for r in remarks)
    longer = ": train longer" if model and not alike else ""
    text = f"Different from the real {many}{longer}"
    worse, level, better = presentation.rank_baselines(values)
    if worse or {"mean", "noise"} & set(level):
        text = f"Not recognizable yet{longer}" if model else "Not recognizable"
    elif level:
        text = (
            f"No better than blurred {many} yet{longer}" if model else f"As bad as blurred {many}"
        )
    elif _is_close(values, key):
        text = f"Close to the real {many}"
        if labels := [number.label for number in select_numbers(values) if number.is_far(values)]:
            text = f"Different from the real {many} in {presentation.join_names(labels)}{longer}"
        if count < FEWEST:
            text = f"Too few {many} to tell how close: {count}, and {FEWEST} are needed"
    elif "blurred" in better:
        text = f"Better than blurred {many}, but different from the real {many}{longer}"
    return f"{text}. Some may be copies of training {many}" if "possible" in levels else text


def _is_close(values: Values, key: str) -> bool:
    """Whether the KID is small compared with blurred samples, or, where these were not measured or
    are like real samples, is like the KID between real samples."""
    floor = presentation.read_floor(values, key)
    if "kid_of_blurred" in values:
        blurred = presentation.read_measurement(values, "kid_of_blurred")
        if blurred.is_above(floor):
            return values[key] < CLOSE * blurred.value
    return not presentation.read_measurement(values, key).is_above(floor)
