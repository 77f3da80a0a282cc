"""Files from elsewhere: each has one name, whichever command meets it, and none of it is run."""

from __future__ import annotations

import io
import pickle
import pickletools
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from image_corpus import encoded, zipped
from openai_oracle import checkpoint
from PIL import Image
from safetensors.torch import save_file

from diffuse_cli.commands.convert.importers import FORMATS, convert
from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.data.sources import is_images
from diffuse_cli.models import model_file
from diffuse_cli.system import file_types
from diffuse_cli.system.events import finish
from diffuse_cli.system.file_types import MOST_BYTES, MOST_STEPS

NAMES = {
    "Stable Diffusion": (
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.time_embed.0.weight",
        "first_stage_model.decoder.conv_in.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ),
    "a text-to-image program": (
        "conv_in.weight",
        "time_embedding.linear_1.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    ),
    "denoising-diffusion-pytorch": (
        "model.init_conv.weight",
        "model.time_mlp.1.weight",
        "model.final_res_block.block1.proj.weight",
        "alphas_cumprod",
    ),
    "EDM": ("model.map_layer0.weight", "model.enc.32x32_conv.weight", "model.out_conv.weight"),
}
"""Tensors of models that nothing converts, by the name that each has in messages."""

OPTIONS = ("--heads", 2, "--size", 8, "--schedule", "cosine", "--num-timesteps", 100)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Evil:
    """Ends the test where it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("the pickle was run",)


def persistent(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that is pickled as EDM's networks are."""
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: Any) -> None:
        pytest.fail("the pickle was run")

    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_utils", package)
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)

    class Network:
        def __reduce__(self) -> Any:
            return _reconstruct_persistent_obj, (fields,)

    return Network


EDM = {
    "type": "class",
    "version": 6,
    "module_src": "class EDMPrecond:\n" + "    pass\n" * 5000,
    "class_name": "EDMPrecond",
    "state": {},
}


def named(diffuse: Callable[..., Any], path: Path | str, name: str) -> None:
    """`convert` and the commands that want a model say the same of a file."""
    lines = set()
    for ran in (diffuse("convert", path, *OPTIONS, "-q"), diffuse("sample", path, "-q")):
        assert (ran.code, ran.out) == (4, "")
        assert f"{path} is a model of {name}, " in ran.line
        lines.add(ran.line)
    assert len(lines) == 1
    assert len(lines.pop()) < 250


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrapping", ["plain", "module", "state dict"])
def test_a_model_that_nothing_converts_is_named(diffuse, name: str, wrapping: str):
    prefix = "module." if wrapping == "module" else ""
    tensors = {prefix + n: torch.zeros(2) for n in NAMES[name]}
    if wrapping == "state dict":
        torch.save({"state_dict": tensors, "epoch": 3}, "m.ckpt")
    else:
        save_file(tensors, "m.safetensors")
        named(diffuse, "m.safetensors", name)
        torch.save(tensors, "m.ckpt", _use_new_zipfile_serialization=wrapping == "plain")
    named(diffuse, "m.ckpt", name)


def test_a_checkpoint_is_named_beside_what_else_its_program_wrote(diffuse):
    """Lightning's callbacks, and a milestone with its EMA."""
    tensors = {n: torch.zeros(2) for n in NAMES["Stable Diffusion"]}
    torch.save({"callbacks": Evil(), "state_dict": tensors}, "v1-4.ckpt")
    named(diffuse, "v1-4.ckpt", "Stable Diffusion")
    tensors = {n: torch.zeros(2) for n in NAMES["denoising-diffusion-pytorch"]}
    ema = {f"{side}.{n}": t for side in ("online_model", "ema_model") for n, t in tensors.items()}
    milestone = {"step": 700, "model": tensors, "opt": {"state": {}, "param_groups": []},
                 "ema": {"initted": torch.tensor([True]), **ema}, "scaler": None,
                 "version": "2.2.5"}  # fmt: skip
    torch.save(milestone, "model-1.pt")
    named(diffuse, "model-1.pt", "denoising-diffusion-pytorch")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_snapshot_of_edm_is_named_and_not_run(diffuse, monkeypatch, protocol: int):
    network = persistent(EDM, monkeypatch)()
    snapshot = {"ema": network, "loss_fn": None, "augment_pipe": None, "dataset_kwargs": {}}
    path = Path("network-snapshot-200000.pkl")
    path.write_bytes(pickle.dumps(snapshot, protocol=protocol))
    named(diffuse, path, "EDM")
    torch.save({"net": network, "optimizer_state": {}}, "training-state-200000.pt")
    named(diffuse, "training-state-200000.pt", "EDM")


def test_another_pickle_of_the_same_machinery_is_not_taken_for_edm(diffuse, monkeypatch):
    network = persistent({**EDM, "class_name": "Generator"}, monkeypatch)()
    Path("stylegan.pkl").write_bytes(pickle.dumps({"G_ema": network}))
    ran = diffuse("convert", "stylegan.pkl", *OPTIONS, "-q")
    assert (ran.code, "EDM" in ran.line) == (4, False)


def test_every_format_that_is_converted_is_in_the_table():
    assert {*FORMATS} <= {known.format for known in file_types.KNOWN}


# -- wrapped checkpoints --------------------------------------------------------------------------

WRAPPED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
    "module.": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "both": lambda state: {"state_dict": {f"module.{n}": t for n, t in state.items()}},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_a_wrapped_checkpoint_is_the_checkpoint_in_it(how: str):
    found = []
    for name, state in (("plain.pt", checkpoint()), ("wrapped.pt", WRAPPED[how](checkpoint()))):
        torch.save(state, name)
        config = ConvertConfig(
            source=name, size=8, heads=2, schedule="cosine", num_timesteps=100, overwrite=True
        )
        found.append(model_file.load(finish(convert(config))["model"]).ema)
    assert all(torch.equal(found[1][name], tensor) for name, tensor in found[0].items())


def test_module_before_some_names_alone_is_no_wrapping(diffuse):
    state = checkpoint()
    state["module.out.2.weight"] = state.pop("out.2.weight")
    torch.save(state, "m.pt")
    diffuse("convert", "m.pt", *OPTIONS, "-q").fails(4, "out.2.weight is missing")


# -- archives -------------------------------------------------------------------------------------


def packed(path: str, *names: str) -> Path:
    """A zip file, whose images are red."""
    red = encoded(Image.new("RGB", (8, 8), "red"))
    return zipped(Path(path), {n: red if n.lower().endswith("png") else b"" for n in names})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def tarred(path: str, mode: str) -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("a.png"))


ARCHIVES: dict[str, tuple[Callable[[str], Any], str]] = {
    "photos.zip": (lambda p: cut(packed(p, "a.png")), "a zip file that is cut short"),
    "photos.tar.gz": (lambda p: tarred(p, "w:gz"), "a gzip archive"),
    "photos.tar.xz": (lambda p: tarred(p, "w:xz"), "an xz archive"),
    "photos.tar.bz2": (lambda p: tarred(p, "w:bz2"), "a bzip2 archive"),
    "photos.rar": (lambda p: Path(p).write_bytes(b"Rar!\x1a\x07\x01\0"), "a RAR archive"),
    "photos.7z": (lambda p: Path(p).write_bytes(b"7z\xbc\xaf\x27\x1c\0\4"), "a 7-Zip archive"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_is_not_read_is_named(diffuse, name: str):
    write, says = ARCHIVES[name]
    write(name)
    for command, code in (
        (("info", name), 4),
        (("sample", name), 4),
        (("eval", name, name), 4),
        (("convert", name), 4),
        (("train", name), 3),
    ):
        ran = diffuse(*command, "-q")
        assert (ran.code, ran.out) == (code, ""), command
        assert f"{name} is {says}" in ran.line, command
        assert ("download it again" if "zip file" in says else "Unpack it") in ran.line


# -- a model, or images? --------------------------------------------------------------------------


def broken(path: str) -> None:
    """What torch wrote, with a list of members that cannot be read."""
    torch.save({"a": torch.ones(2)}, path)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data.replace(b"PK\x01\x02", b"PK\xff\xff"))
    assert zipfile.is_zipfile(path)


SUBJECTS: dict[str, tuple[Callable[[], Any], bool]] = {
    "images.zip": (lambda: packed("images.zip", "a.png"), True),
    "images.pt": (lambda: packed("images.pt", "a.png"), True),
    "empty.zip": (lambda: packed("empty.zip"), True),
    "folder": (lambda: Path("folder").mkdir(), True),
    "weights.pt": (lambda: torch.save({"a": torch.ones(2)}, "weights.pt"), False),
    "weights.zip": (lambda: torch.save({"a": torch.ones(2)}, "weights.zip"), False),
    "m.safetensors": (lambda: save_file({"a": torch.ones(2)}, "m.safetensors"), False),
    "mixed.zip": (lambda: packed("mixed.zip", "x/data.pkl", "x/a.PNG"), True),
    "broken.pt": (lambda: broken("broken.pt"), False),
    "nowhere": (lambda: None, False),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_command_takes_the_same_for_images(diffuse, name: str):
    """Codes 3 and 4 are of unusable images and of model files."""
    write, expected = SUBJECTS[name]
    write()
    assert is_images(Path(name)) is expected
    found = {c: diffuse(c, name, *more, "-q").code for c, *more in (("info",), ("eval", name))}
    if name == "nowhere":
        assert found == {"info": 3, "eval": 4}
    elif not expected:
        assert set(found.values()) == {4}
        assert diffuse("train", name, "-q").code == 3
    else:
        assert 4 not in found.values()
        ran = diffuse("sample", name, "-q")
        assert (ran.code, "pickle" in ran.line) == (4, name == "mixed.zip")


# -- pickles that were made to take long ----------------------------------------------------------

HOSTILE = {
    "many steps": b"\x80\x02" + b"N0" * 2**24,
    "many pickles": b"\x80\x02" + b"N." * 2**24,
    "many texts": b"\x80\x02" + b"".join(b"X\x04\0\0\0%04x0" % (n % 2**16) for n in range(10**6)),
    "a long text": b"\x80\x02X\xff\xff\xff\x0f" + b"a" * 2**24,
    "a number without an end": b"\x80\x02I" + b"9" * 2**24,
    "a text that is none": b"\x80\x02X\x02\0\0\0\xff\xff.",
    "nothing": b"\x80\x02",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_of_a_hostile_pickle_little_is_listed(name: str, monkeypatch: pytest.MonkeyPatch):
    Path("m.pkl").write_bytes(HOSTILE[name])
    listed, genops = [0, 0], pickletools.genops

    def counted(data: io.BytesIO) -> Iterator[Any]:
        listed[0] = max(listed[0], len(data.getbuffer()))
        for each in genops(data):
            listed[1] += 1
            yield each

    monkeypatch.setattr(pickletools, "genops", counted)
    with pytest.raises(model_file.ModelFileError, match="is a pickle, which can run code"):
        model_file.load("m.pkl")
    bytes_seen, instructions = listed
    assert 0 < bytes_seen <= MOST_BYTES
    assert instructions <= MOST_STEPS
