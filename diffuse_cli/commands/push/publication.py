"""`diffuse push`: a folder with a model, its card and an image of samples, uploaded to the hub."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffuse_cli.commands._cli import model_facts
from diffuse_cli.commands._cli.model_facts import escape
from diffuse_cli.commands.convert.exporters import page
from diffuse_cli.config.exchange_options import PushConfig
from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.data.metadata_columns import examples
from diffuse_cli.evaluation.results import strip_folders
from diffuse_cli.media import MEDIA, can_judge, describe_space, figures, suffix
from diffuse_cli.media.image.decoding import read_image
from diffuse_cli.metrics import read_measurement, select_numbers
from diffuse_cli.models import model_file
from diffuse_cli.models.model_file import ModelFile
from diffuse_cli.sampling import cascade, journal
from diffuse_cli.system import (
    ModelFileError,
    Notice,
    OutputError,
    Progress,
    UsageError,
    Work,
    errors,
    files,
    hub_models,
    outputs,
    plural,
)
from diffuse_cli.system.accelerator import open_accelerator

MODEL, CARD, SAMPLES = hub_models.MODEL_FILE, "README.md", "samples.png"
METRICS, DEMO = "eval.json", "demo.html"
"""Names of the files."""

OWNED = (MODEL, SAMPLES, METRICS, DEMO, CARD)
"""Files that `push` writes, in this order."""

IMAGE_SAMPLES = 16
"""Number of samples in the image."""


def push(config: PushConfig) -> Work[dict[str, Any]]:
    """Make the folder of a model and publish it, or with -o leave it there.

    Returns:
        With -o the folder, else the address of the commit, the names of the files, and the
        SHA-256 of the model file.

    Raises:
        ModelFileError: the file is not a model file.
        UsageError: TARGET is not a name, or the metrics are of another model.
        OutputError: the folder is not empty, or the hub holds a model already or refuses this one.
    """
    repo = hub_models.push_target(config.target)
    if config.samples:
        outputs.check_suffix(Path(config.samples), ".png", "--samples")
    if config.demo:
        page.check_tools("--demo", config.runtime)
    if config.out is None:
        owned = () if config.overwrite else OWNED
        hub_models.check_unpublished(config.target, private=config.private, owned=owned)
    with _open_folder(config) as folder:
        source = yield from model_file.find(config.model)
        journal.check_output_apart(folder, str(source.path))
        if config.demo:
            page.check_shown(source)
        metrics = _read_metrics(config, source) if config.eval else None
        image, recipe = yield from _make_image(config, source)
        parts = {SAMPLES: image} if image else {}
        if config.demo:
            demo = yield from page.make_page(
                source,
                "ema",
                config.runtime,
                single=True,
                facts=_list_facts(config, metrics),
                place=f"hf://{repo}",
            )
            parts[DEMO] = demo[page.INDEX]
        if metrics:
            parts[METRICS] = (json.dumps(metrics, indent=1) + "\n").encode()
        parts[CARD] = card(config, source, metrics, bool(image), recipe).encode()
        outputs.replace_files(folder, OWNED, lambda new: _write_parts(new, source, parts))
        names, url = sorted([MODEL, *parts]), None
        if config.out is None:
            yield Progress("pushing files", 0, len(names))
            text = f"A model of diffuse, step {source.model.step:,}"
            url = hub_models.upload(
                folder, config.target, private=config.private, message=text, owned=OWNED
            )
            yield Progress("pushing files", len(names), len(names))
    where = None if config.out is None else str(folder)
    return {"folder": where, "commit": url, "files": names, "sha256": source.sha256}


def _write_parts(folder: Path, source: ModelFile, parts: Mapping[str, bytes]) -> None:
    """Write a copy of the model, and the other files.

    Raises:
        ModelFileError: the model file has changed since it was read.
    """
    with files.replace_file(folder / MODEL) as copy, source.path.open("rb") as model:
        shutil.copyfileobj(model, copy)
    if files.sha256(folder / MODEL) != source.sha256:
        text = f"{files.show(source.path)} has changed"
        hint = "Run the command again"
        raise ModelFileError(text, hint, code="data_changed", path=source.path)
    for name, content in parts.items():
        files.write_bytes(folder / name, content)


@contextlib.contextmanager
def _open_folder(config: PushConfig) -> Iterator[Path]:
    """Yield the folder to write: the locked folder of -o, or a temporary one.

    Raises:
        OutputError: the folder cannot be written, or holds files that are not of a stopped push.
    """
    if config.out is None:
        with tempfile.TemporaryDirectory(prefix="diffuse-push-") as temporary:
            yield Path(temporary)
        return
    out = Path(config.out)
    for name in OWNED:
        files.check_writable(out / name)
    owned = "|".join(map(re.escape, (outputs.UNFINISHED, *OWNED)))
    with outputs.hold_lock(out / journal.LOCK, owned=owned):
        with files.report_errors(out):
            names = {path.name for path in out.iterdir()} - {journal.LOCK, outputs.UNFINISHED}
            foreign = names - outputs.list_unfinished(out, OWNED)
        if foreign and not config.overwrite:
            text = f"{files.show(out)} exists already"
            hint = "Choose another -o, or --overwrite"
            raise OutputError(text, hint, code="output_exists", path=out)
        yield out


def _read_metrics(config: PushConfig, source: ModelFile) -> Mapping[str, Any]:
    """Return the values that `eval --json` printed of this model.

    Raises:
        UsageError: the file is something else, or of another model.
    """
    name = f"--eval {files.show(str(config.eval))}"
    try:
        values = json.loads(Path(str(config.eval)).read_bytes())
        if (measured := values["settings"]["model_sha256"]) != source.sha256:
            text = f"{name} is of another model, of SHA-256 {files.show(str(measured), 64)}"
            hint = "Measure this one: diffuse eval MODEL DATA --json > eval.json"
            raise UsageError(text, hint, code="model_mismatch", path=config.eval)
        _format_metrics(values)  # as the card will, before anything is replaced
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        text = f"{name} is not what eval prints of a model"
        hint = "Write one: diffuse eval MODEL DATA --json > eval.json"
        raise UsageError(text, hint, code="invalid_value", path=config.eval) from error
    return strip_folders(values)


def _make_image(config: PushConfig, source: ModelFile) -> Work[tuple[bytes, str]]:
    """Return an image of samples as a PNG, and their settings.

    Both are empty if the model needs an input. The settings are empty for the image of --samples.
    """
    if config.samples:
        image, _ = read_image(config.samples)
        return figures.encode_png(image), ""  # without metadata
    table, on = source.model.blueprint.conditions.table, tuple[str, ...]()
    if needs_columns := bool(table and source.model.always_conditioned):
        on = tuple(f"{name}={value}" for name, value in examples(table).items())
    vector = table and needs_columns and table.vector
    if source.model.blueprint.conditions.given or vector:
        kind = "vector" if vector else "conditioning image"
        yield Notice(f"the card has no samples, because the model needs a {kind}. Pass --samples")
        return b"", ""
    sample_config = SampleConfig(model=str(source.path), n=IMAGE_SAMPLES, on=on)
    with open_accelerator(sample_config.precision, sample_config.device) as accelerator:
        chain = yield from cascade.load_cascade(sample_config, accelerator, file=source)
        indices = chain.list_indices(sample_config)
        yield Progress("sampling", 0, len(indices))
        samples = dict(zip(indices, chain.generate_samples(indices, accelerator), strict=True))
        yield Progress("sampling", len(indices), len(indices))
    settings, grid = chain.last.settings, chain.last.make_grid(samples)
    return figures.encode_png(grid), f"{settings.choice}, seed {settings.seed}"


# -- card -----------------------------------------------------------------------------------------

LEFT_OUT = ("model", "file", "title", "data")
"""Rows of `info` on this file only, or with a section in the card."""


def card(
    config: PushConfig,
    source: ModelFile,
    metrics: Mapping[str, Any] | None,
    has_image: bool,
    recipe: str,
) -> str:
    """Return the card as Markdown, with the hub's metadata before it.

    Args:
        metrics: the values that `eval --json` printed of the model.
        has_image: whether an image of samples is next to the card.
        recipe: the settings of these samples, empty if you brought the image.
    """
    repo = hub_models.push_target(config.target)
    parts = [
        _format_front_matter(source, str(config.license)),
        f"# {repo.rpartition('/')[2]}",
        _describe_model(source),
        f"![Samples of the model]({SAMPLES})" if has_image else "",
        f"The first samples, not a selection: {escape(recipe)}." if recipe else "",
        f"To sample in a browser, download [{DEMO}]({DEMO}) and open it." if config.demo else "",
        _format_usage(f"hf://{repo}", source),
        model_facts.model_section(source, LEFT_OUT, [("SHA-256", f"`{source.sha256}`")]),
        model_facts.data_section(source.model.data),
        _format_metrics(metrics),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _format_front_matter(source: ModelFile, license: str) -> str:
    """Return the hub's metadata as YAML, whose values are JSON."""
    space, conditions = source.model.blueprint.space, source.model.blueprint.conditions
    has_pipeline_tag = space.medium == "image" and can_judge(space) and not conditions.given
    values = {
        "license": license,
        "library_name": "diffuse-cli",
        "tags": ["diffuse", "diffusion", "ddpm", space.medium],
        **({"pipeline_tag": "unconditional-image-generation"} if has_pipeline_tag else {}),
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _describe_model(source: ModelFile) -> str:
    """Return a sentence on the samples, the inputs and the origin of the model."""
    space, conditions = source.model.blueprint.space, source.model.blueprint.conditions
    inputs = [f"one of {len(conditions.classes):,} classes"] * bool(conditions.classes)
    inputs += [f"an image ({conditions.given.what})"] if conditions.given else []
    inputs += ["metadata columns"] if conditions.table else []
    condition = f", conditioned on {' and '.join(inputs)}" if inputs else ""
    step = source.model.step  # 0 for a model of another program
    origin = f"trained for {plural(step, 'step')}" if step else "converted"
    samples = f"{MEDIA[space.medium].many} ({describe_space(space)})"
    facts = f"{source.model.parameters:,} parameters, {origin} with `diffuse`"
    return f"A diffusion model of {samples}{escape(condition)}: {facts}."


def _format_usage(name: str, source: ModelFile) -> str:
    """Return a command and a program that sample, with a value of each column and an input file."""
    conditions, flags, keywords = source.model.blueprint.conditions, list[str](), ""
    if values := examples(conditions.table):
        for column, value in values.items():
            flags += ["--on", f"{column}={value}"]
        keywords += f", on={values!r}"
    if conditions.table and conditions.table.vector:
        flags += ["--on-vector", "vector.npy"]
        keywords += ", on_vector='vector.npy'"
    if conditions.given:
        file = f"input{suffix(source.model.blueprint.space)}"
        flags += ["--given", file]
        keywords += f", given={file!r}"
        if not conditions.given.is_paired:
            flags.append("--degrade")
            keywords += ", degrade=True"
    line = shlex.join(["diffuse", "sample", name, *flags, "-n", "16", "-o", "samples/"])
    return f"""## Use

Install diffuse: {errors.INSTALL.format(extra="hub")}. Then run:

```
{files.show(line)}
```

```python
import diffuse_cli as diffuse

samples = diffuse.load("{name}").sample(16, seed=0{keywords})
samples.images()
```"""


def _list_metrics(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the label of each metric, its value with the standard error, and its reference."""
    values = {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    for number in select_numbers({k: v for k, v in values.items() if k != "seconds"}):
        reference = number.reference(values)
        is_finite = reference is not None and math.isfinite(reference.value)
        measured = str(read_measurement(values, number.key))
        yield number.label, measured, str(reference) if is_finite else ""


def _list_facts(config: PushConfig, metrics: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Yield the license, the metrics and the remarks on them, for the demo."""
    yield "license", str(config.license)
    if metrics:
        for label, measured, reference in _list_metrics(metrics):
            yield label, f"{measured}, reference {reference}" if reference else measured
        for remark in metrics["remarks"]:
            yield "", str(remark)


def _format_metrics(metrics: Mapping[str, Any] | None) -> str:
    """Return the section on the metrics."""
    if metrics is None:
        return "## Metrics\n\nNot measured. To measure, run `diffuse eval`."
    rows = [[*map(escape, cells)] for cells in _list_metrics(metrics)]
    counts, settings = metrics["n"], metrics["settings"]
    network, part = dict(metrics["features"]).get("name", ""), metrics.get("part", "")
    how = [f"{counts['generated']} generated against {counts['real']} real ({part})"]
    if counts["generated"]:
        steps, seed = settings.get("steps"), settings.get("seed")
        how += [f"{settings.get('sampler')}, {steps} steps, seed {seed}"]
        how += [f"features of {network}"] if network else []
    remarks = [f"- {escape(str(remark))}" for remark in metrics["remarks"]]
    parts = [
        "## Metrics",
        "Value ± standard error, and the value of a perfect model as a reference.",
        model_facts.table(("", "measured", "reference"), rows),
        escape(", ".join(how)) + f". All values: [{METRICS}]({METRICS}).",
        "\n".join(remarks),
    ]
    return "\n\n".join(filter(None, parts))
