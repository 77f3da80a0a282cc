"""Models of other programs: they answer as they did there, and nothing in a file is run."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import inspect
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Ran, manifest, mostly_slow
from edited_models import join_file
from openai_oracle import answer, checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffuse_cli.commands.convert.diffusers_fields import DEFAULTS, ONLY
from diffuse_cli.commands.convert.exporters import target_of
from diffuse_cli.commands.convert.importers import convert, diffusers, openai
from diffuse_cli.commands.convert.importers._foreign_files import MOST_BYTES
from diffuse_cli.commands.convert.importers.assembly import (
    Net,
    make_training_options,
    resolve_process,
)
from diffuse_cli.commands.convert.importers.diffusers import BETA_ENDS
from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.config.presets import PRESETS
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.core import Conditions, InvalidArgument, Space, registry
from diffuse_cli.core.networks.unet import Config
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import make_process
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import finish
from diffuse_cli.system.file_types import WEIGHTS
from diffuse_cli.training.configuration import configure
from diffuse_cli.training.decisions import complete_config

theirs = pytest.importorskip("diffusers")

OUT = "model.safetensors"
SMALL: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "attention_head_dim": 8,
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip

NETWORKS: dict[str, dict[str, Any]] = {
    "small": {},
    "ddpm": {
        "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
        "attention_head_dim": None,
    },
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "up and down": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 8, 24), "downsample_type": "resnet", "upsample_type": "resnet",
    },
    "not square": {"sample_size": (8, 12), "in_channels": 1, "out_channels": 1, "dropout": 0.1},
    "attention everywhere": {
        "down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2,
        "layers_per_block": 2, "attention_head_dim": 4,
    },
    "classes": {"num_class_embeds": 3},
    "learned": {"out_channels": 6},
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def randomized(net: Any) -> Any:
    """The network with no weight that is zero, or one for all channels."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in net.named_parameters():
            fan = p[0].numel() if p.ndim > 1 else 10
            p.copy_(torch.randn(p.shape, generator=draw) * fan**-0.5)
            if "norm" in name and name.endswith("weight"):
                p.add_(1)
    return net.eval()


def unet2d(**changes: Any) -> Any:
    return randomized(theirs.UNet2DModel(**{**SMALL, **changes}))


@functools.cache
def small() -> Any:
    """The network where nothing depends on which. Do not change it."""
    return unet2d()


def pipeline(
    net: Any = None, scheduler: Any = None, where: str = "pipeline", **saving: Any
) -> Path:
    """A folder as diffusers' pipelines have it."""
    folder = Path(where)
    (net or small()).save_pretrained(folder / "unet", **saving)
    (scheduler or theirs.DDPMScheduler()).save_pretrained(folder / "scheduler")
    return folder


def described(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None takes one out."""
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


def converted(source: Path | str, **options: Any) -> model_file.StoredModel:
    """The model that `convert` writes, as it is read again."""
    finish(convert(ConvertConfig(source=str(source), overwrite=True, **options)))
    return model_file.load(OUT)


def batch(channels: int, size: Any, n: int = 2) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(2))
    return x, torch.tensor([3, 977])[:n]


def same(found: Tensor, expected: Tensor) -> bool:
    assert float(expected.std()) > 0.1
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


# -- diffusers: the network -----------------------------------------------------------------------


@pytest.mark.parametrize("name", list(NETWORKS))
@torch.no_grad()
def test_a_network_of_diffusers_answers_as_it_did_there(name: str):
    net = unet2d(**NETWORKS[name])
    variance = "learned_range" if name == "learned" else "fixed_small"
    model = converted(pipeline(net, theirs.DDPMScheduler(variance_type=variance)))
    x, t = batch(net.config.in_channels, model.blueprint.space.size)
    label = torch.tensor([0, 2]) if name == "classes" else None
    expected = net(x, t, class_labels=label).sample
    assert same(model.network()(x, t.float(), label=label), expected)
    assert model.blueprint.config.dropout == net.config.dropout


@torch.no_grad()
def test_no_class_is_a_row_of_zeros_which_is_the_network_without_a_label():
    net = unet2d(num_class_embeds=3)
    model = converted(pipeline(net))
    assert model.classes == ("0", "1", "2")
    x, t = batch(3, (8, 8))
    net.class_embedding.weight.zero_()
    expected = net(x, t, class_labels=torch.tensor([0, 1])).sample
    assert same(model.network()(x, t.float()), expected)


def places(folder: Path) -> list[Path]:
    """Every way to name a pipeline, and the layout without subfolders."""
    flat = Path("flat")
    flat.mkdir()
    for part in ("unet/config.json", f"unet/{WEIGHTS[0]}", "scheduler/scheduler_config.json"):
        shutil.copy(folder / part, flat)
    unet = folder / "unet"
    return [folder, unet, unet / WEIGHTS[0], flat, flat / WEIGHTS[0]]


def test_a_pipeline_is_found_however_it_is_named(diffuse):
    written = set()
    for source in places(pipeline(scheduler=theirs.DDPMScheduler(beta_end=0.01))):
        assert diffuse("convert", source, "--overwrite").code == 0
        written.add(Path(OUT).read_bytes())
    assert len(written) == 1
    assert model_file.load(OUT).blueprint.diffusion.betas[-1] == pytest.approx(0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_may_be_a_pickle_and_of_another_precision(zipped: bool, dtype: torch.dtype):
    folder = pipeline(unet2d().to(dtype))
    plain = converted(folder).ema
    weights = load_file(folder / "unet" / WEIGHTS[0])
    assert all(torch.equal(tensor, weights[name].float()) for name, tensor in plain.items())
    (folder / "unet" / WEIGHTS[0]).unlink()
    pickled = folder / "unet" / WEIGHTS[1]
    torch.save(weights, pickled, _use_new_zipfile_serialization=zipped)
    found = converted(folder).ema
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())


def test_old_names_of_attention_layers_are_known():
    folder = pipeline()
    path = folder / "unet" / WEIGHTS[0]
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, tensor in load_file(path).items():
        for new, was in old.items():
            name = name.replace(f".{new}.", f".{was}.")
        weights[name] = tensor
    assert len([name for name in weights if ".query." in name]) == 8
    plain = converted(folder).ema
    save_file(weights, path)
    found = converted(folder).ema
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_the_size_is_typed_where_the_files_do_not_say_it(diffuse):
    folder = pipeline(unet2d(sample_size=None))
    assert "Pass --size" in diffuse("convert", folder, "-q").line
    blueprint = converted(folder, size="12x8").blueprint
    size = blueprint.space.size
    assert (size, blueprint.config.attends(size)) == ((12, 8), [False, True])


def test_defaults_are_those_of_diffusers():
    parameters = dict(list(inspect.signature(theirs.UNet2DModel.__init__).parameters.items())[1:])
    assert {n: p.default for n, p in parameters.items()} == DEFAULTS
    assert set(ONLY) <= set(DEFAULTS)


LACKING: dict[str, Any] = {
    "center_input_sample": True,
    "time_embedding_type": "fourier",
    "time_embedding_dim": 48,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "mid_block_scale_factor": 2,
    "act_fn": "mish",
    "attn_norm_num_groups": 2,
    "resnet_time_scale_shift": "spatial",
    "add_attention": False,
    "class_embed_type": "timestep",
    "downsample_type": "none",
    "upsample_type": "none",
    "down_block_types": ["DownBlock2D", "SkipDownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
    "block_out_channels": [8, 12],
    "future_field": 3,
}
UNKNOWN: dict[str, Any] = {
    "_class_name": "EDMEulerScheduler",
    "beta_schedule": "laplace",
    "prediction_type": "flow_prediction",
    "variance_type": "learned",
    "num_train_timesteps": 10**9,
    "trained_betas": [0.1, 2.0],
    "beta_start": "low",
    "beta_end": float("nan"),
    "predict_epsilon": False,
    "timestep_type": "continuous",
}


def refused(ran: Ran) -> str:
    """The line of a refused conversion, which wrote nothing."""
    assert (ran.code, ran.out) == (4, ""), ran.err
    assert not Path(OUT).exists()
    return ran.line


@pytest.mark.parametrize("name", [*LACKING, *UNKNOWN])
def test_what_the_network_or_the_process_has_not_is_refused_by_name(diffuse, name: str):
    part = "unet/config.json" if name in LACKING else "scheduler/scheduler_config.json"
    described(pipeline() / part, **{name: (LACKING | UNKNOWN)[name]})
    line = refused(diffuse("convert", "pipeline", "-q"))
    words = f"{name} = .* is not supported" if name in LACKING else ""
    assert re.search(f"/{part.split('/')[1]}.*{words}", line)


SIZED_IN_TWO_WAYS = {
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D"),
}


@pytest.mark.parametrize(
    ("network", "variance", "says"),
    [
        # without attn_norm_num_groups, scale and shift leave the norm out in diffusers
        ({"resnet_time_scale_shift": "scale_shift"}, "fixed_small", "attention without a norm"),
        (SIZED_IN_TWO_WAYS, "fixed_small", "down_block_types"),
        ({"in_channels": 4, "out_channels": 4}, "fixed_small", "takes 4 channels"),
        ({"out_channels": 6}, "fixed_small", "not 6"),
        ({"out_channels": 4}, "fixed_small", "not 4"),
        ({}, "learned_range", "not 3"),
    ],
)
def test_a_network_that_is_not_ours_is_refused(diffuse, network: Any, variance: str, says: str):
    folder = pipeline(unet2d(**network), theirs.DDPMScheduler(variance_type=variance))
    assert says in refused(diffuse("convert", folder, "-q"))


def test_networks_of_other_kinds_are_named(diffuse):
    folder = pipeline()
    index = {"_class_name": "LDMPipeline", "unet": [], "scheduler": [], "vqvae": []}
    (folder / "model_index.json").write_text(json.dumps(index))
    for source in (folder, folder / "unet"):
        assert "of a pipeline with vqvae" in refused(diffuse("convert", source, "-q"))
    index.pop("vqvae")
    (folder / "model_index.json").write_text(json.dumps(index))
    assert diffuse("convert", folder, "-q", "-o", "pixels.safetensors").code == 0
    described(folder / "unet" / "config.json", _class_name="UNet2DConditionModel")
    assert "is of a UNet2DConditionModel" in refused(diffuse("convert", folder, "-q"))


MALFORMED: dict[str, Any] = {
    "block_out_channels": "wide", "down_block_types": 3, "in_channels": "3", "norm_eps": -1,
    "layers_per_block": [2, 2], "norm_num_groups": "4", "sample_size": "large", "dropout": 5,
    "out_channels": 3.0, "attention_head_dim": 7, "num_class_embeds": -3,
    "freq_shift": 2, "add_attention": "x" * 9999,
    "flip_sin_to_cos": "x" * 9999,
}  # fmt: skip


@pytest.mark.parametrize("name", list(MALFORMED))
def test_a_field_that_makes_no_sense_is_an_expected_error(diffuse, name: str):
    folder = pipeline()
    for value in (MALFORMED[name], None):
        path = folder / "unet" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
        ran = diffuse("convert", folder, "-q")
        assert ran.code in (4, *((0, 2) if value is None else ())), ran.err
        if ran.code:
            assert ran.line.startswith("diffuse: ")
            assert len(ran.line) < 500
        Path(OUT).unlink(missing_ok=True)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, "\xff", '{"in_channels": NaN, "sample_size": 8}', "3"]
)
def test_a_config_that_is_none_is_an_expected_error(diffuse, text: str):
    folder = pipeline()
    for part in ("unet/config.json", "scheduler/scheduler_config.json"):
        before = (folder / part).read_bytes()
        (folder / part).write_text(text, encoding="latin-1")
        assert part.split("/")[1] in refused(diffuse("convert", folder, "-q"))
        (folder / part).write_bytes(before)


def test_weights_and_configuration_that_differ_are_told_apart(diffuse):
    folder = pipeline()
    path = folder / "unet" / WEIGHTS[0]
    weights = load_file(path)
    changed = {
        "is missing": {n: t for n, t in weights.items() if n != "conv_in.bias"},
        "extra.weight is not of this network": {**weights, "extra.weight": torch.ones(2)},
        "conv_in.bias is (9,), not (8,)": {**weights, "conv_in.bias": torch.ones(9)},
        "weights that are not numbers: conv_in.bias": {
            **weights, "conv_in.bias": torch.full((8,), float("nan")),
        },
        "not tensors of real numbers: conv_in.bias": {
            **weights, "conv_in.bias": torch.ones(8, dtype=torch.int64),
        },
    }  # fmt: skip
    for text, tensors in changed.items():
        save_file(tensors, path)
        assert text in refused(diffuse("convert", folder, "-q"))


# -- diffusers: the process -----------------------------------------------------------------------

SCHEDULES_OF: dict[str, tuple[dict[str, Any], str | None]] = {
    "linear": ({}, "linear"),
    "another end": ({"beta_end": 0.01}, None),
    "linear, 100 steps": ({"num_train_timesteps": 100}, None),
    "linear, 100 steps, scaled": (
        {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.2}, "linear",
    ),
    "scaled_linear": ({"beta_schedule": "scaled_linear"}, "quadratic"),
    "stable diffusion": (
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, None,
    ),
    "cosine": ({"beta_schedule": "squaredcos_cap_v2"}, "cosine"),
    "cosine, 50 steps": (
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50}, "cosine",
    ),
    "constant": ({"beta_start": 0.02}, "constant"),
    "betas": ({"trained_betas": [0.1, 0.2, 0.3]}, None),
}  # fmt: skip


COLOR = Net(config=Config(), space=Space(channels=3, size=(8, 8)), out_channels=3, num_classes=0)
"""Of a network, what the process depends on."""


@pytest.mark.parametrize("case", list(SCHEDULES_OF))
@pytest.mark.parametrize("kind", BETA_ENDS)
def test_betas_are_those_of_the_scheduler(here: Path, kind: str, case: str):
    given, expected = SCHEDULES_OF[case]
    scheduler = getattr(theirs, kind)(**{"beta_start": 1e-4, "beta_end": 0.02, **given})
    scheduler.save_pretrained(here)
    fields, _ = diffusers.read_process(here, COLOR)
    found = DiffusionConfig(**fields)
    process = make_process(found)
    assert torch.allclose(process.betas, scheduler.betas.double(), rtol=2e-6, atol=1e-9)
    assert found.schedule == expected
    assert (found.betas is None) == (expected is not None)
    assert process.timesteps.tolist() == list(range(process.num_timesteps))


@pytest.mark.parametrize("kind", BETA_ENDS)
def test_betas_that_a_file_leaves_out_are_the_schedulers(kind: str):
    scheduler = getattr(theirs, kind)()
    folder = pipeline(scheduler=scheduler)
    path = folder / "scheduler" / "scheduler_config.json"
    described(path, beta_start=None, beta_end=None)
    left_out = json.loads(path.read_text())
    for config in (left_out, {**left_out, "beta_start": None, "beta_end": None}):
        path.write_text(json.dumps(config))
        process = make_process(converted(folder).blueprint.diffusion)
        assert torch.allclose(process.betas, scheduler.betas.double(), rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "target"), [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")]
)
def test_targets_have_other_names_and_the_sigmoid_schedule_is_not_ours(name: str, target: str):
    scheduler = theirs.DDIMScheduler(prediction_type=name)
    assert converted(pipeline(scheduler=scheduler)).blueprint.diffusion == DiffusionConfig(
        schedule="linear", target=target, rescale_timesteps=False
    )
    scheduler = theirs.DDPMScheduler(beta_schedule="sigmoid", prediction_type=name)
    found = converted(pipeline(scheduler=scheduler)).blueprint.diffusion
    assert torch.allclose(torch.tensor(found.betas), scheduler.betas, rtol=1e-5, atol=1e-9)


def test_zero_terminal_snr_is_kept_for_targets_that_exist_there(diffuse):
    scheduler = theirs.DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    found = converted(pipeline(scheduler=scheduler)).blueprint.diffusion
    assert (found.schedule, found.zero_terminal_snr) == ("linear", True)
    bars = make_process(found).alpha_bars.float()
    assert torch.allclose(bars, scheduler.alphas_cumprod, atol=1e-5)
    folder = pipeline(scheduler=theirs.DDPMScheduler(rescale_betas_zero_snr=True))
    diffuse("convert", folder, "--overwrite", "-q").fails(4, "target 'eps' is undefined")


@pytest.mark.parametrize(
    "said", ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"]
)
def test_variances_are_those_of_the_scheduler(said: str):
    scheduler = theirs.DDPMScheduler(variance_type=said)
    learned = said == "learned_range"
    model = converted(pipeline(unet2d(out_channels=6 if learned else 3), scheduler))
    raw = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    denoiser = model.blueprint.denoiser(lambda x, t: torch.cat([x, raw], 1) if learned else x)
    prediction = denoiser(torch.zeros(1, 3, 8, 8), 500)
    for t in (1, 10, 500, 999):
        found = torch.as_tensor(prediction.log_var(t, t - 1))
        expected = scheduler._get_variance(t, predicted_variance=raw if learned else None)
        if said == "fixed_small_log":
            expected = 2 * expected.log()
        elif said in ("fixed_small", "fixed_large"):
            expected = expected.log()
        assert torch.allclose(found.float(), expected, rtol=1e-3), (said, t)


def test_settings_of_sampling_that_are_not_kept_are_said(diffuse):
    plain = diffuse("convert", pipeline())
    assert "warning" not in plain.err
    # at most 1: that is clipping
    clipping = pipeline(scheduler=theirs.DDPMScheduler(thresholding=True, sample_max_value=1.0))
    assert "warning" not in diffuse("convert", clipping, "--overwrite").err
    for scheduler, text in (
        (theirs.DDPMScheduler(clip_sample=False), "does not clip"),
        (theirs.DDPMScheduler(clip_sample_range=2.0), "does not clip"),
        (theirs.EulerDiscreteScheduler(), "does not clip"),
        (theirs.DDPMScheduler(thresholding=True, sample_max_value=2.0), "--threshold 0.995"),
    ):
        ran = diffuse("convert", pipeline(scheduler=scheduler), "--overwrite").ok()
        assert "warning: " in ran.err
        assert text in ran.err


def test_without_a_scheduler_the_process_is_typed_or_a_presets(diffuse):
    folder = pipeline()
    (folder / "scheduler" / "scheduler_config.json").unlink()
    diffuse("convert", folder, "-q").fails(2, "does not say its noise schedule")
    ran = diffuse("convert", folder, "--schedule", "cosine", "-q")
    assert (ran.code, "does not say its number of timesteps" in ran.line) == (2, True)
    typed = {"schedule": "sigmoid", "num_timesteps": 50, "target": "v", "variance": "large"}
    found = converted(folder, **typed).blueprint.diffusion
    assert {name: getattr(found, name) for name in typed} == typed
    assert found.rescale_timesteps is False
    Path("betas.txt").write_text("0.1 0.2")
    found = converted(folder, betas="betas.txt").blueprint.diffusion
    assert (found.betas, found.target, found.variance) == ((0.1, 0.2), "eps", "small")


def test_what_is_typed_wins_over_the_scheduler(diffuse):
    folder = pipeline(scheduler=theirs.DDPMScheduler(trained_betas=[0.1, 0.2]))
    typed = {"schedule": "cosine", "num_timesteps": 9, "target": "x0", "variance": "large"}
    found = converted(folder, **typed).blueprint.diffusion
    assert found.betas is None
    assert typed == {name: getattr(found, name) for name in typed}
    found = converted(folder, schedule="cosine").blueprint.diffusion
    assert (found.schedule, found.num_timesteps, found.betas) == ("cosine", 2, None)
    line = ("convert", folder, "--num-timesteps", 9, "--overwrite", "-q")
    diffuse(*line).fails(2, "not the number of --betas")


# -- OpenAI ---------------------------------------------------------------------------------------

CHECKPOINTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "four heads": ({}, {"heads": 4}),
    "head width": ({}, {"head_width": 32}),
    "other heads up": ({"attends": (True, True)}, {"heads": 2, "heads_upsample": 4}),
    "other heads up, new order": (
        {"attends": (True, True)}, {"heads": 4, "heads_upsample": 1, "attention_order": "new"},
    ),
    "first level half as wide": (
        {"multipliers": (1, 2, 2), "time_width": 64, "attends": (False, True, True)},
        {"head_width": 16},
    ),
    "new order": ({}, {"heads": 4, "attention_order": "new"}),
    "one head, new order": ({}, {"heads": 1, "attention_order": "new"}),
    "up and down": ({"updown": True, "attends": (True, True)}, {"heads": 2}),
    "time added": ({"scale_shift": False, "out_channels": 3}, {"heads": 2}),
    "classes": ({"classes": 3, "updown": True, "scale_shift": False}, {"head_width": 16}),
    "no attention": ({"attends": (False, False)}, {"heads": 2}),
    "three levels": (
        {"multipliers": (1, 1, 2), "attends": (False, True, False), "blocks": 2}, {"heads": 2},
    ),
    "one level": ({"multipliers": (1,), "attends": (True,), "blocks": 3}, {"heads": 2}),
    "grey": ({"channels": 1, "out_channels": 2}, {"heads": 2}),
}  # fmt: skip

PROCESS: dict[str, Any] = {"schedule": "cosine", "num_timesteps": 1000}
TYPED = ("--size", 8, "--schedule", "cosine", "--num-timesteps", 100)


def saved(name: str = "ema_0.9999_500000.pt", **shape: Any) -> tuple[Path, dict[str, Tensor]]:
    state = checkpoint(**shape)
    torch.save(state, name)
    return Path(name), state


def heads_of(options: dict[str, Any]) -> Callable[[int], int]:
    return lambda width: int(options.get("heads") or width // options["head_width"])


@pytest.mark.parametrize("name", list(CHECKPOINTS))
@torch.no_grad()
def test_a_network_of_openai_answers_as_it_did_there(name: str):
    shape, options = CHECKPOINTS[name]
    path, state = saved(**shape)
    model = converted(path, size=8, **PROCESS, **options)
    own = model.blueprint
    x, t = batch(own.space.channels, (8, 8))
    label = torch.tensor([2, 0]) if own.conditions.classes else None
    order = options.get("attention_order", "legacy")
    up = options.get("heads_upsample")
    heads_up = heads_of({"heads": up}) if up else None
    expected = answer(state, x, t, label, heads_of(options), order, heads_up)
    assert same(model.network()(x, t.float(), label=label), expected)
    learned = own.out_channels == 2 * own.space.channels
    assert own.diffusion.variance == ("learned" if learned else "large")
    assert own.diffusion.target == "eps"
    if own.conditions.classes:
        assert model.classes == ("0", "1", "2")
        state["label_emb.weight"].zero_()
        assert same(model.network()(x, t.float()), answer(state, x, t, label, heads_of(options)))


@pytest.mark.parametrize(
    ("attends", "options", "assumed"),
    [
        ((True, True), ("--heads", 2), True),
        ((True, True), ("--heads", 2, "--heads-upsample", 2), False),
        ((True, True), ("--head-width", 16), False),
        ((False, False), ("--heads", 2), False),
    ],
)
def test_heads_on_the_way_up_are_assumed_to_be_those_down(diffuse, attends, options, assumed):
    path, _ = saved(attends=attends)
    ran = diffuse("convert", path, *options, *TYPED).ok()
    assert ("assumed 2 attention heads on the way up, too" in ran.err) is assumed


def test_the_heads_of_a_preset_may_have_no_others_on_the_way_up():
    for preset, typed in (("adm-64", {}), ("iddpm-cifar10", {"heads_upsample": 4})):
        source, _ = published(preset)
        found = openai.read(source, ConvertConfig(source="m.pt", preset=preset, **typed))
        assert (found.unet.config.heads_up, found.notices) == (None, ())
    source, _ = published("adm-64")
    with pytest.raises(UsageError, match="--heads-upsample does not suit --preset adm-64"):
        openai.read(source, ConvertConfig(source="m.pt", preset="adm-64", heads_upsample=4))


SIDES = {"iddpm-cifar10": 32, "iddpm-imagenet64": 64, "adm-64": 64, "adm-128": 128, "adm-256": 256}


def published(name: str, **changes: Any) -> tuple[SimpleNamespace, Net]:
    """A checkpoint of a preset's shape that takes no memory, and the preset's network."""
    own = PRESETS[name].settings
    side, classes = SIDES[name], 1000 if name.startswith("adm") else 0
    attends = tuple(side >> i in own["attention"] for i in range(len(own["multipliers"])))
    state = checkpoint(
        width=own["width"], multipliers=own["multipliers"], blocks=own["blocks"], attends=attends,
        updown=own.get("resblock_updown", False), classes=classes, filled=False, **changes,
    )  # fmt: skip
    fields = {**own, "attention": tuple(sorted(own["attention"], reverse=True))}
    net = Net(
        config=Config(**fields),
        space=Space(channels=3, size=(side, side)),
        out_channels=changes.get("out_channels", 6),
        num_classes=classes,
    )
    return SimpleNamespace(tensors=state, name="m.pt", path=Path("m.pt")), net


@pytest.mark.parametrize("name", list(SIDES))
def test_a_preset_says_what_a_published_checkpoint_does_not(name: str):
    source, expected = published(name)
    found = openai.read(source, ConvertConfig(source="m.pt", preset=name))
    assert found.unet == expected
    assert found.diffusion == {"variance": "learned"}
    with pytest.raises(UsageError, match=f"It has the shape of.*--preset {name}"):
        openai.read(source, ConvertConfig(source="m.pt"))


def test_every_published_network_of_openai_is_tried():
    assert set(SIDES) == {n for n, p in PRESETS.items() if p.published and n[:5] != "ddpm-"}


def test_one_published_checkpoint_has_the_new_order():
    """guided-diffusion's flags for 64x64; numbered rows say which were taken."""
    for preset in SIDES:
        source, unet = published(preset)
        name, size = "middle_block.1.qkv.bias", unet.config.widths[-1]
        source.tensors[name] = torch.arange(3.0 * size)
        found = openai.read(source, ConvertConfig(source="m.pt", preset=preset)).tensors
        keys = found["mid_block.attentions.0.to_k.bias"]
        heads = unet.config.heads_at(size)
        each = size // heads
        rows = [3 * each * h + each + c for h in range(heads) for c in range(each)]
        expected = range(size, 2 * size) if preset == "adm-64" else rows
        assert keys.tolist() == list(expected), preset


def test_a_preset_of_another_network_is_refused(diffuse):
    path, _ = saved()
    diffuse("convert", path, "--preset", "adm-64", "-q").fails(2, "width is 32 there, not 192")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ((), "does not say its attention heads"),
        (("--heads", 2), "does not say its image size"),
        (("--heads", 2, "--size", 8), "does not say its noise schedule"),
        (("--heads", 2, "--size", 8, "--schedule", "linear"), "its number of timesteps"),
        (("--heads", 2, "--size", 9, *TYPED[2:]), "--size 9x9 does not suit a network of 2 levels"),
        (("--heads", 2, *TYPED, "--variance", "small"), "--variance 'small' needs 3 channels"),
    ],
)
def test_what_a_checkpoint_does_not_say_is_asked_for(diffuse, typed, says: str):
    path, _ = saved()
    diffuse("convert", path, *typed, "-q").fails(2, says)


def test_the_process_of_a_checkpoint_is_typed():
    path, _ = saved(out_channels=3)
    typed = {"schedule": "linear", "num_timesteps": 400, "target": "x0", "variance": "small"}
    typed["rescale_timesteps"] = False
    found = converted(path, heads=2, size=8, **typed).blueprint.diffusion
    assert typed == {name: getattr(found, name) for name in typed}
    assert converted(path, heads=2, size=8, **PROCESS).blueprint.diffusion.rescale_timesteps is True


WRONG: list[tuple[str, Tensor | None, str]] = [
    ("output_blocks", None, "a classifier"),
    ("output_blocks.0.", None, "output blocks"),
    ("middle_block.1.qkv.weight", None, "middle_block.1.qkv.weight is missing"),
    ("input_blocks.1.0.out_layers.3.weight", None, "out_layers.3.weight is missing"),
    ("input_blocks.0.0.weight", torch.ones(0), "channels"),
    ("input_blocks.0.0.weight", torch.ones(32, 6, 3, 3), "takes 6 channels"),
    ("time_embed.0.weight", torch.ones(256, 64), "layers.1.weight is (128, 128), not (128, 256)"),
    ("middle_block.9.weight", torch.ones(1), "middle_block.9.weight is not of this network"),
    ("middle_block.1.qkv.weight", torch.ones(150, 64, 1), "middle_block.1.qkv.weight is"),
    ("middle_block.1.qkv.weight", torch.tensor(1.0), "middle_block.1.qkv.weight is (), not"),
    ("label_emb.weight", torch.ones(5), "label_emb.weight is (5,), not (6, 128)"),
    ("label_emb.weight", torch.ones(5, 64), "label_emb.weight is (6, 64), not (6, 128)"),
    ("out.2.bias", torch.full((6,), torch.inf), "weights that are not numbers: out.2.bias"),
]
"""Tensors that a checkpoint has instead; None takes out all of these first letters."""


@pytest.mark.parametrize(("name", "tensor", "says"), WRONG)
def test_a_checkpoint_that_is_no_network_is_refused(diffuse, name: str, tensor: Any, says: str):
    state = {n: t for n, t in checkpoint().items() if not n.startswith(name)}
    torch.save(state if tensor is None else {**state, name: tensor}, "m.pt")
    assert says in refused(diffuse("convert", "m.pt", "--heads", 2, *TYPED, "-q"))


# -- files that were made to do harm --------------------------------------------------------------


class Evil:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", mostly_slow([".pt", ".pth", ".ckpt", ".bin"], always=1))
@pytest.mark.parametrize(
    "format", [(), ("--format", "openai", "--heads", 2), ("--format", "diffusers")], ids=str
)
def test_a_pickle_that_would_run_code_is_refused_and_not_run(diffuse, suffix, zipped, format):
    path = Path(f"m{suffix}")
    torch.save({**checkpoint(), "x": Evil()}, path, _use_new_zipfile_serialization=zipped)
    Path("config.json").write_text(json.dumps({"_class_name": "UNet2DModel", "sample_size": 32}))
    line = refused(diffuse("convert", path, *TYPED, *format, "-q"))
    assert f"{path} is a pickle that asks for posix.system" in line
    assert not Path("harmed").exists()
    torch.load(path, weights_only=False)
    assert Path("harmed").exists()  # so it would have been


class Filling:
    """Takes memory that is not in the file, as torch lets a pickle."""

    def __reduce__(self) -> Any:
        return bytearray, (2**20,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_fill_the_memory_is_refused(diffuse, monkeypatch, zipped):
    torch.save({**checkpoint(), "x": Filling()}, "m.pt", _use_new_zipfile_serialization=zipped)
    assert len(torch.load("m.pt", weights_only=True)["x"]) == 2**20
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("it was read"))
    assert "asks for a bytearray" in refused(diffuse("convert", "m.pt", *TYPED, "-q"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["m/data.pkl", "m/DATA.PKL"])
def test_a_second_pickle_in_a_file_is_looked_at_too(diffuse, name):
    torch.save(checkpoint(), "m.pt")
    with zipfile.ZipFile("m.pt") as archive, zipfile.ZipFile("two.pt", "w") as two:
        for entry in archive.infolist():
            two.writestr(entry.filename, archive.read(entry))
        two.writestr(name, pickle.dumps(Filling(), protocol=2))
    assert "asks for a bytearray" in refused(diffuse("convert", "two.pt", *TYPED, "-q"))


def test_a_plain_pickle_is_refused(diffuse):
    for protocol in range(6):
        for content in (Evil(), Filling(), {"a": 1}):
            Path("m.pt").write_bytes(pickle.dumps(content, protocol=protocol))
            refused(diffuse("convert", "m.pt", *TYPED, "-q"))
    assert not Path("harmed").exists()


def test_a_pickle_in_a_folder_of_diffusers_is_not_run_either(diffuse):
    folder = pipeline()
    (folder / "unet" / WEIGHTS[0]).unlink()
    torch.save({"conv_in.weight": Evil()}, folder / "unet" / WEIGHTS[1])
    assert "posix.system" in refused(diffuse("convert", folder, "-q"))
    assert not Path("harmed").exists()


def packed(path: Path) -> None:
    """A zip that grows when it is unpacked."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)


def encrypted(path: Path) -> None:
    """A checkpoint whose entries are said to need a password."""
    torch.save({"a": torch.ones(3)}, path)
    data = bytearray(path.read_bytes())
    for found in re.finditer(b"PK\x01\x02", bytes(data)):
        data[found.start() + 8] |= 1
    path.write_bytes(data)


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "neither safetensors nor a pickle"),
    "text": (lambda p: p.write_text("a model, honestly"), "neither safetensors nor a pickle"),
    "packed": (packed, "is compressed"),
    "encrypted": (encrypted, "or encrypted"),
    "broken zip": (lambda p: p.write_bytes(b"PK\x03\x04" + b"x" * 100), "that is cut short"),
    "broken pickle": (lambda p: p.write_bytes(b"\x80\x02" + b"x" * 100), "cannot be read"),
    "another zip": (
        lambda p: zipfile.ZipFile(p, "w").writestr("a.txt", "a"), "is a zip file, not a model",
    ),
    "not by name": (lambda p: torch.save([torch.ones(3)], p), "no tensors by name"),
    "beside tensors": (
        lambda p: torch.save({"weights": {"a": torch.ones(3)}, "step": 3}, p),
        "2 entries that are not tensors of real numbers: step, weights",
    ),
    "larger than the file": (
        lambda p: torch.save({"time_embed.0.weight": torch.ones(1).expand(2**20, 2**20)}, p),
        "larger than the file",
    ),
    "sparse": (lambda p: torch.save({"a": torch.ones(3).to_sparse()}, p), "not tensors of real"),
    "meta": (lambda p: torch.save({"a": torch.ones(3, device="meta")}, p), "not tensors of real"),
    "of no known format": (lambda p: torch.save({"a": torch.ones(3)}, p), "a known format"),
    "a run's checkpoint": (
        lambda p: save_file({"conv_in.weight": torch.ones(1),
                             "time_embedding.linear_1.weight": torch.ones(1)}, p),
        "no config.json",
    ),
    "nested key": (
        lambda p: torch.save({(("a", "b"), "c"): torch.ones(3)}, p), "a key of type tuple",
    ),
    "sizes beyond 64 bits": (
        lambda p: p.write_bytes(join_file(
            {"a": {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}
        )),
        "cannot be used",
    ),
    "tar.gz": (lambda p: p.write_bytes(gzip.compress(b"x")), "is a gzip archive, not a model"),
    "short safetensors": (
        lambda p: (save_file({"a": torch.ones(300)}, p), p.write_bytes(p.read_bytes()[:-9])),
        "cannot be used",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_model_is_refused(diffuse, name: str):
    write, says = FILES[name]
    write(Path("m.pt"))
    line = refused(diffuse("convert", "m.pt", *TYPED, "-q"))
    assert says in line
    assert "m.pt" in line


def test_a_pickle_that_is_too_large_is_not_read(diffuse, monkeypatch):
    torch.save(checkpoint(), "m.pt", _use_new_zipfile_serialization=False)
    os.truncate("m.pt", MOST_BYTES + 1)  # which takes no room
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("it was read"))
    assert "is a pickle of more than" in refused(diffuse("convert", "m.pt", *TYPED, "-q"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_is_cut_short_or_changed_is_refused(diffuse, zipped: bool):
    torch.save(checkpoint(), "whole.pt", _use_new_zipfile_serialization=zipped)
    data = Path("whole.pt").read_bytes()
    for length in (1, 3, 100, len(data) // 2, len(data) - 10):
        Path("m.pt").write_bytes(data[:length])
        assert "m.pt" in refused(diffuse("convert", "m.pt", "--heads", 2, *TYPED, "-q"))


def test_names_in_a_file_are_shown_escaped(diffuse):
    torch.save({**checkpoint(), "a\x1b[31m\nb": torch.ones(1)}, "m.pt")
    line = refused(diffuse("convert", "m.pt", "--heads", 2, *TYPED, "-q"))
    assert "\x1b" not in line
    assert "is not of this network" in line


def test_safetensors_whose_length_begins_as_a_pickle_does_are_safetensors(diffuse):
    """A header of 640 bytes begins with 80 02, as a pickle of protocol 2."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})
    data = join_file(header.encode().ljust(640))
    assert data[:2] == b"\x80\x02"
    Path("m.pt").write_bytes(data)
    assert "no model of a known format" in diffuse("convert", "m.pt", *TYPED, "-q").line


# -- the command ----------------------------------------------------------------------------------


def test_a_broken_extension_breaks_no_conversion(monkeypatch):
    broken = {
        group: {"broken": EntryPoint("broken", "no_such_package", f"diffuse.{group}")}
        for group in ("exports", "formats", "schedules")
    }
    monkeypatch.setattr(registry, "extension_points", lambda: broken)
    folder = pipeline(scheduler=theirs.DDPMScheduler(beta_end=0.01))  # not one of our schedules
    assert converted(folder).blueprint.diffusion.betas
    assert target_of(ConvertConfig(source="pipeline", out=OUT)) is None
    Path("empty").mkdir()
    with pytest.raises(InvalidArgument, match="the extension no_such_package cannot be loaded"):
        converted("empty")


def test_the_path_is_printed_or_json(diffuse):
    folder = pipeline()
    ran = diffuse("convert", folder)
    assert (ran.code, ran.out) == (0, f"{OUT}\n")
    assert "network from pipeline/unet/config.json, process from pipeline/scheduler" in ran.err
    assert "diffusers: 45,259 parameters, 8x8, linear over 1,000 timesteps" in ran.err
    found = diffuse("convert", folder, "-o", "b.safetensors", "--json", "-q").json
    assert (found["model"], found["format"], found["classes"]) == ("b.safetensors", "diffusers", 0)
    assert found["diffusion"]["schedule"] == "linear"
    assert found["space"]["size"] == [8, 8]
    assert found["parameters"] == sum(t.numel() for t in model_file.load(OUT).ema.values())


def test_classes_have_the_names_of_a_file(diffuse):
    folder = pipeline(unet2d(num_class_embeds=3))
    Path("names.txt").write_text(
        "\ufefftench\r\n\r\n great white shark \nбагет\n", encoding="utf-8"
    )
    assert diffuse("convert", folder, "--class-names", "names.txt", "-q").code == 0
    assert model_file.load(OUT).classes == ("tench", "great white shark", "багет")
    for text, says in ((b"a\nb\na\n", "'a' twice"), (b"\xff\xfe", "--class-names")):
        Path("names.txt").write_bytes(text)
        diffuse("convert", folder, "--class-names", "names.txt", "--overwrite", "-q").fails(2, says)


def test_options_come_from_a_file_too(diffuse):
    path, _ = saved()
    Path("c.toml").write_text('heads = 2\nsize = "8"\nschedule = "cosine"\nnum_timesteps = 100\n')
    assert diffuse("convert", path, "--config", "c.toml", "-q").code == 0
    assert diffuse("convert", path, "--heads", 2, *TYPED, "-q", "-o", "b.safetensors").code == 0
    assert Path("b.safetensors").read_bytes() == Path(OUT).read_bytes()


# -- what is made of it ---------------------------------------------------------------------------


@pytest.fixture(params=["diffusers classes", "openai"])
def source(request: pytest.FixtureRequest, diffuse: Callable[..., Ran]) -> str:
    """A converted model of grey images of 8x8, with 2 classes or none. That both formats have both
    is held above."""
    if request.param == "openai":
        path, _ = saved(channels=1, out_channels=2, time_width=64)
        line = ("--heads", 2, "--heads-upsample", 4, *TYPED, "--no-rescale-timesteps")
    else:
        net = unet2d(in_channels=1, out_channels=1, num_class_embeds=2)
        path, line = pipeline(net, theirs.DDPMScheduler(beta_end=0.015)), ()
    diffuse("convert", path, *line, "-q").ok()
    return str(request.param)


def test_a_converted_model_is_sampled_measured_and_trained_on(diffuse, images, source: str):
    diffuse("sample", OUT, "-n", 2, "--steps", 5, "-o", "drawn", "-q").ok()
    classes = 2 if "classes" in source else 0
    assert manifest("drawn").get("guidance") == (1 if classes else None)
    ran = diffuse("eval", OUT, images, "-n", 4, "--steps", 2, "--timesteps", 2, "--json", "-q").ok()
    assert ran.json["bits_per_dim"] > 0
    still = ("--steps", 1, "--lr", 0, "--weight-decay", 0, "--precision", "fp32", "-q")
    diffuse("train", images, "--init", OUT, "-o", "next.safetensors", *still).ok()
    before, after = model_file.load(OUT), model_file.load("next.safetensors")
    conditions = before.blueprint.conditions
    own = dataclasses.replace(after.blueprint, conditions=conditions, gaussian=None)
    assert own == before.blueprint
    assert all(torch.equal(after.ema[name], before.ema[name]) for name in before.ema)
    assert after.blueprint.conditions.num_classes == classes


def test_training_on_has_a_rate_that_suits_the_width():
    rates = []
    for width in (32, 64):
        path, _ = saved(channels=1, out_channels=2, width=width)
        model = converted(path, heads=2, size=8, **PROCESS)
        given = configure({"data": "images", "init": OUT})
        config, own = complete_config(given, model.blueprint.space, Conditions())
        assert own.config == model.blueprint.config
        rates.append(config.lr)
    assert rates[0] == pytest.approx(2 * rates[1])


@pytest.mark.parametrize("learned", [True, False])
def test_training_on_follows_the_presets_recipe(learned: bool):
    source, unet = published("iddpm-imagenet64", out_channels=6 if learned else 3)
    foreign = openai.read(source, ConvertConfig(source="m.pt", preset="iddpm-imagenet64"))
    assert foreign.diffusion == {"variance": "learned" if learned else "large"}
    config = ConvertConfig(source="m.pt", preset="iddpm-imagenet64")
    diffusion = resolve_process(foreign, source, config)
    assert (diffusion.schedule, diffusion.num_timesteps) == ("cosine", 4000)
    kept = make_training_options(foreign.unet, diffusion, "iddpm-imagenet64")
    assert foreign.unet == unet
    assert "lr" not in kept
    assert kept.get("loss") == ("hybrid" if learned else None)
    assert (kept["weighting"], kept["ema_decay"], kept["grad_clip"]) == ("none", 0.9999, 1e6)
    assert (kept["preset"], kept["size"], kept["width"]) == ("iddpm-imagenet64", [64, 64], 128)
    assert "classes" not in kept or kept["classes"] is False
