"""A page that samples from a model in a browser, by onnxruntime-web.

The networks are ONNX files. The page has the rest of sampling in JavaScript, with the noise levels
of `diffuse sample`, and the same seeds give the same images.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.commands.convert import web_runtime
from diffuse_cli.commands.convert.exporters import export_error, onnx
from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.core import parameterization, samplers
from diffuse_cli.media import PAGES
from diffuse_cli.system import Notice, Progress, Work, files

if TYPE_CHECKING:
    from diffuse_cli.core import DataGaussian, Space
    from diffuse_cli.models.model_file import ModelFile, StoredModel
    from diffuse_cli.sampling.sampling_settings import SamplingSettings

OUT = "page"
INDEX, MODEL, WEAK, LICENSE = "index.html", "model.onnx", "weak.onnx", "onnxruntime-license.txt"
PARTS = (INDEX, MODEL, WEAK, LICENSE, *web_runtime.HASHES)
MARK = (INDEX, '<meta name="generator" content="diffuse ')
OPTIONS = ("runtime", "single_file")

SAMPLERS = ("unipc", "ddim")
"""Samplers of the page, besides the one of distilled models."""

STEPS, DISTILLED_STEPS = (5, 10, 20, 50), (1, 2, 4)
"""Numbers of steps to choose from, besides the recommended one."""

FIRST = 16
"""Samples that the page shows before it generates any."""

PROVIDERS = (web_runtime.WASM,)
"""Execution providers of a page in one file, which stays small without WebGPU."""

SCRIPTS = ("random", "sampler", "model")

SOURCES = "blob: 'wasm-unsafe-eval'"
"""Scripts of the page besides its own: the runtime, which it loads as a blob."""

FACTS = ("parameters", "network", "process", "classes", "columns", "input", "step", "recommended")
"""Rows of `info` on the page."""


def check(config: ConvertConfig) -> None:
    """Refuse to begin without the packages or the runtime."""
    check_tools("--to page", config.runtime)


def check_tools(option: str, runtime: str | None) -> None:
    """Refuse an option without the packages or the runtime that make a page.

    Raises:
        UsageError: a package or the runtime is missing.
    """
    onnx.check_packages(option)
    web_runtime.check_available(option, runtime)


def write(path: Path, file: ModelFile, config: ConvertConfig) -> Work[Mapping[str, Any]]:
    """Write the folder of the page."""
    options = config.weights or "ema", config.runtime
    contents = yield from make_page(file, *options, single=config.single_file)

    def fill(folder: Path) -> None:
        for name, content in contents.items():
            files.write_bytes(folder / name, content)

    files.write_folder(path, fill)
    quoted_out = shlex.quote(config.out or OUT)
    yield Notice(
        f"to look at the page, open {quoted_out}/{INDEX} in a browser"
        if config.single_file
        else f"to look at the page, run `python -m http.server -d {quoted_out}` and open "
        "http://localhost:8000"
    )
    sizes = {name: len(content) for name, content in contents.items()}
    return {"parameters": file.model.parameters, "bytes": sizes}


def make_page(
    file: ModelFile,
    weights: str,
    runtime: str | None,
    *,
    single: bool = False,
    facts: Iterable[tuple[str, str]] = (),
    place: str = "",
) -> Work[dict[str, bytes]]:
    """Return the files of the page by name.

    Args:
        weights: the weights to sample with, `ema` or `raw`.
        runtime: the package of the runtime or its folder. None to fetch it.
        single: whether the page contains all other files.
        facts: rows about the model, besides those of the model file.
        place: where visitors of the page find the model file, instead of its name here.

    Raises:
        ModelFileError: the page cannot show its samples or inputs, or a network cannot be exported.
        UsageError: there is no runtime.
    """
    check_shown(file)
    providers = PROVIDERS if single else tuple(web_runtime.FILES)
    if runtime is None:
        yield Notice(web_runtime.FETCHING)
    contents = web_runtime.read_runtime(runtime, providers)
    sampling = {**describe_sampling(file.model), "weights": weights}
    sampling["providers"] = {name: web_runtime.FILES[name] for name in providers}
    networks = {"model": (MODEL, weights)}
    if sampling["weak"] is not None:
        networks["weak"] = (WEAK, "weak")
    for count, (name, kind) in enumerate(networks.values()):
        yield Progress(onnx.TASK, count, len(networks))
        contents[name], _ = onnx.make_file(file, kind)
    yield Progress(onnx.TASK, len(networks), len(networks))
    license = resources.files("diffuse_cli.pages") / "templates" / LICENSE
    contents[LICENSE] = license.read_bytes()
    sampling["networks"] = {name: path for name, (path, _) in networks.items()}
    first = yield from draw_first(file, weights, sampling["samplings"][sampling["chosen"]])
    page = render(file, sampling, contents if single else {}, facts, place, first).encode()
    return {INDEX: page} if single else {**contents, INDEX: page}


def check_shown(file: ModelFile) -> None:
    """Refuse samples and inputs that the page cannot show.

    Raises:
        ModelFileError: names the setting.
    """
    blueprint = file.model.blueprint
    space, given, table = blueprint.space, blueprint.conditions.given, blueprint.conditions.table
    if space.dims > 2:
        raise export_error(file, "a page", "size", space.size_text)
    if table and table.vector:
        raise export_error(file, "a page", "condition-on", "vectors")
    if given is None:
        return
    masks = (_describe_input(file.model) or {}).get("masks")
    if space.medium != "image":
        raise export_error(file, "a page", "given", f"an {space.medium}")
    if not given.is_paired and not masks:
        raise export_error(file, "a page", "given", given.what)
    if not (given.labels or given.channels in (1, 3)) or given.mean or given.limits:
        raise export_error(file, "a page", "given", given.to_dict())


def draw_first(file: ModelFile, weights: str, setting: Mapping[str, Any]) -> Work[bytes | None]:
    """Return a picture of the first samples of seed 0, with one of the page's `samplings`.

    None if the model needs an input.
    """
    from diffuse_cli.media import figures, render_samples
    from diffuse_cli.sampling.cascade import generate_arrays

    conditions, table = file.model.blueprint.conditions, file.model.blueprint.conditions.table
    if conditions.given or (table and file.model.always_conditioned):
        return None
    config = SampleConfig(model=str(file.path), n=FIRST, weights=weights, precision="fp32")
    choice = file.model.sampling
    if choice and choice.sampler != (sampler := setting["sampler"]):
        yield Notice(f"the page has no {choice.sampler}, which is recommended, but {sampler}")
        config = replace(config, sampler=sampler, steps=setting["steps"])
    samples, space, _ = yield from generate_arrays(config, file)
    return figures.encode_png(figures.arrange_grid(render_samples(space, samples)))


# -- settings -------------------------------------------------------------------------------------


def describe_sampling(model: StoredModel) -> dict[str, Any]:
    """Return the settings of the page: noise levels by sampler and steps, and the controls."""
    from diffuse_cli.sampling.sampling_settings import resolve_settings

    blueprint = model.blueprint
    plain = SampleConfig(model="")
    default = resolve_settings(plain, model)
    condition = default.condition
    autoguided = model.sampling if model.sampling and model.sampling.is_autoguided else None
    distilled = model.distilled is not None
    counts = sorted({*(DISTILLED_STEPS if distilled else STEPS), default.steps})
    listed = [
        resolve_settings(SampleConfig(model="", sampler=sampler, steps=steps), model)
        for sampler in (samplers.OF_DISTILLED if distilled else SAMPLERS)
        for steps in counts
        if steps <= blueprint.diffusion.num_timesteps
    ]
    guided = not model.distilled and model.has_unconditional
    same = [k for k, choice in enumerate(listed) if choice.steps == default.steps]
    return {
        "shape": blueprint.space.shape,
        "clipped": blueprint.space.levels is not None,
        **_describe_look(blueprint.space),
        "samplings": [_describe_levels(model, choice) for choice in listed],
        "chosen": next((k for k in same if listed[k].sampler == default.sampler), same[0]),
        "weak": autoguided.weak_guidance if autoguided else None,
        "interval": autoguided.guidance_interval if autoguided else None,
        "guidance": condition.scale if condition and guided else None,
        "classes": blueprint.conditions.classes,
        "columns": [column.to_dict() for column in blueprint.conditions.table.columns]
        if blueprint.conditions.table
        else [],
        "optional": not model.always_conditioned,
        "given": _describe_input(model),
        "gaussian": next(
            (describe_gaussian(blueprint.space.shape, s.start) for s in listed if s.start), None
        ),
    }


def _describe_input(model: StoredModel) -> dict[str, Any] | None:
    """Return the channels of the conditioning image, whether a part of it is hidden, its levels
    at -1 and 1, as 8-bit levels, which a browser reads, and the labels of label maps."""
    import numpy as np

    from diffuse_cli.media.image.label_maps import color_labels
    from diffuse_cli.models.image_conditioning import Conditioner

    encoder = Conditioner.from_blueprint(model.blueprint)
    if encoder is None:
        return None
    space = encoder.rendered_space
    ends, top = space.level_range or (0, 255), (space.levels or 256) - 1
    levels = [255 * level / top for level in ends]
    given, labels = encoder.given, np.array(encoder.given.labels or (), np.int64)
    colors = color_labels(labels.reshape(-1, 1, 1, 1))
    classes = [
        {"value": value, "name": name, "color": f"#{bytes(color.ravel()).hex()}"}
        for value, name, color in zip(labels.tolist(), given.label_texts, colors, strict=True)
    ]
    described = {"channels": given.channels, "masks": encoder.masks, "levels": levels}
    return {**described, "labels": classes}


def _describe_look(space: Space) -> dict[str, Any]:
    """Return how samples are shown: panels, each of the channels of red, green and blue, the
    contrast, and the scale of sounds that are played.

    Transparent images are on their background. Floats are grey at their mean, and white or black
    three standard deviations from it.
    """
    panels = [[c, c, c] for c in range(space.channels)]
    if space.medium == "image" and space.layout != PAGES:
        panels = [[0, 1, 2]] if space.channels > 2 else panels[:1]
    look: dict[str, Any] = {"panels": panels, "contrast": 127.5 if space.levels else 127.5 / 3}
    if space.rate and space.transform is None:
        look["sound"] = {"rate": space.rate, "mean": space.mean, "std": space.std}
    return look


def _describe_levels(model: StoredModel, choice: SamplingSettings) -> dict[str, Any]:
    """Return the noise levels that a sampler visits, each with its time input and target."""
    import torch

    process, one = model.blueprint.process, torch.zeros(1)
    denoiser = model.blueprint.denoiser(lambda x, t: x)
    levels = []
    stepwise = model.blueprint.diffusion.target in parameterization.STEPWISE
    for t in choice.resolve_times(process):
        at = round(t) if stepwise else t
        time = float(process.time_input(at, like=one))
        pair = process.alpha_sigma(at, like=one)
        levels.append([time, *pair, *denoiser.target_at(at, like=one)])
    title = f"{choice.sampler}, {choice.steps} step{'s' * (choice.steps != 1)}"
    return {
        "title": title,
        "sampler": choice.sampler,
        "steps": choice.steps,
        "start": choice.start is not None,
        "levels": levels,
    }


def describe_gaussian(shape: tuple[int, ...], start: DataGaussian) -> dict[str, Any]:
    """Return the Gaussian of a start, with flat values."""
    import numpy as np

    tables = {name: np.asarray(getattr(start, name)) for name in ("mean", "variance")}
    flat = {k: {"shape": v.shape, "values": v.ravel().tolist()} for k, v in tables.items()}
    return {"shape": shape, "colors": start.colors, **flat}


# -- page -----------------------------------------------------------------------------------------


def render(
    file: ModelFile,
    sampling: Mapping[str, Any],
    inside: Mapping[str, bytes],
    facts: Iterable[tuple[str, str]],
    place: str,
    first: bytes | None,
) -> str:
    """Render the page.

    Args:
        inside: files that the page contains.
        facts: rows about the model, besides those of `info`.
        place: as in `make_page`.
        first: a picture of samples to show at first, as PNG.
    """
    from markupsafe import Markup

    from diffuse_cli.commands._cli import model_facts
    from diffuse_cli.media import MEDIA, describe_space
    from diffuse_cli.pages import templates

    script = "\n".join(map(templates.read_script, SCRIPTS))
    hashed = f"script-src '{templates.hash_script(script)}' {SOURCES}"
    allowed = templates.POLICY, "connect-src 'self'", hashed
    space = file.model.blueprint.space
    name = place.rpartition("/")[2] or file.path.stem
    everything = {**sampling, "name": name, "file": place or file.path.name}
    plain = json.dumps(everything).replace("<", "\\u003c")
    rows = model_facts.select_rows(model_facts.model_rows(file), lambda label: label in FACTS)
    return templates.render_page(
        "model",
        name,
        policy="; ".join(allowed),
        script=Markup(script),
        settings=Markup(plain),
        contents={k: Markup(base64.b64encode(v).decode()) for k, v in inside.items()},
        summary=f"A diffusion model of {MEDIA[space.medium].many} ({describe_space(space)}). "
        "It runs in your browser.",
        size=space.size,
        first=first and templates.to_data_url("image/png", first),
        first_count=FIRST,
        facts=[*rows, *facts],
        **sampling,
    )
