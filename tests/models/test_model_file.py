"""The model file: whole, the same for the same model, and never trusted."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import Plan, plan

from diffuse_cli.config.options import option_fields
from diffuse_cli.config.sample_options import SamplerChoice
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import Conditions, Space, data_gaussian
from diffuse_cli.core.denoising_errors import DenoisingErrors
from diffuse_cli.core.networks.unet import Config
from diffuse_cli.models import model_file, tensor_file
from diffuse_cli.models.model_file import StoredModel, find, load, save, training_options
from diffuse_cli.models.model_header import describe_model
from diffuse_cli.system.errors import ModelFileError, UsageError
from diffuse_cli.system.events import finish

UNET = plan(
    size=(4, 8), channels=1, width=4, groups=2, multipliers=(1, 2), blocks=1, attention=(2,)
)
DIFFUSION = DiffusionConfig(num_timesteps=50, schedule="linear", target="v")


def weights(seed: int = 0, unet: Plan = UNET) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = unet.build().state_dict()
    return {name: torch.randn(t.shape, generator=generator) for name, t in state.items()}


def model(**changes: Any) -> StoredModel:
    fields: dict[str, Any] = {
        "blueprint": UNET.blueprint(DIFFUSION),
        "ema": weights(),
        "step": 12,
        "data": {"fingerprint": "abc", "images": 20, "origin": "hf://datasets/a/Ümlaut"},
        "training": {"steps": 12, "lr": 2e-3},
    }
    return StoredModel(**{**fields, **changes})


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save(path, model())
    return path.read_bytes()


def taken_apart(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_together(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def described(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file with another `diffuse.config`."""
    header, body = taken_apart(data)
    config = json.loads(header["__metadata__"]["diffuse.config"])
    changed = change(config)
    config = config if changed is None else changed
    header["__metadata__"]["diffuse.config"] = json.dumps(config)
    return put_together(header, body)


def rejected(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as caught:
        load(path)
    assert caught.value.exit_code == 4
    text = str(caught.value)
    assert "m.safetensors" in text
    assert "\n" not in text
    assert len(text) < 1000 + len(str(tmp_path))
    return text


# -- writing --------------------------------------------------------------------------------------


WEAK = {"weak": weights(2), "weak_step": 3}


@pytest.mark.parametrize("weak", [{}, WEAK], ids=["", "with weak"])
@pytest.mark.parametrize("raw", [None, weights(1)], ids=["ema", "with raw"])
def test_a_model_is_read_as_it_was_written(tmp_path: Path, raw, weak):
    written = model(raw=raw, **weak)
    save(tmp_path / "m.safetensors", written)
    read = load(tmp_path / "m.safetensors")
    for f in dataclasses.fields(StoredModel):
        if f.name in ("ema", "raw", "weak", "versions"):
            continue
        assert getattr(read, f.name) == getattr(written, f.name), f.name
    for name in ("ema", "raw", "weak"):
        before, after = getattr(written, name), getattr(read, name)
        assert (before is None) == (after is None)
        assert (before or {}).keys() == (after or {}).keys()
        assert all(torch.equal(before[n], after[n]) for n in before or {})
    assert read.versions.keys() == {"diffuse", "torch"}
    title = finish(find(tmp_path / "m.safetensors")).title
    assert title == f"diffuse model, {written.step} steps"


def test_equal_models_are_equal_bytes(tmp_path: Path):
    save(tmp_path / "a", model())
    backwards = dict(reversed(list(weights().items())))
    shuffled = dict(reversed(model().data.items()))
    save(tmp_path / "b", model(ema=backwards, data=shuffled))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    save(tmp_path / "c", model(step=13))
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_the_memory_order_of_weights_is_of_no_matter(tmp_path: Path):
    strange = {
        n: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t
        for n, t in weights().items()
    }
    save(tmp_path / "a", model())
    save(tmp_path / "b", model(ema=strange))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_it_is_a_safetensors_file_with_its_metadata_sorted(good: bytes, tmp_path: Path):
    (tmp_path / "m").write_bytes(good)
    tensors = safetensors.torch.load_file(tmp_path / "m")
    assert all(torch.equal(t, tensors[name]) for name, t in weights().items())
    header, _ = taken_apart(good)
    assert list(header) == sorted(header)
    metadata = header["__metadata__"]
    assert list(metadata) == sorted(metadata)
    assert metadata["format"] == "pt"
    assert metadata["modelspec.resolution"] == "8x4"
    assert struct.unpack("<Q", good[:8])[0] % 8 == 0
    config = json.loads(metadata["diffuse.config"])
    assert metadata["diffuse.config"] == json.dumps(config, sort_keys=True, separators=(",", ":"))
    assert config["data"]["origin"] == "hf://datasets/a/Ümlaut"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_its_mode_follows_the_umask(tmp_path: Path, mask: int):
    before = os.umask(mask)
    try:
        save(tmp_path / "m", model())
    finally:
        os.umask(before)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o666 & ~mask


def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path, good: bytes):
    (tmp_path / "m").write_bytes(good)
    with pytest.raises(KeyError):
        save(tmp_path / "m", model(ema={"conv_in.weight": torch.zeros(1, dtype=torch.complex64)}))
    assert (tmp_path / "m").read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


# -- a recommendation -----------------------------------------------------------------------------


def config_of(path: Path) -> dict[str, Any]:
    return json.loads(taken_apart(path.read_bytes())[0]["__metadata__"]["diffuse.config"])


def test_a_recommendation_is_one_more_key_and_nothing_else(tmp_path: Path, good: bytes):
    recommended = model(sampling=SamplerChoice("heun", 50))
    save(tmp_path / "m", recommended)
    assert load(tmp_path / "m").sampling == SamplerChoice("heun", 50)
    (tmp_path / "plain").write_bytes(good)
    config, plain = config_of(tmp_path / "m"), config_of(tmp_path / "plain")
    assert config.pop("sampling") == {"sampler": "heun", "steps": 50}
    assert config == plain
    assert plain.keys() == {
        "version", "space", "network", "conditions", "diffusion", "step", "data", "training",
        "versions",
    }  # fmt: skip
    assert load(tmp_path / "plain").sampling is None
    save(tmp_path / "again", dataclasses.replace(load(tmp_path / "m"), sampling=None))
    assert (tmp_path / "again").read_bytes() == good


def test_a_recommended_guidance_survives(tmp_path: Path):
    unet = dataclasses.replace(UNET, conditions=Conditions(classes=("a", "b")))
    made = dataclasses.replace(of(unet, "small"), sampling=SamplerChoice("unipc", 8, 0.0))
    save(tmp_path / "m", made)
    assert load(tmp_path / "m").sampling == SamplerChoice("unipc", 8, 0.0)
    data = (tmp_path / "m").read_bytes()
    rejected(tmp_path, described(data, setting("sampling", value={"sampler": "unipc", "steps": 8})))
    rejected(tmp_path, described(data, setting("sampling", "guidance", value=float("nan"))))


def test_guidance_by_a_weak_average_is_recommended_where_there_is_one(tmp_path: Path):
    sampling = SamplerChoice("unipc", 8, None, 1.5)
    save(tmp_path / "m", model(sampling=sampling, **WEAK))
    assert load(tmp_path / "m").sampling == sampling
    save(tmp_path / "m.safetensors", model(sampling=sampling))
    assert "has no weak weights" in rejected(tmp_path, (tmp_path / "m.safetensors").read_bytes())


def test_learned_times_are_of_version_3_and_refused_where_they_do_not_fit(
    tmp_path: Path, good: bytes
):
    """Without them a file is what it was before there were any."""
    sampling = SamplerChoice("unipc", 3, None, None, (9.0, 4.25, 0.0))
    save(tmp_path / "m", model(sampling=sampling))
    assert load(tmp_path / "m").sampling == sampling
    config = config_of(tmp_path / "m")
    assert config["version"] == 3
    assert config["sampling"] == {"sampler": "unipc", "steps": 3, "times": [9.0, 4.25, 0.0]}
    save(tmp_path / "plain", model(sampling=SamplerChoice("unipc", 3)))
    assert config_of(tmp_path / "plain")["version"] == 2
    assert "times" not in config_of(tmp_path / "plain")["sampling"]
    data = (tmp_path / "m").read_bytes()
    last = model().blueprint.process.num_timesteps - 1
    for times in (
        [9.0, 4.25], [9.0, 4.25, 4.25], [4.25, 9.0, 0.0], [9.0, 4.25, -1.0], [last + 1.0, 4, 0],
        [float("nan"), 4.25, 0.0], [float("inf"), 4.25, 0.0], ["9", "4", "0"], "9,4,x", [], None,
        [True, 0.5, 0.25], {"9": 1},
    ):  # fmt: skip
        rejected(tmp_path, described(data, setting("sampling", "times", value=times)))


LOW = {
    "colors": [[1.0]],
    "mean": [[[-9.5] + [0.0] * 7] + [[0.0] * 8] * 3],
    "variance": [[[40.0] + [0.25] * 7] + [[0.25] * 8] * 3],
}
"""Low frequencies of a grey data set."""


@pytest.mark.parametrize(
    ("change", "version"), [({}, 2), ({"rate": 8000}, 7), ({"levels": 65_536}, 6)]
)
def test_a_model_has_the_oldest_version_that_can_say_what_its_samples_are(
    tmp_path: Path, change: dict[str, Any], version: int
):
    made = model()
    space = dataclasses.replace(made.blueprint.space, **change)
    blueprint = dataclasses.replace(made.blueprint, space=space)
    save(tmp_path / "m", dataclasses.replace(made, blueprint=blueprint))
    assert config_of(tmp_path / "m")["version"] == version


def with_gaussian(values):
    """The model, with a Gaussian of its data."""
    own = model().blueprint
    gaussian = data_gaussian.read(values, own.space.channels, own.space.size)
    return model(blueprint=dataclasses.replace(own, gaussian=gaussian))


def test_a_filter_is_of_version_10_kept_and_checked(tmp_path: Path):
    space = model().blueprint.space
    counts = [data_gaussian.assign_bands(side, space.size)[-1] + 1 for side in space.size]
    bands = torch.full((space.channels, *counts), 2.0).tolist()
    own = with_gaussian({**LOW, "bands": bands})
    blueprint = dataclasses.replace(own.blueprint, wiener=True)
    shapes = blueprint.shapes
    assert shapes["conv_in.weight"][1] == 2 * own.blueprint.shapes["conv_in.weight"][1]
    ema = {name: torch.zeros(shape) for name, shape in shapes.items()}
    own, path = dataclasses.replace(own, blueprint=blueprint, ema=ema), tmp_path / "m.safetensors"
    save(path, own)
    assert config_of(path)["version"] == 10
    found = load(path)
    assert found.blueprint.gaussian == own.blueprint.gaussian
    assert found.blueprint.wiener
    x, gaussian = torch.ones(2, *space.shape), found.blueprint.gaussian
    alpha, sigma = found.blueprint.process.alpha_sigma(5, like=x)
    wiener = gaussian.denoise(x, alpha, sigma)
    assert torch.allclose(found.blueprint.denoiser(found.network())(x, 5).x0, wiener, atol=1e-6)
    data = path.read_bytes()
    for wrong in ([1.0], "1", [[-1.0]]):
        changed = {**LOW, "bands": wrong}
        rejected(tmp_path, described(data, setting("data", "low_frequencies", value=changed)))


def test_a_recommended_start_is_of_version_8_and_needs_low_frequencies(tmp_path: Path):
    own = with_gaussian(LOW)
    assert own.blueprint.gaussian.variance[0][0][0] == 40
    save(tmp_path / "plain", own)
    assert config_of(tmp_path / "plain")["version"] == 2
    sampling = SamplerChoice("unipc", 3, start="gaussian")
    path = tmp_path / "m.safetensors"
    save(path, dataclasses.replace(own, sampling=sampling))
    found = load(path)
    assert (found.sampling, found.blueprint.gaussian) == (sampling, own.blueprint.gaussian)
    assert config_of(path)["version"] == 8
    data = path.read_bytes()
    said = rejected(tmp_path, described(data, setting("data", value={})))
    assert "a start is recommended that the model does not support" in said
    for wrong in ("noise", "nothing", 3, None):
        rejected(tmp_path, described(data, setting("sampling", "start", value=wrong)))
    rejected(tmp_path, described(data, setting("sampling", "times", value=[9.0, 4.0, 0.0])))
    for name, value in (("mean", [[0.0]]), ("variance", "1"), ("colors", [[float("nan")]])):
        changed = {**LOW, name: value}
        rejected(tmp_path, described(data, setting("data", "low_frequencies", value=changed)))
    rejected(tmp_path, described(data, setting("data", "low_frequencies", value=[1])))


def test_recommended_noise_levels_are_of_version_11_and_checked(tmp_path: Path):
    weak = {name: t.clone() for name, t in model().ema.items()}
    sampling = SamplerChoice("unipc", 3, weak_guidance=2.0, guidance_interval=(0.3, 3.0))
    path = tmp_path / "m.safetensors"
    save(path, model(weak=weak, weak_step=1, sampling=sampling))
    assert load(path).sampling == sampling
    assert config_of(path)["version"] == 11
    data = path.read_bytes()
    for wrong in ([3.0, 0.3], [1.0], [-1.0, 1.0], "all", None):
        value = setting("sampling", "guidance_interval", value=wrong)
        rejected(tmp_path, described(data, value))
    alone = {"sampler": "unipc", "steps": 3, "guidance_interval": [0.3, 3.0]}
    said = rejected(tmp_path, described(data, setting("sampling", value=alone)))
    assert "noise levels of guidance without weak guidance" in said


def test_errors_are_kept_in_any_version_and_checked(tmp_path: Path):
    own = model(errors=DenoisingErrors((3.0, -1.5), (0.01, 0.5)))
    path = tmp_path / "m.safetensors"
    save(path, own)
    assert load(path).errors == own.errors
    assert config_of(path)["version"] == 2
    assert "errors" not in describe_model(model())
    data = path.read_bytes()
    for wrong in (None, [], {}, {"log_snrs": [1], "errors": [-1]}, {"log_snrs": 1, "errors": 1}):
        rejected(tmp_path, described(data, setting("errors", value=wrong)))


def test_a_file_with_a_recommendation_still_holds_the_model_of_its_run(tmp_path: Path):
    times = SamplerChoice("unipc", 3, times=(9.0, 4.0, 0.0))  # of a file of another version
    save(tmp_path / "m", model(sampling=times))
    assert model_file.has_model(tmp_path / "m", model())
    save(tmp_path / "m", model(sampling=SamplerChoice("ddim", 5)))
    assert model_file.has_model(tmp_path / "m", model())
    assert model_file.has_model(tmp_path / "m", model(versions={"torch": "another"}))
    assert not model_file.has_model(tmp_path / "m", model(step=13))
    assert not model_file.has_model(tmp_path / "m", model(training={"steps": 13}))


# -- a weak average -------------------------------------------------------------------------------


def test_a_weak_average_is_one_more_key_and_prefix_and_a_version_of_its_own(
    tmp_path: Path, good: bytes
):
    """Other readers find the averaged weights under the same names; older ones see a number."""
    save(tmp_path / "m", model(**WEAK))
    (tmp_path / "plain").write_bytes(good)
    config, plain = config_of(tmp_path / "m"), config_of(tmp_path / "plain")
    assert (config.pop("version"), plain.pop("version")) == (3, 2)
    assert config.pop("weak") == {"step": 3}
    assert config == plain
    tensors = safetensors.torch.load_file(tmp_path / "m")
    assert tensors.keys() == {*weights(), *("weak." + name for name in weights())}
    assert all(torch.equal(t, tensors[name]) for name, t in weights().items())
    save(tmp_path / "again", dataclasses.replace(load(tmp_path / "m"), weak=None, weak_step=None))
    assert (tmp_path / "again").read_bytes() == good


def test_weak_and_raw_weights_are_not_confused(tmp_path: Path):
    save(tmp_path / "m", model(raw=weights(1), **WEAK))
    read, name = load(tmp_path / "m"), "conv_in.weight"
    for kind, seed in (("ema", 0), ("raw", 1), ("weak", 2)):
        own = read.network(kind).conv_in.weight
        assert torch.allclose(own, weights(seed)[name])
    with pytest.raises(ModelFileError, match="no weak weights"):
        model().network("weak")


@pytest.mark.parametrize("value", [None, {}, {"step": "3"}, {"step": 3.0}, 3], ids=str)
def test_a_step_of_a_weak_average_that_is_no_number_is_rejected(tmp_path: Path, value):
    save(tmp_path / "made", model(**WEAK))
    change = setting("weak", value=value)
    rejected(tmp_path, described((tmp_path / "made").read_bytes(), change))


def test_weak_weights_and_their_step_go_together(tmp_path: Path, good: bytes):
    save(tmp_path / "made", model(**WEAK))
    with_step = described(good, setting("weak", value={"step": 3}))
    assert "weak." in rejected(tmp_path, with_step)
    without = described(
        (tmp_path / "made").read_bytes(), lambda config: config.pop("weak") and None
    )
    assert "weak." in rejected(tmp_path, without)


# -- using ----------------------------------------------------------------------------------------


def test_its_network_has_its_weights(good: bytes, tmp_path: Path):
    (tmp_path / "m").write_bytes(good)
    read = load(tmp_path / "m")
    net = read.network()
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    x, t = torch.ones(1, 1, 4, 8), torch.tensor([3.0])
    other = UNET.build()
    other.load_state_dict(weights())
    assert torch.allclose(net(x, t), other(x, t), atol=1e-4)
    denoiser = read.blueprint.denoiser(net)
    assert (denoiser.target, denoiser.process.num_timesteps) == ("v", 50)
    assert denoiser(x, 7).x0.shape == x.shape


def test_raw_weights_that_are_not_there_are_refused(tmp_path: Path):
    with pytest.raises(ModelFileError, match="no raw weights"):
        model().network("raw")
    with pytest.raises(UsageError, match="--weights"):
        model().network("emma")
    raw = model(raw=weights(1)).network("raw")
    assert torch.equal(raw.conv_in.weight, weights(1)["conv_in.weight"])


# -- classes, and a learned variance --------------------------------------------------------------

LEARNED = dataclasses.replace(UNET, out_channels=2, conditions=Conditions(classes=("a", "b")))


def diffusion(variance: str) -> DiffusionConfig:
    return DiffusionConfig(num_timesteps=50, schedule="linear", target="v", variance=variance)


def of(unet: Plan, variance: str, data: Any = None) -> StoredModel:
    blueprint = unet.blueprint(diffusion(variance))
    return model(blueprint=blueprint, ema=weights(0, unet), data=data or {})


def test_classes_and_a_learned_variance_survive(tmp_path: Path):
    save(tmp_path / "m", of(LEARNED, "learned"))
    read = load(tmp_path / "m")
    assert read.classes == ("a", "b")
    assert read.blueprint == LEARNED.blueprint(diffusion("learned"))
    assert read.ema["class_embedding.weight"].shape[0] == 3
    net, x = read.network(), torch.ones(2, 1, 4, 8)
    other = LEARNED.build()
    other.load_state_dict(weights(0, LEARNED))
    label = torch.tensor([0, 1])
    mean, spread = other(x, torch.tensor([7 * 20.0] * 2), label=label).chunk(2, 1)
    found = read.blueprint.denoiser(net)(x, 7, label=label)
    assert torch.allclose(found.raw, mean, atol=1e-4)
    pair = read.blueprint.denoiser(net).process.coefficients(7, like=x)
    f = (spread + 1) / 2
    expected = f * pair.log_beta + (1 - f) * pair.log_beta_tilde
    assert torch.allclose(found.log_var(7), expected, atol=1e-4)
    assert not torch.allclose(found.raw, read.blueprint.denoiser(net)(x, 7).raw, atol=1e-4)


def test_names_of_folders_in_an_older_file_are_not_kept(tmp_path: Path):
    save(tmp_path / "m", of(UNET, "small", {"classes": ["a", "b"], "images": 3}))
    read = load(tmp_path / "m")
    assert (read.classes, read.data) == ((), {"images": 3})


@pytest.mark.parametrize(
    ("out", "variance", "needed"),
    [(2, "small", 1), (2, "large", 1), (1, "learned", 2), (3, "learned", 2)],
)
def test_tensors_of_channels_that_do_not_suit_the_variance_are_rejected(
    tmp_path: Path, out: int, variance: str, needed: int
):
    save(tmp_path / "made", of(dataclasses.replace(UNET, out_channels=out), variance))
    message = rejected(tmp_path, (tmp_path / "made").read_bytes())
    assert f"conv_out.bias is F32 [{out}], not F32 [{needed}]" in message


@pytest.mark.parametrize("names", [(), ("a",), ("a", "b", "c")], ids=str)
def test_classes_of_another_number_than_the_networks_are_rejected(tmp_path: Path, names):
    save(tmp_path / "made", of(LEARNED, "learned"))
    change = setting("conditions", "classes", value=list(names))
    message = rejected(tmp_path, described((tmp_path / "made").read_bytes(), change))
    assert "class_embedding.weight" in message


# -- versions -------------------------------------------------------------------------------------


def version_1(config: dict[str, Any]) -> dict[str, Any]:
    """A description as version 0.1 wrote it: one table for the network and facts of the data."""
    space, names = config["space"], config["conditions"]["classes"]
    network = {k: v for k, v in config["network"].items() if k != "name"}
    learned = config["diffusion"]["variance"] == "learned"
    facts = {
        "size": space["size"],
        "channels": space["channels"],
        "out_channels": space["channels"] * (2 if learned else 1),
        "num_classes": len(names),
    }
    kept = ("diffusion", "step", "training", "versions", "sampling")
    return {
        **{k: config[k] for k in kept if k in config},
        "unet": network | facts,
        "classes": names or ["ankle boot", "Ümlaut"],
        "data": config["data"],
    }


@pytest.mark.parametrize("learned", [False, True])
def test_a_file_of_version_1_is_the_same_model(tmp_path: Path, learned: bool):
    written = of(LEARNED, "learned") if learned else model()
    save(tmp_path / "new", written)
    data = described((tmp_path / "new").read_bytes(), version_1)
    (tmp_path / "old").write_bytes(data)
    old, new = load(tmp_path / "old"), load(tmp_path / "new")
    for f in dataclasses.fields(StoredModel):
        if f.name != "ema":
            assert getattr(old, f.name) == getattr(new, f.name), f.name
    assert all(torch.equal(new.ema[name], t) for name, t in old.ema.items())
    save(tmp_path / "again", old)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "new").read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"out_channels": 3}, "3 channels out, not 2"),
        ({"num_classes": 3}, "a network of 3 classes with 2 names"),
        ({"size": None}, "settings are not a configuration"),
    ],
    ids=str,
)
def test_a_file_of_version_1_that_contradicts_itself_is_rejected(tmp_path: Path, change, says):
    save(tmp_path / "made", of(LEARNED, "learned"))
    old = described((tmp_path / "made").read_bytes(), version_1)
    data = described(old, lambda config: config["unet"].update(change))
    assert says in rejected(tmp_path, data)


@pytest.mark.parametrize("version", [12, 10**30])
def test_a_newer_version_is_refused_with_what_to_do(good: bytes, tmp_path: Path, version: int):
    def change(config: dict[str, Any]) -> None:
        config["version"], config["versions"]["diffuse"] = version, "9.9"

    message = rejected(tmp_path, described(good, change))
    assert f"has version {version}, written by diffuse 9.9" in message
    assert message.endswith("Install a newer diffuse")


@pytest.mark.parametrize("version", [0, -1, True, "2", 2.0, None, []], ids=repr)
def test_a_version_that_is_no_number_is_rejected(good: bytes, tmp_path: Path, version: Any):
    message = rejected(tmp_path, described(good, setting("version", value=version)))
    assert "its version is not a number" in message


# -- what is not a model file ---------------------------------------------------------------------


def test_a_missing_file_and_a_folder_are_rejected(tmp_path: Path):
    with pytest.raises(ModelFileError, match=r"no such model file: .*absent"):
        load(tmp_path / "absent.safetensors")
    with pytest.raises(ModelFileError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ModelFileError):
        load(tmp_path / "file" / "m.safetensors")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0", b"\0" * 8, b"hello, I am a text\n" * 50, b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        struct.pack("<Q", 2**63), struct.pack("<Q", 2**63) + b"{}" * 100,
        struct.pack("<Q", 2**64 - 1) + b"{}", struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 4) + b"null", struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 2) + b"\xff\xff", put_together({"__metadata__": 5}, b""),
        put_together({"__metadata__": {"diffuse.config": 5}}, b""),
        put_together({"__metadata__": {"diffuse.config": "{}"}}, b""),
        put_together({"__metadata__": {"diffuse.config": "null"}}, b""),
        put_together(b'{"a":' * 100_000, b""),
        put_together(b"[" * 1_000_000, b""),
        put_together({"__metadata__": {"diffuse.config": "[" * 1_000_000}}, b""),
        put_together({"__metadata__": {"diffuse.config": '{"a":' * 200_000}}, b""),
        put_together({"__metadata__": {"diffuse.config": " " * 5_000_000}}, b""),
        put_together(b" " * 17_000_000, b""),
        pickle.dumps({"a": 1}, protocol=2), pickle.dumps({"a": 1}, protocol=4),
        pickle.dumps({"a": 1}, protocol=5), pickle.dumps({"a": 1}, protocol=0),
    ],
    ids=lambda data: f"{data[:20]!r}{len(data)}",
)  # fmt: skip
def test_other_files_are_rejected(tmp_path: Path, data: bytes):
    rejected(tmp_path, data)


def test_a_pickle_is_never_loaded(tmp_path: Path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was run",))

    torch.save({"weight": torch.zeros(3), "bomb": Bomb()}, tmp_path / "m.pt")
    for data in ((tmp_path / "m.pt").read_bytes(), pickle.dumps(Bomb(), protocol=2)):
        assert "is a pickle" in rejected(tmp_path, data)


@pytest.mark.parametrize("low", [0x0280, 0x0380, 0x0480, 0x0580, 0x4B50])
def test_a_header_whose_length_begins_as_a_pickle_does_is_a_header(good: bytes, tmp_path, low: int):
    header, body = taken_apart(good)
    text = json.dumps(header).encode()
    text += b" " * ((low - len(text)) % 65_536)
    (tmp_path / "m").write_bytes(put_together(text, body))
    assert (tmp_path / "m").read_bytes()[:2] == struct.pack("<H", low)
    assert load(tmp_path / "m").step == 12


def test_a_foreign_safetensors_file_is_recognized(tmp_path: Path):
    data = safetensors.torch.save({"a": torch.zeros(3)}, {"format": "pt"})
    assert "`diffuse train` did not write it" in rejected(tmp_path, data)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("diffusers", ("conv_in.weight", "conv_norm_out.weight", "time_embedding.linear_1.weight")),
        ("OpenAI's", ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight")),
    ],
)
def test_a_known_foreign_format_is_named_with_the_line_to_type(tmp_path: Path, kind, names):
    data = safetensors.torch.save({name: torch.zeros(3) for name in names}, {"format": "pt"})
    message = rejected(tmp_path, data)
    assert f"is a model of {kind}" in message
    assert f"diffuse convert {tmp_path}/m.safetensors -o model.safetensors" in message


@pytest.mark.parametrize("start", [b"GGUF", b"\x89HDF\r\n", b"\x93NUMPY"])
def test_other_kinds_are_named(tmp_path: Path, start: bytes):
    kind = {b"G": "a GGUF", b"\x89": "an HDF5", b"\x93": "a NumPy"}[start[:1]]
    assert f"is {kind} file, not a model" in rejected(tmp_path, start + bytes(100))


def test_a_folder_of_diffusers_is_named_with_the_line_to_type(tmp_path: Path):
    (tmp_path / "m" / "unet").mkdir(parents=True)
    with pytest.raises(ModelFileError, match="is a folder") as caught:
        load(tmp_path / "m")
    assert caught.value.hint == ""
    (tmp_path / "m" / "unet" / "config.json").write_text("{}")
    with pytest.raises(ModelFileError, match="diffuse convert"):
        load(tmp_path / "m")


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path, kind: str):
    path = tmp_path / "m.safetensors"
    os.mkfifo(path) if kind == "fifo" else path.symlink_to("/dev/zero")
    with pytest.raises(ModelFileError, match="not a regular file"):
        load(path)


def test_every_cut_is_noticed(good: bytes, tmp_path: Path):
    length = struct.unpack("<Q", good[:8])[0]
    cuts = {1, 7, 8, 9, 8 + length - 1, 8 + length, 8 + length + 1, len(good) - 1}
    cuts |= set(range(0, len(good), 997))
    for cut in sorted(cuts):
        rejected(tmp_path, good[:cut])


def test_bytes_to_spare_are_noticed(good: bytes, tmp_path: Path):
    assert "truncated or too long" in rejected(tmp_path, good + b"\0")
    rejected(tmp_path, good + good)


# -- tensors --------------------------------------------------------------------------------------


def rewritten(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> bytes:
    save(tmp_path / "made", model(ema=tensors))
    return (tmp_path / "made").read_bytes()


def test_a_wrong_shape_is_rejected(tmp_path: Path):
    data = rewritten(tmp_path, {**weights(), "conv_in.bias": torch.zeros(5)})
    assert "conv_in.bias is F32 [5], not F32 [4]" in rejected(tmp_path, data)
    data = rewritten(tmp_path, {**weights(), "conv_in.weight": torch.zeros(4, 9)})
    assert "conv_in.weight" in rejected(tmp_path, data)


def test_a_wrong_type_is_rejected(tmp_path: Path):
    data = rewritten(tmp_path, {**weights(), "conv_in.bias": torch.zeros(4, dtype=torch.int64)})
    assert "I64 [4], not F32 [4]" in rejected(tmp_path, data)


def test_a_missing_tensor_is_rejected(tmp_path: Path):
    data = rewritten(tmp_path, {n: t for n, t in weights().items() if n != "conv_in.bias"})
    assert "conv_in.bias is missing" in rejected(tmp_path, data)
    assert "and" in rejected(tmp_path, rewritten(tmp_path, {}))


def test_an_extra_tensor_is_rejected(tmp_path: Path):
    data = rewritten(tmp_path, {**weights(), "more": torch.zeros(1)})
    assert "more is not of this network" in rejected(tmp_path, data)


def test_half_of_the_raw_weights_is_rejected(tmp_path: Path):
    save(tmp_path / "made", model(raw={"conv_in.bias": torch.zeros(4)}))
    assert "raw." in rejected(tmp_path, (tmp_path / "made").read_bytes())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_numbers_are_rejected(tmp_path: Path, value: float):
    bad = weights()
    bad["mid_block.resnets.0.conv1.weight"][0, 0, 0, 0] = value
    message = rejected(tmp_path, rewritten(tmp_path, bad))
    assert "its weights are NaN or infinite: mid_block.resnets.0.conv1.weight" in message


@pytest.mark.parametrize(
    "offsets", [[0, 0], [8, 24], [-16, 0], [0, 2**62], [0], [], "ab", None, [0.0, 16.0], [16, 0]],
    ids=str,
)  # fmt: skip
def test_offsets_that_lie_are_rejected(good: bytes, tmp_path: Path, offsets):
    header, body = taken_apart(good)
    header["conv_in.bias"]["data_offsets"] = offsets
    rejected(tmp_path, put_together(header, body))


@pytest.mark.parametrize("entry", [{}, [], None, 5, "F32", {"dtype": "F32"}, {"data_offsets": 1}])
def test_entries_that_are_none_are_rejected(good: bytes, tmp_path: Path, entry):
    header, body = taken_apart(good)
    header["conv_in.bias"] = entry
    rejected(tmp_path, put_together(header, body))


# -- the description ------------------------------------------------------------------------------


def setting(*keys: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(config: dict[str, Any]) -> Any:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    change.__name__ = f"{'.'.join(keys)}={str(value)[:20]}"
    return change


def removing(key: str) -> Callable[[dict[str, Any]], Any]:
    def change(config: dict[str, Any]) -> Any:
        return {k: v for k, v in config.items() if k != key}

    change.__name__ = f"no {key}"
    return change


WRONG: list[Any] = [None, 5, "x", [], [1], -1, 1e400, 10**400, [[]], {"a": 1}, True]

DDIM = {"sampler": "ddim", "steps": 5}

CHANGES = [
    *map(removing, ("space", "network", "conditions", "diffusion", "step", "data", "training")),
    removing("versions"),
    *(setting(part, value=v) for part in ("space", "network") for v in WRONG),
    *(setting("conditions", value=v) for v in WRONG if v != []),
    *(setting("diffusion", value=v) for v in WRONG if v != []),
    *(setting("network", "width", value=v) for v in WRONG),
    *(setting("network", "multipliers", value=v) for v in WRONG),
    *(setting("space", "size", value=v) for v in WRONG),
    *(setting("network", "dropout", value=v) for v in WRONG if v not in (True, [])),
    setting("network", "freq_shift", value=None),
    *(setting("diffusion", "num_timesteps", value=v) for v in WRONG if v not in (5,)),
    *(setting("diffusion", "schedule", value=v) for v in WRONG),
    *(setting("diffusion", "target", value=v) for v in WRONG),
    *(setting("step", value=v) for v in WRONG if v not in (5, 10**400, True, -1)),
    *(setting("conditions", "classes", value=v) for v in WRONG if v != []),
    *(setting("space", "channels", value=v) for v in WRONG),
    *(setting("space", "levels", value=v) for v in WRONG),
    *(setting("space", "medium", value=v) for v in (*WRONG, "sounds", "__class__")),
    *(setting("data", value=v) for v in (None, 5, "x", [1])),
    *(setting("training", value=v) for v in (None, 5, "x", [1])),
    *(setting("sampling", value=v) for v in WRONG),
    *(setting("sampling", value={"sampler": v, "steps": 5}) for v in WRONG),
    *(setting("sampling", value={"sampler": "ddim", "steps": v}) for v in WRONG if v != 5),
    *(setting("sampling", value=DDIM | {"guidance": v}) for v in (*WRONG, float("nan"), 101, 2.0)),
    *(setting("sampling", value=DDIM | {"steps": v}) for v in (0, 51, 10**5 + 1, 2.0, 1e-9)),
    setting("sampling", value={"sampler": "ddim"}),
    setting("sampling", value={"steps": 5}),
    setting("sampling", value=DDIM | {"eta": 1}),
    setting("sampling", value=DDIM | {"sampler": "ddpmm"}),
    setting("sampling", value=DDIM | {"sampler": "__class__"}),
    setting("network", "surprise", value=1),
    setting("diffusion", "surprise", value=1),
    setting("network", "width", value=4096),
    setting("network", "multipliers", value=[10**9, 10**9]),
    setting("network", "multipliers", value=[2**62, 2**62]),
    setting("network", "multipliers", value=[1] * 100_000),
    setting("network", "blocks", value=16),
    setting("network", "attention", value=list(range(1, 100_000))),
    setting("conditions", "classes", value=["a"] * 100_000),
    setting("space", "size", value=[4096, 4096]),
    setting("diffusion", "num_timesteps", value=10**9),
    setting("diffusion", "schedule", value="cosin"),
    lambda config: [],
    lambda config: None if config.clear() else 5,
    lambda config: "text",
]  # fmt: skip


FITTING = ("network.attention=[1, 2, 3, 4, 5, 6, 7", "space.size=[4096, 4096]")
"""Descriptions of other models, which the tensors suit as well."""


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_wrong_description_is_rejected(good: bytes, tmp_path: Path, change):
    data = described(good, change)
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    try:
        load(path)
    except ModelFileError:
        rejected(tmp_path, data)
    else:
        assert change.__name__ in FITTING


@pytest.mark.parametrize("size", [(8,), (8, 8, 8)], ids=str)
def test_images_of_one_or_three_dimensions_are_rejected(tmp_path: Path, size):
    save(tmp_path / "made", of(plan(size, width=8, groups=4, multipliers=(1,)), "small"))
    assert "height and width" in rejected(tmp_path, (tmp_path / "made").read_bytes())


def test_an_unknown_key_names_the_nearest(good: bytes, tmp_path: Path):
    message = rejected(tmp_path, described(good, setting("network", "widht", value=4)))
    assert "no setting 'widht'" in message


def test_a_recommendation_that_is_none_is_named(good: bytes, tmp_path: Path):
    data = described(good, setting("sampling", value=DDIM))
    (tmp_path / "good").write_bytes(data)
    assert load(tmp_path / "good").sampling == SamplerChoice("ddim", 5)
    for change, text in (
        ({"sampler": "ddmp"}, "sampling: there is no 'ddmp'"),
        ({"steps": 51}, "51 steps are recommended for 50 timesteps"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"guidance": 1}, "guidance is recommended for an unconditional network"),
        ({"sampler": "\x1b[2J" * 1000}, "sampling: there is no"),
    ):
        message = rejected(tmp_path, described(good, setting("sampling", value=DDIM | change)))
        assert text in message
        assert message.isprintable()


@pytest.mark.parametrize("where", ["network", "space", "diffusion"])
def test_what_a_description_says_is_escaped_and_brief(good: bytes, tmp_path: Path, where: str):
    for value in ("\x1b[2J\n[red]", "\x07" * 100_000):
        for change in (setting(where, value, value=1), setting(where, "size", value=value)):
            message = rejected(tmp_path, described(good, change))
            assert message.isprintable()


def test_nothing_is_allocated_for_a_network_that_does_not_fit(good: bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "read_tensors", lambda f, h: pytest.fail("tensors were read"))
    rejected(tmp_path, described(good, setting("network", "width", value=4096)))


def test_a_description_is_read_without_the_weights(good: bytes, tmp_path: Path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_bytes(good)
    whole = finish(find(path))
    monkeypatch.setattr(tensor_file, "read_tensors", lambda f, h: pytest.fail("tensors were read"))
    bare = dataclasses.replace(whole.model, ema={}, raw=None, weak=None)
    assert finish(find(path, weights=False)) == dataclasses.replace(whole, model=bare, sha256="")
    path.write_bytes(good[:-4])
    with pytest.raises(ModelFileError, match="truncated"):
        load(path, weights=False)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_mutation_does_anything_but_be_rejected(good: bytes, tmp_path: Path, data):
    """Bytes changed, cut out or put in, mostly in the header, where they matter."""
    length = 8 + struct.unpack("<Q", good[:8])[0]
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        end = data.draw(st.sampled_from([8, length, length, length, len(changed)]))
        at = data.draw(st.integers(0, min(end, len(changed)) - 1))
        kind = data.draw(st.sampled_from(["set", "set", "cut", "insert"]))
        some = data.draw(st.binary(min_size=1, max_size=6))
        if kind == "set":
            changed[at : at + len(some)] = some
        elif kind == "cut":
            del changed[at : at + len(some)]
        else:
            changed[at:at] = some
    path = tmp_path / "m.safetensors"
    path.write_bytes(changed)
    with contextlib.suppress(ModelFileError):
        load(path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(["network", "space", "diffusion"]),
    st.data(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    ),
)
def test_no_value_of_a_field_does_anything_but_be_rejected(good, tmp_path, part, data, value):
    kind = {"network": Config, "space": Space, "diffusion": DiffusionConfig}[part]
    name = data.draw(st.sampled_from([f.name for f in dataclasses.fields(kind)]))
    path = tmp_path / "m.safetensors"
    path.write_bytes(described(good, setting(part, name, value=value)))
    with contextlib.suppress(ModelFileError):
        load(path)


HIDDEN = [f.name for f, spec in option_fields(TrainConfig) if spec.control or spec.place]


@pytest.mark.parametrize("name", HIDDEN)
def test_a_file_of_strangers_sets_no_path_and_no_control(tmp_path: Path, name: str):
    path, own = tmp_path / "m.safetensors", model()
    kind = next(f.type for f, _ in option_fields(TrainConfig) if f.name == name)
    value = True if "bool" in str(kind) else "/elsewhere" if "str" in str(kind) else 1
    save(path, dataclasses.replace(own, training={**own.training, name: value}))
    assert name not in training_options(finish(find(path)))
