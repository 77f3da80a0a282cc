"""The sections on what a model costs by timestep, and on the course of its training."""

from __future__ import annotations

from pathlib import Path

from diffuse_cli.evaluation import Evaluated
from diffuse_cli.report import charts
from diffuse_cli.report.charts import Line
from diffuse_cli.report.curves import Curve, log_of, read_curves
from diffuse_cli.report.elements import Markup, element, join
from diffuse_cli.report.sections import paragraph
from diffuse_cli.report.wording import measured, number


def bits(found: Evaluated) -> Markup:
    """The terms of the bound by timestep."""
    terms = found.terms
    if not terms:
        return paragraph("A folder of images has no likelihood: that needs the model itself.")
    edges = [term["first"] + 1 for term in terms] + [terms[-1]["last"] + 2]
    values = [term["bits_per_timestep"] for term in terms]
    total = measured(found.values, "bits_per_dim")
    names = {"bits_decoder": "the first timestep", "bits_middle": "all others",
             "bits_prior": "what is left in pure noise"}  # fmt: skip
    parts = ", ".join(f"{name} {number(found.values[key])}" for key, name in names.items())
    said = (
        f"Bits per dimension that each timestep costs, from {values[0]:.3g} at the first to "
        f"{values[-1]:.3g} at the last"
    )
    plot = charts.stairs("bits", values, edges, said, "timestep + 1", "bits per dimension, each")
    return join(
        paragraph(
            "Of an image, noise hides the finest detail first (left, timestep 0) and the coarse "
            "forms last (right). The plot shows what each timestep of the way back costs: where "
            "it is high is where most bits go. Both scales are logarithmic, so that the many "
            "timesteps on the right, each cheap, can cost as much together as the few on the left."
        ),
        element(
            "figure",
            plot,
            element("figcaption", f"Together {total} bits per dimension: {parts}."),
        ),
    )


def training(found: Evaluated, model: Path) -> Markup:
    """The curves of the model's own run, or why there are none."""
    if not found.model:
        return paragraph("A folder of images has no training to show.")
    log = log_of(model)
    curves = read_curves(log) if log else {}
    if not curves:
        where = f" ({log} is not there, or is empty)" if log else ""
        return paragraph(
            "The model's run directory, which has the course of its training, does not lie beside "
            f"the model file{where}."
        )
    step = float(found.model["step"])
    parts = [paragraph("The dotted line is the step of the model that was measured.")]
    loss = {"loss": "training", "held_out_loss": "images held out"}
    series = [
        Line(name, curves[key].steps, curves[key].values, marks=len(curves[key].steps) < 40)
        for key, name in loss.items()
        if key in curves
    ]
    if series:
        said = "; ".join(f"loss of {line.label}: last {line.y[-1]:.4g}" for line in series)
        positive = all(value > 0 for line in series for value in line.y)
        plot = charts.lines("loss", series, f"Loss over steps: {said}", "step", "loss",
                            log_y=positive, mark=(step, "measured"))  # fmt: skip
        caption = (
            "Loss, lower is better. Where the loss of held-out images rises while the other falls, "
            "the model learns its training images by heart."
        )
        parts.append(element("figure", plot, element("figcaption", caption)))
    if "kid" in curves:
        parts.append(_kid(curves["kid"], step))
    return join(*parts)


def _kid(curve: Curve, step: float) -> Markup:
    line = Line("KID", curve.steps, curve.values, curve.errors, marks=True)
    best = min(range(len(curve.values)), key=curve.values.__getitem__)
    said = f"KID over steps, lowest {curve.values[best]:.4f} at step {curve.steps[best]:,.0f}"
    plot = charts.lines("kid", [line], said, "step", "KID", mark=(step, "measured"))
    caption = (
        "KID while training (--eval-every), lower is better; bars are one standard error. It is "
        "of fewer images than the numbers above, and so not comparable with them to the last digit."
    )
    return element("figure", plot, element("figcaption", caption))
