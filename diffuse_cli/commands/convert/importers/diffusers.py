"""`UNet2DModel` of diffusers with its scheduler: a pipeline's folder, its `unet/`, or a file there.

Tensors have the names of `UNet`, except old attention layers. `config.json` has the network,
`scheduler_config.json` the process. A folder that `convert.exporters` wrote also names the classes,
and has a row for "no class" in the label embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from diffuse_cli.commands.convert import diffusers_fields
from diffuse_cli.commands.convert.importers import _foreign_files, assembly
from diffuse_cli.commands.convert.importers._foreign_files import ForeignSource
from diffuse_cli.commands.convert.importers.assembly import ForeignModel, Net
from diffuse_cli.config import parsers
from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.core import SCHEDULES, output_channels
from diffuse_cli.system import ModelFileError, Notice, UsageError, file_types, shorten, show

OPTIONS: tuple[str, ...] = ()

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Attention layers by their names before diffusers 0.15."""


def recognizes(source: ForeignSource) -> bool:
    """Whether it is a folder with `config.json`, there or in `unet/`, or a file with tensors of
    these names."""
    if source.path.is_dir():
        return file_types.is_folder(source.path)
    return file_types.is_of("diffusers", source.tensors)


def read(source: ForeignSource, config: ConvertConfig) -> ForeignModel:
    """Return the network, process and weights of a `UNet2DModel`."""
    folder = _folder(source)
    _check_pipeline(folder)
    described = folder / "config.json"
    with _foreign_files.reject_malformed(described):
        unet_config = _foreign_files.read_json(described)
        settings, classes, label_dropout = diffusers_fields.read_unet(described, unet_config)
        sample_size, attends = settings.pop("sample_size"), settings.pop("attends")
        if config.size is None and sample_size is None:
            text = f"{source.name} does not say its image size"
            raise UsageError(text, "Pass --size", code="missing_argument", option="--size")
        size = parsers.parse_size(sample_size) if config.size is None else config.size
        settings["attention"] = assembly.attention_at(size, attends)
        unet = assembly.read_net(described, config, size, settings)
    process, notices = read_process(folder, unet)
    return ForeignModel(
        unet=unet,
        diffusion=process,
        tensors=_tensors(source, folder),
        classes=classes,
        label_dropout=label_dropout,
        notices=notices,
    )


# -- files ----------------------------------------------------------------------------------------


def _folder(source: ForeignSource) -> Path:
    """Return the folder of the network."""
    folder = source.path if source.path.is_dir() else source.path.parent
    if source.path.is_dir() and not (folder / "config.json").is_file():
        folder = folder / "unet"
    if not (folder / "config.json").is_file():
        text = f"{source.name} has no config.json of a UNet2DModel next to its weights"
        hint = "Pass the folder that diffusers wrote"
        raise ModelFileError(text, hint, code="model_lacks", path=source.path)
    return folder


def _check_pipeline(folder: Path) -> None:
    """Refuse the network of a pipeline that has other models."""
    for index in (folder / "model_index.json", folder.parent / "model_index.json"):
        if not index.is_file():
            continue
        models = [
            n
            for n in _foreign_files.read_json(index)
            if n[:1] != "_" and n not in ("unet", "scheduler")
        ]
        if models:
            raise ModelFileError(
                f"{show(index)} is of a pipeline with {shorten(', '.join(models))}",
                "Only unconditional and class-conditional image networks are supported",
                code="model_unsupported",
                path=index,
            )


def _tensors(source: ForeignSource, folder: Path) -> dict[str, Any]:
    """Return the weights, by today's names."""
    tensors = source.tensors
    if source.path.is_dir():
        paths = [folder / name for name in file_types.WEIGHTS if (folder / name).is_file()]
        if not paths:
            text = f"{show(folder)} has no {file_types.WEIGHTS[0]}"
            hint = "Weights of another name can be given as SOURCE"
            raise ModelFileError(text, hint, code="model_lacks", path=folder)
        tensors = _foreign_files.read_weights(paths[0])
    renamed = {}
    for name, tensor in tensors.items():
        *path, layer, kind = name.split(".") if name.count(".") > 1 else ("", name, "")
        is_old = "attentions" in path and layer in OLD_NAMES
        renamed[".".join([*path, OLD_NAMES[layer], kind]) if is_old else name] = tensor
    return renamed


# -- scheduler ------------------------------------------------------------------------------------

CLOSE = 1e-6
"""Largest relative difference of betas that are taken for those of our schedule, as schedulers use
float32."""

BETA_ENDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("DDPMScheduler", "DDIMScheduler", "DDIMInverseScheduler", "PNDMScheduler",
         "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler",
         "EulerAncestralDiscreteScheduler"),
        (1e-4, 0.02),
    ),
    "HeunDiscreteScheduler": (0.00085, 0.012),
}  # fmt: skip
"""The schedulers that are read, with their defaults of `beta_start` and `beta_end`."""


def read_process(folder: Path, unet: Net) -> tuple[dict[str, Any], tuple[Notice, ...]]:
    """Return the fields of a process, and what to tell the user."""
    learned = unet.out_channels == output_channels("learned", unet.space.channels)
    time_input = {"rescale_timesteps": False}
    folders = (folder, folder / "scheduler", folder.parent / "scheduler")
    paths = [place / "scheduler_config.json" for place in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        text = f"network from {show(folder / 'config.json')}; there is no scheduler_config.json"
        return {**time_input, "variance": "learned" if learned else "small"}, (Notice(text),)
    config = _foreign_files.read_json(path)
    with _foreign_files.reject_malformed(path):
        fields = read_scheduler(path, config, learned)
    return {**time_input, **fields}, _notices(folder, path, config)


def read_scheduler(path: Path, config: Mapping[str, Any], learned: bool) -> dict[str, Any]:
    """Return the fields of the `DiffusionConfig` that a `scheduler_config.json` describes.

    Args:
        learned: whether the network has channels for a learned variance.

    Raises:
        ModelFileError: a value that is not known.
    """

    def unknown(name: str, value: Any, values: Iterable[str]) -> ModelFileError:
        text = f"{show(path)}: {name} is {shorten(repr(value))}"
        listed = f"Known are: {', '.join(values)}"
        return ModelFileError(text, listed, code="model_unsupported", path=path)

    def known(name: str, default: Any, values: Collection[str]) -> Any:
        if (value := config.get(name, default)) not in values:
            raise unknown(name, value, values)
        return value

    kind = known("_class_name", None, BETA_ENDS)
    known("timestep_type", "discrete", ("discrete",))
    if config.get("trained_betas") is not None:
        betas = list(parsers.parse_betas(list(config["trained_betas"])))
    else:
        schedule = known("beta_schedule", "linear", diffusers_fields.BETAS)
        count = config.get("num_train_timesteps", 1000)
        if not isinstance(count, int) or not 2 <= count <= 100_000:
            raise ValueError(f"num_train_timesteps is {count!r}, not 2 to 100,000")
        given = config.get("beta_start"), config.get("beta_end")
        ends = (float(d if v is None else v) for v, d in zip(given, BETA_ENDS[kind], strict=True))
        betas = list(parsers.parse_betas(list(diffusers_fields.BETAS[schedule](count, *ends))))
    process: dict[str, Any] = {"betas": tuple(betas)}
    for name, make_betas in SCHEDULES.items():
        named_betas = list(make_betas(len(betas)))
        if diffusers_fields.match_betas(named_betas, betas, CLOSE):
            process, betas = {"schedule": name, "num_timesteps": len(betas)}, named_betas
            break
    target = known("prediction_type", "epsilon", diffusers_fields.TARGETS)
    if config.get("predict_epsilon", True) is not True:
        raise unknown("prediction_type", target, diffusers_fields.TARGETS)
    own_fields = config.get(diffusers_fields.OWN)
    own_variance = own_fields.get("variance_type") if isinstance(own_fields, Mapping) else None
    default = "learned_range" if learned else "fixed_small"
    variance = config.get("variance_type") or own_variance or default
    if variance not in diffusers_fields.VARIANCES:
        raise unknown("variance_type", variance, diffusers_fields.VARIANCES)
    return {
        **process,
        "target": diffusers_fields.TARGETS[target],
        "variance": diffusers_fields.VARIANCES[variance],
        # Betas that end without signal have nothing to rescale.
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr")) and betas[-1] != 1,
    }


CLIPPING = ("DDPMScheduler", "DDIMScheduler", "DDIMInverseScheduler")
"""Schedulers that clip x_0 unless their file says otherwise. The others never do."""


def _notices(folder: Path, path: Path, config: Mapping[str, Any]) -> tuple[Notice, ...]:
    """Return the files that were read, and settings of sampling that a model file does not keep."""
    clips = config.get("clip_sample", config.get("_class_name") in CLIPPING)
    read = Notice(f"network from {show(folder / 'config.json')}, process from {show(path)}")
    if config.get("thresholding") and config.get("sample_max_value", 1.0) != 1:
        ratio = shorten(config.get("dynamic_thresholding_ratio", 0.995))
        text = f"uses thresholding: sample with --threshold {ratio}"
    elif not (clips or config.get("thresholding")) or config.get("clip_sample_range", 1.0) != 1:
        text = "does not clip to [-1, 1]; `diffuse sample` does"
    else:
        return (read,)
    return read, Notice(f"{show(path)} {text}", warning=True)
