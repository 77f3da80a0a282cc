"""The facts of a model file in words, for a terminal and for model cards."""

from __future__ import annotations

import html
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diffuse_cli.commands._cli import Rows, brief, format_rest, format_value, label_lines
from diffuse_cli.config.options import GROUPS, option_fields
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.data.metadata_columns import describe_column
from diffuse_cli.media import describe_space
from diffuse_cli.system import show

if TYPE_CHECKING:
    from diffuse_cli.config.shared_options import DiffusionConfig
    from diffuse_cli.core import Conditions
    from diffuse_cli.models.blueprint import Blueprint
    from diffuse_cli.models.model_file import ModelFile, StoredModel

MOST_LISTED = 100
"""The most words in a list, and lines of settings, to print."""


def model_rows(file: ModelFile) -> Rows:
    """Return the facts of a model file as labels and texts."""
    model = file.model
    conditions, sampling, distilled = model.blueprint.conditions, model.sampling, model.distilled
    rows = [
        ("model", show(file.path)),
        ("title", brief(file.title) or "none"),
        ("file", f"{file.size_bytes:,} bytes, SHA-256 {file.sha256}"),
        ("weights", _weights(model)),
        ("parameters", f"{model.parameters:,}"),
        *label_lines("network", _network(model.blueprint)),
        ("process", _process(model.blueprint.diffusion)),
        ("classes", join_words(conditions.classes) or "none: trained without --classes"),
        *label_lines("input", _conditioning_input(model.blueprint)),
        *label_lines("labels", _labels(conditions)),
        *label_lines("columns", _columns(conditions)),
        ("step", brief(f"{model.step:,}")),
    ]
    if distilled:
        guided = f", guided at {distilled['guidance']:g}" if "guidance" in distilled else ""
        rows += [("distilled", brief(f"from the model of SHA-256 {distilled['teacher']}{guided}"))]
    if sampling:
        rows += [("recommended", show(str(sampling)))]
        if sampling.times:
            rows += [("times", brief(", ".join(f"{time:g}" for time in sampling.times)))]
    data = dict(model.data)  # its folders are classes only with --classes
    if folders := data.pop("classes", None):
        data |= {} if conditions.classes else {"folders": folders}
    return [
        *rows,
        *label_lines("data", _settings(data)),
        *label_lines("training", _settings(_group_settings(model.training))),
        *label_lines("versions", _settings(model.versions)),
    ]


def _weights(model: StoredModel) -> str:
    kinds = "averaged" if model.raw is None else "averaged and raw"
    if model.weak_step is None:
        return kinds
    return f"{kinds}; the average of step {model.weak_step:,}, for --guide-with self"


def _network(blueprint: Blueprint) -> list[str]:
    count = blueprint.conditions.num_classes
    conditional = f", conditional on {count:,} classes" if count else ""
    lines = blueprint.architecture.describe(blueprint.config, blueprint.space)
    if blueprint.wiener:
        lines += ["corrects the Wiener filter of the data"]
    quantities = "".join(f", {show(name)}" for name in blueprint.space.quantities)
    head = f"{blueprint.network}, {describe_space(blueprint.space)}{quantities}{conditional}"
    return [head, *map(show, lines)]


def _conditioning_input(blueprint: Blueprint) -> Iterator[str]:
    """Yield the kind of image that the model is conditioned on, if there is one."""
    from diffuse_cli.models.image_conditioning import Conditioner

    if encoder := Conditioner.from_blueprint(blueprint):
        given = encoder.given
        noise = f", with noise of up to {given.noise:g}" if given.noise else ""
        kind = "label maps" if given.labels else describe_space(encoder.input_space)
        yield f"{show(given.what)}: {kind}; dropped from {given.dropout:.0%}{noise}"


def _labels(conditions: Conditions) -> list[str]:
    """Return the classes of label maps, for `sample --given`."""
    given = conditions.given
    return describe_labels(given.label_texts, given.fractions or ()) if given else []


def describe_labels(texts: Iterable[str], fractions: Iterable[float]) -> list[str]:
    """Return a line of labels with their fractions of the pixels, or no line without labels."""
    words = [f"{text} {share:.1%}" for text, share in zip(texts, fractions, strict=False)]
    return [join_words(words)] if words else []


def _columns(conditions: Conditions) -> list[str]:
    """Return the metadata columns, for `sample --on`."""
    table = conditions.table
    return [f"{brief(c.name)}: {describe_column(c)}" for c in table.columns] if table else []


def _process(diffusion: DiffusionConfig) -> str:
    betas = "custom betas" if diffusion.betas else f"schedule {show(str(diffusion.schedule))}"
    moved = f", log-SNR shifted by {diffusion.log_snr_shift:+g}" if diffusion.log_snr_shift else ""
    zero = " at zero terminal SNR" if diffusion.zero_terminal_snr else ""
    return (
        f"{betas}{moved}{zero}, {diffusion.num_timesteps:,} timesteps, "
        f"target {show(diffusion.target)}, variance {show(diffusion.variance)}"
    )


def _group_settings(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a training run as a table for each group of `train --help`."""
    groups: dict[str, Any] = {name.lower(): {} for name in (*GROUPS, "other")}
    group_of = {f.name: spec.group.lower() for f, spec in option_fields(TrainConfig)}
    for name, value in training.items():
        group = groups if isinstance(value, Mapping) else groups[group_of.get(name, "other")]
        group[name] = value
    return groups


def _settings(values: Mapping[str, Any], before: str = "") -> list[str]:
    """Return a line for the settings, and one for each table in them."""
    tables = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    single = [f"{brief(k)}={brief(format_value(v))}" for k, v in values.items() if k not in tables]
    lines = [f"{before}{join_words(single)}"] if single else []
    for name, table in tables.items():
        lines += _settings(table, f"{before}{brief(name)}: ")
    return lines if len(lines) <= MOST_LISTED else [*lines[:MOST_LISTED], "..."]


def join_words(words: Sequence[str]) -> str:
    """Return the first of the words, and how many more there are."""
    return ", ".join(map(brief, words[:MOST_LISTED])) + format_rest(len(words) - MOST_LISTED)


def select_rows(rows: Rows, accepts: Callable[[str], bool]) -> Rows:
    """Return the rows of the accepted labels. A row without a label belongs to the one before."""
    selected_rows, label = [], ""
    for row_label, text in rows:
        label = row_label or label
        if accepts(label):
            selected_rows.append((row_label, text))
    return selected_rows


# -- Markdown -------------------------------------------------------------------------------------


def model_section(file: ModelFile, left_out: Collection[str], top: Iterable[Sequence[str]]) -> str:
    """Return a section on the model: the `top` rows, in Markdown, and those of `model_rows`
    without the labels that are left out."""
    model_facts = select_rows(model_rows(file), lambda label: label not in left_out)
    rows = [*top, *((label, escape(text)) for label, text in model_facts)]
    return "## The model\n\n" + table(("", ""), rows)


def data_section(data: Mapping[str, Any]) -> str:
    """Return a section on the training data, which are not part of the model."""
    if not data.get("fingerprint"):
        return ""
    rows = [("fingerprint", f"`{escape(str(data['fingerprint']))}`")]
    if isinstance(count := data.get("images"), int):
        held = data.get("held_out")
        out = held.get("images") if isinstance(held, Mapping) else None
        held_out = f", {out:,} of them held out" if isinstance(out, int) else ""
        rows.append(("samples", f"{count:,}{held_out}"))
    if origin := data.get("origin"):
        rows.append(("origin", escape(str(origin))))
    return (
        "## The data\n\n"
        "The training data are not here. `diffuse info DATA` prints the same fingerprint "
        "of the same data.\n\n" + table(("", ""), rows)
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def escape(text: str) -> str:
    """Return a text of a file as it is read, not as Markdown or HTML."""
    safe = html.escape(show(text), quote=False)
    return "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in safe)
