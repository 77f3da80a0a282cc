"""Commands that the program suggests can be run as they are printed."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import shutil
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab import QUICK, ROOT
from PIL import Image, ImageOps

from diffuse_cli.commands import COMMANDS
from diffuse_cli.commands._cli.suggestions import ADVICE, SYNONYMS
from diffuse_cli.config.options import field_flag, option_fields

Run = Callable[..., Any]

# -- after a training ------------------------------------------------------------------------------


def arrays(images: Path) -> Path:
    """Two channels of floats in each of 12 files."""
    folder = Path("arrays")
    folder.mkdir()
    draw = np.random.default_rng(3)
    for k in range(12):
        np.save(folder / f"{k:02d}.npy", draw.normal(k, 2, (2, 8, 8)).astype(np.float32))
    return folder


def sounds(images: Path) -> Path:
    """Twelve tones of 64 samples."""
    pytest.importorskip("soundfile", reason="of the extra [audio]")
    folder = Path("sounds")
    folder.mkdir()
    for k in range(12):
        with wave.open(str(folder / f"{k:02d}.wav"), "wb") as file:
            file.setparams((1, 2, 4000, 0, "NONE", ""))
            file.writeframes((6000 * np.sin(np.arange(64) * (k + 1) / 9)).astype("<i2").tobytes())
    return folder


def with_table(images: Path) -> Path:
    """The images, with an age and a site of each."""
    folder = Path(shutil.copytree(images, "with a table"))
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    rows = [f"{name},{20 + k / 3:.4f},{('here', 'over there')[k % 2]}"
            for k, name in enumerate(names)]  # fmt: skip
    (folder / "metadata.csv").write_text("\n".join(["file_name,age,site", *rows]) + "\n")
    return folder


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(folder.name, "zip", folder))


@pytest.fixture
def negatives(images: Path, diffuse: Run) -> Path:
    """The negative of each image, under its name."""
    folder = Path("the negatives")
    for path in images.rglob("*.png"):
        there = folder / path.relative_to(images)
        there.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.invert(Image.open(path)).save(there)
    return folder


def suggested(err: str) -> list[str]:
    """The words after `diffuse` of the last line of a training."""
    program, *words = shlex.split(err.splitlines()[-1].partition(" with: ")[2])
    assert program == "diffuse"
    return words


KINDS: dict[str, tuple[Any, list[str]]] = {
    "plain": (Path, []),
    "of a zip": (zipped, ["-o", "a b.safetensors"]),
    "learned variance": (Path, ["--variance", "learned"]),
    "classes": (Path, ["--classes"]),
    "classes always told": (Path, ["--classes", "--label-dropout", "0"]),
    "table": (with_table, ["--condition-on", "age,site"]),
    "table always told": (with_table, ["--condition-on", "age,site", "--label-dropout", "0"]),
    "small images": (Path, ["--given", "low-res:2"]),
    "small images of a zip": (zipped, ["--given", "low-res:2"]),
    "masks": (Path, ["--given", "mask:random", "--given-dropout", "0"]),
    "pairs": (Path, ["--given", "the negatives", "--classes"]),
    "arrays": (arrays, []),
    "small arrays": (arrays, ["--given", "low-res:2"]),
    "sounds": (sounds, ["--size", "64"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_that_samples_from_a_model_runs(
    diffuse: Run, images: Path, negatives: Path, kind: str
):
    data, line = KINDS[kind]
    ran = diffuse("train", data(images), "--config", QUICK, "--steps", 2, *line)
    assert ran.code == 0, ran.err
    words = suggested(ran.err)
    ran = diffuse(*words)
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) == 16 + 1
    assert ran.err.splitlines()[-1] == "See them all in one image: samples/grid.png"


def test_rows_of_a_npy_file_are_no_inputs_of_a_command(diffuse: Run):
    """`sample --given` reads the file as one array."""
    np.save("all.npy", np.random.default_rng(3).normal(size=(12, 2, 8, 8)).astype(np.float32))
    line = ("train", "all.npy", "--config", QUICK, "--steps", 2)
    words = suggested(diffuse(*line, "-o", "plain.safetensors").err)
    assert diffuse(*words).code == 0
    ran = diffuse(*line, "--given", "low-res:2")
    assert (ran.code, "diffuse sample" in ran.err) == (0, False)


def test_pairs_in_a_zip_are_taken_from_it(diffuse: Run, images: Path, negatives: Path):
    line = ("train", images, "--config", QUICK, "--steps", 2, "--given", zipped(negatives))
    words = suggested(diffuse(*line).err)
    assert "--range" in words
    assert diffuse(*words).code == 0


def test_a_distilled_and_a_second_model_have_folders_of_their_own(diffuse: Run, images: Path):
    ran = diffuse("train", images, "--config", QUICK, "--steps", 2)
    assert diffuse(*suggested(ran.err), "-n", 1).code == 0
    ran = diffuse("distill", "model.safetensors", images, "--steps", 2)
    words = suggested(ran.err)
    assert words == ["sample", "distilled.safetensors", "-o", "samples-2"]
    assert diffuse(*words).code == 0
    assert len([*Path("samples-2").glob("0*.png")]) == 16


@pytest.mark.parametrize(
    "kind", ["plain", "table", "small images", "masks", "pairs", "small arrays"]
)
def test_the_lines_of_a_card_run(diffuse: Run, images: Path, negatives: Path, kind: str):
    data, line = KINDS[kind]
    source = data(images)
    assert diffuse("train", source, "--config", QUICK, "--steps", 2, *line).code == 0
    Image.new("L", (4, 4)).save("grid.png")
    line = ["--license", "mit", "--samples", "grid.png", "-o", "card"]
    ran = diffuse("push", "model.safetensors", "hf://some/name", *line)
    assert ran.code == 0, ran.err
    card = Path("card/README.md").read_text().replace("hf://some/name", "model.safetensors")
    inputs = negatives if kind == "pairs" else source
    one = next(path for path in sorted(inputs.rglob("*")) if path.suffix in (".png", ".npy"))
    shutil.copy(one, f"input{one.suffix}")
    (command,) = re.findall(r"^diffuse (sample .*)$", card, re.MULTILINE)
    ran = diffuse(*shlex.split(command))
    assert ran.code == 0, ran.err
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    assert len(names["samples"]) == 16


def test_json_and_quiet_leave_suggestions_out(diffuse: Run, images: Path):
    line = ("train", images, "--config", QUICK, "--steps", 2, "-q")
    assert diffuse(*line).err == ""
    ran = diffuse("sample", "model.safetensors", "-n", 1, "--steps", 2, "-q", "--json")
    assert (ran.err, ran.json["grid"]) == ("", "samples/grid.png")


# -- all other texts -------------------------------------------------------------------------------

FLAG = re.compile(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*(?![\w-])")
SUGGESTED = re.compile(rf"diffuse ({'|'.join(COMMANDS)})\b((?: [^\s.;:,]+)*)")
FOREIGN = {"--logdir", "--force-reinstall", "--help"}
"""Flags of other programs, and that of Typer."""


@functools.cache
def texts() -> list[str]:
    """The texts of the package that are not docstrings."""
    found = [*ADVICE.values(), *SYNONYMS.values()]
    for path in sorted((ROOT / "diffuse_cli").rglob("*.py")):
        if path.name != "suggestions.py":
            nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
            docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
            constants = (n for n in nodes if isinstance(n, ast.Constant) and id(n) not in docs)
            found += [node.value for node in constants if isinstance(node.value, str)]
    return found


def flags(names: Sequence[str]) -> set[str]:
    """Every flag of these commands."""
    fields = [f for name in names for f, _ in option_fields(COMMANDS[name].CONFIG)]
    own = {field_flag(f) for f in fields}
    own |= {field_flag(f).replace("--", "--no-") for f in fields if "bool" in str(f.type)}
    return own | {"--config", "--json", "--quiet", "--debug", "--version"} | FOREIGN


def test_every_flag_that_a_message_names_is_one():
    found = {flag for text in texts() for flag in FLAG.findall(text)}
    assert len(found) > 100
    assert found <= flags([*COMMANDS])


def test_every_command_that_a_message_names_has_the_flags_it_names():
    found = [match.groups() for text in texts() for match in SUGGESTED.finditer(text)]
    assert len(found) > 15
    for command, rest in found:
        assert {*FLAG.findall(rest)} <= flags([command]), (command, rest)
