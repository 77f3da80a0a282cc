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
from edited_models import change_description, join_file, read_description, split_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import Plan, plan

from diffuse_cli.config.options import option_fields
from diffuse_cli.config.sample_options import SamplerChoice
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import ConditioningArray, Conditions, Space, data_gaussian
from diffuse_cli.core.denoising_errors import DenoisingErrors
from diffuse_cli.core.networks.unet import Config
from diffuse_cli.models import model_header, tensor_file
from diffuse_cli.models.model_file import (
    StoredModel,
    find,
    has_model,
    load,
    save,
    training_options,
)
from diffuse_cli.system.errors import ModelFileError, UsageError
from diffuse_cli.system.events import finish

UNET = plan(
    size=(4, 8), channels=1, width=4, groups=2, multipliers=(1, 2), blocks=1, attention=(2,)
)
CLASSES = dataclasses.replace(UNET, conditions=Conditions(classes=("a", "b")))
LEARNED = dataclasses.replace(CLASSES, out_channels=2)
TWO_CHANNELS = dataclasses.replace(UNET, out_channels=2)
MAPS = dataclasses.replace(
    UNET,
    conditions=Conditions(
        given=ConditioningArray(
            channels=3, labels=(0, 1, 5), names=("a", "b", "c"), fractions=(0.5, 0.25, 0.25)
        )
    ),
)


def weights(seed: int = 0, unet: Plan = UNET) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = unet.build().state_dict()
    return {name: torch.randn(t.shape, generator=generator) for name, t in state.items()}


def diffusion(variance: str = "small") -> DiffusionConfig:
    return DiffusionConfig(num_timesteps=50, schedule="linear", target="v", variance=variance)


def model(unet: Plan = UNET, variance: str = "small", **changes: Any) -> StoredModel:
    fields: dict[str, Any] = {
        "blueprint": unet.blueprint(diffusion(variance)),
        "ema": weights(0, unet),
        "step": 12,
        "data": {"fingerprint": "abc", "images": 20, "origin": "hf://datasets/a/Ümlaut"},
        "training": {"steps": 12, "lr": 2e-3},
    }
    return StoredModel(**{**fields, **changes})


def bytes_of(saved: StoredModel, path: Path) -> bytes:
    save(path, saved)
    return path.read_bytes()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bytes_of(model(), tmp_path_factory.mktemp("model") / "m.safetensors")


def rejected(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as caught:
        load(path)
    assert caught.value.exit_code == 4
    text = str(caught.value)
    assert "m.safetensors" in text
    assert text.isprintable()
    assert len(text) < 1000 + len(str(tmp_path))
    return text


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


# -- writing --------------------------------------------------------------------------------------


WEAK = {"weak": weights(2), "weak_step": 3}


@pytest.mark.parametrize("weak", [{}, WEAK], ids=["", "with weak"])
@pytest.mark.parametrize("raw", [None, weights(1)], ids=["ema", "with raw"])
def test_a_model_is_read_as_it_was_written(tmp_path: Path, raw, weak):
    written = model(raw=raw, **weak)
    save(tmp_path / "m.safetensors", written)
    read = load(tmp_path / "m.safetensors")
    kinds = ("ema", "raw", "weak")
    for f in dataclasses.fields(StoredModel):
        if f.name not in (*kinds, "versions"):
            assert getattr(read, f.name) == getattr(written, f.name), f.name
    for kind in kinds:
        before, after = getattr(written, kind), getattr(read, kind)
        if before is None:
            assert after is None
            with pytest.raises(ModelFileError, match=f"no {kind} weights"):
                read.network(kind)
        else:
            assert before.keys() == after.keys()
            assert all(torch.equal(before[n], after[n]) for n in before)
            network = read.network(kind)
            assert torch.equal(network.conv_in.weight, before["conv_in.weight"])
    with pytest.raises(UsageError, match="--weights"):
        read.network("emma")
    assert read.versions.keys() == {"diffuse", "torch"}
    title = finish(find(tmp_path / "m.safetensors")).title
    assert title == f"diffuse model, {written.step} steps"


def test_equal_models_are_equal_bytes(tmp_path: Path, good: bytes):
    """Whatever the order of their tensors and fields, and that of weights in memory."""
    backwards = {
        n: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t
        for n, t in reversed(weights().items())
    }
    shuffled = dict(reversed(model().data.items()))
    assert bytes_of(model(ema=backwards, data=shuffled), tmp_path / "b") == good
    assert bytes_of(model(step=13), tmp_path / "c") != good


def test_it_is_a_safetensors_file_with_its_metadata_sorted(good: bytes, tmp_path: Path):
    (tmp_path / "m").write_bytes(good)
    tensors = safetensors.torch.load_file(tmp_path / "m")
    assert all(torch.equal(t, tensors[name]) for name, t in weights().items())
    header, _ = split_file(good)
    assert list(header) == sorted(header)
    metadata = header["__metadata__"]
    assert list(metadata) == sorted(metadata)
    assert metadata["format"] == "pt"
    assert metadata["modelspec.resolution"] == "8x4"
    assert struct.unpack("<Q", good[:8])[0] % 8 == 0
    config = json.loads(metadata["diffuse.config"])
    assert metadata["diffuse.config"] == json.dumps(config, sort_keys=True, separators=(",", ":"))
    assert config["data"]["origin"] == "hf://datasets/a/Ümlaut"
    assert config.keys() == {
        "version", "space", "network", "conditions", "diffusion", "step", "data", "training",
        "versions",
    }  # fmt: skip


# -- a recommendation, a weak average and errors --------------------------------------------------


@pytest.mark.parametrize(
    ("more", "key", "value", "version"),
    [
        ({"sampling": SamplerChoice("heun", 50)}, "sampling", {"sampler": "heun", "steps": 50}, 2),
        (WEAK, "weak", {"step": 3}, 3),
    ],
    ids=["sampling", "weak"],
)
def test_a_recommendation_or_a_weak_average_is_one_more_key(
    tmp_path: Path, good: bytes, more, key, value, version
):
    """Other readers find the averaged weights under the same names; older ones see a number."""
    config, plain = (
        read_description(bytes_of(model(**more), tmp_path / "m")),
        read_description(good),
    )
    assert config.pop(key) == value
    assert (config.pop("version"), plain.pop("version")) == (version, 2)
    assert config == plain
    tensors = safetensors.torch.load_file(tmp_path / "m")
    assert tensors.keys() == {*weights(), *(f"weak.{n}" for n in weights() if key == "weak")}
    assert all(torch.equal(t, tensors[name]) for name, t in weights().items())
    without = dataclasses.replace(load(tmp_path / "m"), **dict.fromkeys(more))
    assert bytes_of(without, tmp_path / "again") == good


LOW = {
    "colors": [[1.0]],
    "mean": [[[-9.5] + [0.0] * 7] + [[0.0] * 8] * 3],
    "variance": [[[40.0] + [0.25] * 7] + [[0.25] * 8] * 3],
}
"""Low frequencies of a grey data set."""


def with_gaussian(values: Any, **changes: Any) -> StoredModel:
    """The model, with a Gaussian of its data."""
    own = model().blueprint
    gaussian = data_gaussian.read(values, own.space.channels, own.space.size)
    return model(blueprint=dataclasses.replace(own, gaussian=gaussian), **changes)


def low(**changes: Any) -> tuple[Any, ...]:
    return "data", "low_frequencies", {**LOW, **changes}


NAN, INF = float("nan"), float("inf")
UNIPC = {"sampler": "unipc", "steps": 3}

KEPT = {
    "guidance": (
        lambda: model(CLASSES, sampling=SamplerChoice("unipc", 8, 0.0)), 2,
        [("sampling", UNIPC), ("sampling", "guidance", NAN)],
    ),
    "classes": (
        lambda: model(LEARNED, "learned"), 2,
        [("conditions", "classes", names) for names in ([], ["a"], ["a", "b", "c"])],
    ),
    "weak guidance": (
        lambda: model(sampling=SamplerChoice("unipc", 8, None, 1.5), **WEAK), 3,
        [("weak", weak) for weak in (None, {}, {"step": "3"}, {"step": 3.0}, 3)],
    ),
    "times": (
        lambda: model(sampling=SamplerChoice("unipc", 3, times=(9.0, 4.25, 0.0))), 3,
        [("sampling", "times", times) for times in (
            [9.0, 4.25], [9.0, 4.25, 4.25], [4.25, 9.0, 0.0], [9.0, 4.25, -1.0], [50.0, 4, 0],
            [NAN, 4.25, 0.0], [INF, 4.25, 0.0], ["9", "4", "0"], "9,4,x", [], None,
            [True, 0.5, 0.25], {"9": 1},
        )],
    ),
    "a start": (
        lambda: with_gaussian(LOW, sampling=SamplerChoice("unipc", 3, start="gaussian")), 8,
        [("data", {}), ("sampling", "times", [9.0, 4.0, 0.0]), low(mean=[[0.0]]), low(variance="1"),
         low(colors=[[NAN]]), ("data", "low_frequencies", [1]),
         *(("sampling", "start", start) for start in ("noise", "nothing", 3, None))],
    ),
    "noise levels": (
        lambda: model(
            sampling=SamplerChoice("unipc", 3, weak_guidance=2.0, guidance_interval=(0.3, 3.0)),
            **WEAK,
        ), 11,
        [("sampling", {**UNIPC, "guidance_interval": [0.3, 3.0]}),
         *(("sampling", "guidance_interval", levels)
           for levels in ([3.0, 0.3], [1.0], [-1.0, 1.0], "all", None))],
    ),
    "errors": (
        lambda: model(errors=DenoisingErrors((3.0, -1.5), (0.01, 0.5))), 2,
        [("errors", errors) for errors in (
            None, [], {}, {"log_snrs": [1], "errors": [-1]}, {"log_snrs": 1, "errors": 1}
        )],
    ),
    "label maps": (
        lambda: model(MAPS), 12,
        [("conditions", "given", name, value) for name, value in (
            ("labels", [0, 2]), ("labels", [0, 2, 1]), ("labels", [0, 1, 256]), ("labels", "012"),
            ("names", ["a", "b"]), ("fractions", [0.5, 0.25, 2]), ("what", "mask:half"),
        )],
    ),
    "low frequencies": (lambda: with_gaussian(LOW), 2, []),
    "samples per second": (lambda: in_space(rate=8000), 7, []),
    "16 bits": (lambda: in_space(levels=65_536), 6, []),
}  # fmt: skip
"""Models, each with the oldest version that can say what it is, and values that do not fit."""


def in_space(**changes: Any) -> StoredModel:
    own = model().blueprint
    return model(
        blueprint=dataclasses.replace(own, space=dataclasses.replace(own.space, **changes))
    )


@pytest.mark.parametrize("name", KEPT)
def test_what_a_model_says_of_itself_is_kept_in_the_oldest_version_and_checked(
    tmp_path: Path, name: str
):
    make, version, wrong = KEPT[name]
    own, path = make(), tmp_path / "made"
    data = bytes_of(own, path)
    found = load(path)
    assert (found.sampling, found.errors) == (own.sampling, own.errors)
    assert found.blueprint == own.blueprint
    assert read_description(data)["version"] == version
    for *keys, value in wrong:
        rejected(tmp_path, change_description(data, setting(*keys, value=value)))


def test_a_filter_is_of_version_10_kept_and_checked(tmp_path: Path):
    space = model().blueprint.space
    counts = [data_gaussian.assign_bands(side, space.size)[-1] + 1 for side in space.size]
    own = with_gaussian({**LOW, "bands": torch.full((space.channels, *counts), 2.0).tolist()})
    blueprint = dataclasses.replace(own.blueprint, wiener=True)
    shapes = blueprint.shapes
    assert shapes["conv_in.weight"][1] == 2 * own.blueprint.shapes["conv_in.weight"][1]
    ema = {name: torch.zeros(shape) for name, shape in shapes.items()}
    data = bytes_of(dataclasses.replace(own, blueprint=blueprint, ema=ema), tmp_path / "made")
    assert read_description(data)["version"] == 10
    found = load(tmp_path / "made")
    assert found.blueprint == blueprint
    x, gaussian = torch.ones(2, *space.shape), found.blueprint.gaussian
    alpha, sigma = found.blueprint.process.alpha_sigma(5, like=x)
    wiener = gaussian.denoise(x, alpha, sigma)
    assert torch.allclose(found.blueprint.denoiser(found.network())(x, 5).x0, wiener, atol=1e-6)
    for wrong in ([1.0], "1", [[-1.0]]):
        *keys, value = low(bands=wrong)
        rejected(tmp_path, change_description(data, setting(*keys, value=value)))


def test_a_file_with_a_recommendation_still_holds_the_model_of_its_run(tmp_path: Path):
    times = SamplerChoice("unipc", 3, times=(9.0, 4.0, 0.0))  # of a file of another version
    for choice in (times, SamplerChoice("ddim", 5)):
        save(tmp_path / "m", model(sampling=choice))
        assert has_model(tmp_path / "m", model())
    assert has_model(tmp_path / "m", model(versions={"torch": "another"}))
    assert not has_model(tmp_path / "m", model(step=13))
    assert not has_model(tmp_path / "m", model(training={"steps": 13}))


def test_weak_weights_and_their_step_go_together(tmp_path: Path, good: bytes):
    with_step = change_description(good, setting("weak", value={"step": 3}))
    assert "weak." in rejected(tmp_path, with_step)
    without = change_description(bytes_of(model(**WEAK), tmp_path / "made"), removing("weak"))
    assert "weak." in rejected(tmp_path, without)


# -- using ----------------------------------------------------------------------------------------


def test_its_network_has_its_weights(tmp_path: Path):
    save(tmp_path / "m", model(LEARNED, "learned"))
    read = load(tmp_path / "m")
    assert read.classes == ("a", "b")
    assert read.ema["class_embedding.weight"].shape[0] == 3
    net, x = read.network(), torch.ones(2, 1, 4, 8)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    denoiser = read.blueprint.denoiser(net)
    assert (denoiser.target, denoiser.process.num_timesteps) == ("v", 50)
    other = LEARNED.build()
    other.load_state_dict(weights(0, LEARNED))
    label = torch.tensor([0, 1])
    mean, spread = other(x, torch.tensor([7 * 20.0] * 2), label=label).chunk(2, 1)
    found, pair = denoiser(x, 7, label=label), denoiser.process.coefficients(7, like=x)
    f = (spread + 1) / 2
    log_var = f * pair.log_beta + (1 - f) * pair.log_beta_tilde
    assert torch.allclose(found.raw, mean, atol=1e-4)
    assert torch.allclose(found.log_var(7), log_var, atol=1e-4)
    assert not torch.allclose(found.raw, denoiser(x, 7).raw, atol=1e-4)


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
    kept = ("diffusion", "step", "training", "versions", "sampling", "data")
    return {
        **{k: config[k] for k in kept if k in config},
        "unet": network | facts,
        "classes": names or ["ankle boot", "Ümlaut"],
    }


@pytest.mark.parametrize("learned", [False, True])
def test_a_file_of_version_1_is_the_same_model(tmp_path: Path, learned: bool):
    data = bytes_of(model(LEARNED, "learned") if learned else model(), tmp_path / "new")
    (tmp_path / "old").write_bytes(change_description(data, version_1))
    old, new = load(tmp_path / "old"), load(tmp_path / "new")
    assert old.blueprint == new.blueprint
    assert bytes_of(old, tmp_path / "again") == data


def test_names_of_folders_in_an_older_file_are_not_kept(tmp_path: Path):
    save(tmp_path / "m", model(data={"classes": ["a", "b"], "images": 3}))
    read = load(tmp_path / "m")
    assert (read.classes, read.data) == ((), {"images": 3})


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
    old = change_description(bytes_of(model(LEARNED, "learned"), tmp_path / "made"), version_1)
    data = change_description(old, lambda config: config["unet"].update(change))
    assert says in rejected(tmp_path, data)


@pytest.mark.parametrize("version", [model_header.VERSION + 1, 10**30])
def test_a_newer_version_is_refused_with_what_to_do(good: bytes, tmp_path: Path, version: int):
    def change(config: dict[str, Any]) -> None:
        config["version"], config["versions"]["diffuse"] = version, "9.9"

    message = rejected(tmp_path, change_description(good, change))
    assert f"has version {version}, written by diffuse 9.9" in message
    assert message.endswith("Install a newer diffuse")


# -- what is not a model file ---------------------------------------------------------------------


def test_a_missing_file_and_a_folder_are_rejected(tmp_path: Path):
    """A folder of diffusers with the line that converts it."""
    (tmp_path / "file").touch()
    (tmp_path / "m" / "unet").mkdir(parents=True)
    for name, says in (
        ("absent.safetensors", r"no such model file: .*absent"), ("file/m.safetensors", "file"),
        ("m", "is a folder"),
    ):  # fmt: skip
        with pytest.raises(ModelFileError, match=says) as caught:
            load(tmp_path / name)
    assert caught.value.hint == ""
    (tmp_path / "m" / "unet" / "config.json").write_text("{}")
    with pytest.raises(ModelFileError, match="diffuse convert"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0" * 8, b"hello, I am a text\n" * 50, b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        struct.pack("<Q", 2**63) + b"{}" * 100, struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 3) + b"{}", join_file(b"{}"), join_file(b"null"), join_file(b"\xff\xff"),
        join_file({"__metadata__": 5}), join_file({"__metadata__": {"diffuse.config": 5}}),
        join_file({"__metadata__": {"diffuse.config": "{}"}}),
        join_file({"__metadata__": {"diffuse.config": "null"}}),
        join_file(b'{"a":' * 100_000), join_file({"__metadata__": {"diffuse.config": "[" * 10**6}}),
        join_file({"__metadata__": {"diffuse.config": " " * 5_000_000}}),
        *(pickle.dumps({"a": 1}, protocol=protocol) for protocol in (0, 2, 4, 5)),
    ],
    ids=lambda data: f"{data[:20]!r}{len(data)}",
)  # fmt: skip
def test_other_files_are_rejected(tmp_path: Path, data: bytes):
    rejected(tmp_path, data)


def test_other_kinds_are_named(tmp_path: Path):
    for start, kind in (
        (b"GGUF", "a GGUF"),
        (b"\x89HDF\r\n", "an HDF5"),
        (b"\x93NUMPY", "a NumPy"),
    ):
        assert f"is {kind} file, not a model" in rejected(tmp_path, start + bytes(100))


def test_a_pickle_is_never_loaded(tmp_path: Path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was run",))

    torch.save({"weight": torch.zeros(3), "bomb": Bomb()}, tmp_path / "m.pt")
    for data in ((tmp_path / "m.pt").read_bytes(), pickle.dumps(Bomb(), protocol=2)):
        assert "is a pickle" in rejected(tmp_path, data)


@pytest.mark.parametrize("low", [0x0280, 0x0380, 0x0480, 0x0580, 0x4B50])
def test_a_header_whose_length_begins_as_a_pickle_does_is_a_header(good: bytes, tmp_path, low: int):
    header, body = split_file(good)
    text = json.dumps(header).encode()
    text += b" " * ((low - len(text)) % 65_536)
    (tmp_path / "m").write_bytes(join_file(text, body))
    assert (tmp_path / "m").read_bytes()[:2] == struct.pack("<H", low)
    assert load(tmp_path / "m").step == 12


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("", ("a",)),
        ("diffusers", ("conv_in.weight", "conv_norm_out.weight", "time_embedding.linear_1.weight")),
        ("OpenAI's", ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight")),
    ],
)
def test_a_known_foreign_format_is_named_with_the_line_to_type(tmp_path: Path, kind, names):
    data = safetensors.torch.save({name: torch.zeros(3) for name in names}, {"format": "pt"})
    message = rejected(tmp_path, data)
    line = f"diffuse convert {tmp_path}/m.safetensors -o model.safetensors"
    assert (f"is a model of {kind}" in message, line in message) == (bool(kind), bool(kind))
    assert ("`diffuse train` did not write it" in message) is not bool(kind)


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
    for data in (*(good[:cut] for cut in sorted(cuts)), good + good):
        rejected(tmp_path, data)
    assert "truncated or too long" in rejected(tmp_path, good + b"\0")


# -- tensors --------------------------------------------------------------------------------------


BAD_TENSORS = {
    "shape": (lambda: changed(torch.zeros(5)), "conv_in.bias is F32 [5], not F32 [4]"),
    "dimensions": (lambda: changed(torch.zeros(4, 9)), "conv_in.bias is F32 [4, 9], not F32 [4]"),
    "type": (lambda: changed(torch.zeros(4).long()), "I64 [4], not F32 [4]"),
    "missing": (lambda: changed(), "conv_in.bias is missing"),
    "none": (lambda: model(ema={}), "and"),
    "more": (lambda: changed(torch.zeros(4), more=torch.zeros(1)), "more is not of this network"),
    "half of raw": (lambda: model(raw={"conv_in.bias": torch.zeros(4)}), "raw."),
    "NaN": (lambda: changed(torch.full([4], NAN)), "its weights are NaN or infinite: conv_in.bias"),
    "infinite": (lambda: changed(-torch.full([4], INF)), "NaN or infinite: conv_in.bias"),
    "2 channels": (lambda: model(TWO_CHANNELS), "conv_out.bias is F32 [2], not F32 [1]"),
    "1 channel": (lambda: model(UNET, "learned"), "conv_out.bias is F32 [1], not F32 [2]"),
    "1D": (lambda: model(plan((8,), **SMALL)), "height and width"),
    "3D": (lambda: model(plan((8, 8, 8), **SMALL)), "height and width"),
}
"""Models whose tensors do not suit them, and what is said."""

SMALL: dict[str, Any] = {"width": 8, "groups": 4, "multipliers": (1,)}


def changed(bias: torch.Tensor | None = None, **more: torch.Tensor) -> StoredModel:
    """The model with another first bias, or none."""
    own = {name: tensor for name, tensor in weights().items() if name != "conv_in.bias"}
    return model(ema=own | ({} if bias is None else {"conv_in.bias": bias}) | more)


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_a_wrong_shape_is_rejected(tmp_path: Path, name: str):
    """Also a wrong type, name or value, and channels that do not suit the variance."""
    make, says = BAD_TENSORS[name]
    assert says in rejected(tmp_path, bytes_of(make(), tmp_path / "made"))


# -- the description ------------------------------------------------------------------------------


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
    *(setting("version", value=v) for v in (0, -1, True, "2", 2.0, None, [])),
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


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_wrong_description_is_rejected(good: bytes, tmp_path: Path, change):
    rejected(tmp_path, change_description(good, change))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (setting("network", "widht", value=4), "no setting 'widht'"),
        (setting("sampling", value=DDIM | {"sampler": "ddmp"}), "sampling: there is no 'ddmp'"),
        (setting("sampling", value=DDIM | {"steps": 51}), "51 steps are recommended for 50 times"),
        (setting("sampling", value=DDIM | {"steps": 0}), "--steps must be at least 1"),
        (setting("sampling", value=DDIM | {"guidance": 1}), "for an unconditional network"),
        *(
            (change, "")
            for where in ("network", "space", "diffusion", "sampling")
            for value in ("\x1b[2J\n[red]", "\x07" * 100_000)
            for change in (setting(where, value=DDIM | {value: 1}),
                           setting(where, value=DDIM | {"size": value, "sampler": value}))
        ),
    ],
    ids=lambda value: getattr(value, "__name__", "")[:40],
)  # fmt: skip
def test_what_is_wrong_is_named_escaped_and_brief(good: bytes, tmp_path: Path, change, says: str):
    assert says in rejected(tmp_path, change_description(good, change))


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


@pytest.mark.slow
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
    path.write_bytes(change_description(good, setting(part, name, value=value)))
    with contextlib.suppress(ModelFileError):
        load(path)


def test_a_file_of_strangers_sets_no_path_and_no_control(tmp_path: Path):
    hidden = {f.name: str(f.type) for f, spec in option_fields(TrainConfig)
              if spec.control or spec.place}  # fmt: skip
    values = {name: True if "bool" in kind else "/elsewhere" if "str" in kind else 1
              for name, kind in hidden.items()}  # fmt: skip
    own, path = model(), tmp_path / "m.safetensors"
    assert len(hidden) > 10
    for name, value in values.items():
        save(path, dataclasses.replace(own, training={**own.training, name: value}))
        assert name not in training_options(finish(find(path)))
