"""Metrics that compare generated with real images, one file each.

`METRICS` has an entry for each file of this folder, and imports it on look-up. For the contents of
a file see `Metric`. The order of images does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from diffuse_cli.core import Modules
from diffuse_cli.metrics.presentation import LEVELS
from diffuse_cli.metrics.presentation import QUESTIONS as QUESTIONS
from diffuse_cli.metrics.presentation import SIGNIFICANT as SIGNIFICANT
from diffuse_cli.metrics.presentation import Facts as Facts
from diffuse_cli.metrics.presentation import Measurement as Measurement
from diffuse_cli.metrics.presentation import MetricNumber as MetricNumber
from diffuse_cli.metrics.presentation import Remark as Remark
from diffuse_cli.metrics.presentation import Values as Values
from diffuse_cli.metrics.presentation import Words as Words
from diffuse_cli.metrics.presentation import read_measurement as read_measurement


@dataclass(frozen=True)
class Metric:
    """Contents of a file of this folder, which has at least `NEEDS` and `compute`.

    Attributes:
        NEEDS: the parts of an evaluation that it reads, see `inputs.MetricInputs`.
        compute: the function that returns its values. The standard error of `key` is
            `key_standard_error`. It raises a `UsageError` if there are too few images.
        NUMBERS: the presentation of its values. Other keys are shown under their own names.
        BESIDE: the keys that are only in the JSON, or are shown as references of other values.
        remarks: the function that yields sentences on the meaning of its values.
        difference_errors: the function that returns, by key, the standard error of the difference
            of two evaluations with the same real images, in which generated images with the same
            index started from the same noise. For missing keys, the standard errors of both
            evaluations are combined as independent.
        details: the function that returns further results for the JSON and the report.
        OPTION: the name of the option of `eval` that adds this metric, if it is too slow to be
            measured without `--metrics`.
    """

    NEEDS: tuple[str, ...]
    compute: Callable[[Any], dict[str, float]]
    NUMBERS: tuple[MetricNumber, ...] = ()
    BESIDE: tuple[str, ...] = ()
    remarks: Callable[[Facts], Iterable[Remark]] = lambda facts: ()
    difference_errors: Callable[[Any, Any], dict[str, float]] = lambda a, b: {}
    details: Callable[[Any], Any] | None = None
    OPTION: str = ""


class Metrics(Modules[Metric]):
    """Table of the metrics, with the defaults of `Metric` for missing contents of a file."""

    def __getitem__(self, name: str) -> Metric:
        module = super().__getitem__(name)
        names = (f.name for f in fields(Metric) if hasattr(module, f.name))
        return Metric(**{name: getattr(module, name) for name in names})


METRICS = Metrics(
    "metrics",
    __name__,
    __path__,
    helpers=(
        "channel_distributions",
        "features",
        "inputs",
        "nearest_neighbors",
        "presentation",
        "sample_statistics",
    ),
    aliases={"answers": "paired", "landmarks": "baselines", "manifold": "precision-recall"},
)


def numbers() -> list[MetricNumber]:
    """Return the presentation of the values of all metrics, in order."""
    unsorted = [n for metric in METRICS.values() for n in metric.NUMBERS]
    return sorted(unsorted, key=lambda n: ([*QUESTIONS].index(n.question), n.place))


def label(key: str) -> str:
    """Return the label of a key."""
    return next((n.label for n in numbers() if n.key == key), key.replace("_", " "))


def select_numbers(values: Values) -> list[MetricNumber]:
    """Return the presentation of values, in order. Keys that no metric describes come last."""
    all_numbers = numbers()
    named = {n.key for n in all_numbers} | {key for m in METRICS.values() for key in m.BESIDE}
    undescribed = [
        MetricNumber(key, key.replace("_", " "))
        for key in values
        if key not in named and not key.endswith("_standard_error")
    ]
    return [n for n in all_numbers if n.key in values] + undescribed


def class_numbers(classes: Mapping[str, Values]) -> list[MetricNumber]:
    """Return the presentation of values per class, limited to values that a class has."""
    candidates = (n for n in numbers() if n.by_class)
    return [n for n in candidates if any(n.key in values for values in classes.values())]


def class_table(classes: Mapping[str, Values]) -> list[list[str]]:
    """Return a head, and for each class a row of its name, its counts and its metrics.

    A metric that was not measured, or is misleading, is a dash.
    """
    columns = class_numbers(classes)
    rows = [["class", "generated", "real", *(n.label for n in columns)]]
    for name, values in classes.items():
        cells = [n.text(values) if n.can_show(values) else "–" for n in columns]
        rows.append([name, f"{values['generated']:,}", f"{values['real']:,}", *cells])
    return rows


def remarks(facts: Facts) -> list[Remark]:
    """Return the remarks of all metrics, by level."""
    unsorted = [remark for metric in METRICS.values() for remark in metric.remarks(facts)]
    return sorted(unsorted, key=lambda remark: LEVELS.index(remark.level))
