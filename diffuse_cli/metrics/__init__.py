"""Metrics that compare generated with real images, one file each.

`METRICS` has an entry for each file of this folder, and imports it on look-up. For the contents of
a file see `Metric`. The order of images does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from diffuse_cli.core import Modules, Space
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

if TYPE_CHECKING:
    from diffuse_cli.media import Array
    from diffuse_cli.metrics.channel_distributions import Marginals
    from diffuse_cli.metrics.ensembles import EnsembleScores
    from diffuse_cli.metrics.nearest_neighbors import NearestDistances
    from diffuse_cli.metrics.paired import PairedValues
    from diffuse_cli.metrics.spectrum import Spectra


@dataclass(frozen=True)
class Metric:
    """Contents of a file of this folder, which has at least `NEEDS` and `compute`.

    Attributes:
        NEEDS: the parts of an evaluation that it reads, see `MetricInputs`.
        compute: the function that returns its values. The standard error of `key` is
            `key_standard_error`. There are two or more images on each side.
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
        "nearest_neighbors",
        "presentation",
        "estimates",
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
        _present_region(key) if f"{key}_of_real" in values else MetricNumber(key, label(key))
        for key in values
        if key not in named and not key.endswith(("_standard_error", "_of_real"))
    ]
    measured = [n for n in all_numbers if n.key in values] + undescribed
    return sorted(measured, key=lambda n: [*QUESTIONS].index(n.question))


def _present_region(key: str) -> MetricNumber:
    """Return the presentation of a value of `paired.compare_regions`."""
    says = "Intensity where the label map has this label. The reference is the real images' value."
    return MetricNumber(key, label(key), says, "reference", f"{key}_of_real", "answers")


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


# Inputs of metrics: features, bits, distances and statistics of real and generated samples.


def _no_rows(columns: int = 0) -> Any:
    """Return a field of no rows. It imports NumPy on use, because listing metrics must be quick."""

    def make_rows() -> Array:
        import numpy as np

        return np.zeros((0, columns))

    return field(default_factory=make_rows)


@dataclass(kw_only=True)
class MetricInputs:
    """Parts of an evaluation. A metric reads the parts in its `NEEDS`.

    Attributes:
        space: the space of the samples.
        real_features, fake_features, more_features: the `features` or `random_features` of real,
            generated and further real images, float32 (N, d), (M, d) and (K, d). K can be 0.
        baseline_features: the features of baseline images, by name.
        bits, train_bits: the bits per dimension of held-out and of training images, (N, 3) and
            (M, 3), as L_T, L_1 + ... + L_T-1, L_0.
        ode_bits: the bits per dimension of held-out images by the probability-flow equation, and
            the estimated errors of the solver, (N, 2).
        nearest: the distances to training images, by the name of the space.
        paired_values: the values of paired metrics, for models with a conditioning image.
        marginals: the distributions of values of real and generated samples, by channel.
        spectra: the power of real and generated samples by frequency.
        ensembles: the values of ensembles, with `--members`.
    """

    space: Space
    real_features: Array = _no_rows()
    fake_features: Array = _no_rows()
    more_features: Array = _no_rows()
    baseline_features: dict[str, Array] = field(default_factory=dict)
    bits: Array = _no_rows(3)
    train_bits: Array = _no_rows(3)
    ode_bits: Array = _no_rows(2)
    nearest: dict[str, NearestDistances] = field(default_factory=dict)
    paired_values: PairedValues = field(init=False)
    marginals: Marginals = field(init=False)
    spectra: Spectra = field(init=False)
    ensembles: EnsembleScores = field(init=False)

    @property
    def floats(self) -> bool:
        """Whether samples are floats, for which the variational bound is on a density."""
        return self.space.levels is None
