"""Commands that the program suggests can be run as they are printed."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import mostly_slow
from lab import QUICK, ROOT, Lab
from PIL import Image

from diffuse_cli.commands import COMMANDS
from diffuse_cli.commands._cli.suggestions import ADVICE, SYNONYMS
from diffuse_cli.config.options import field_flag, option_fields

Run = Callable[..., Any]

# -- after a training ------------------------------------------------------------------------------


def suggested(err: str) -> list[str]:
    """The words after `diffuse` of the last line of a training."""
    program, *words = shlex.split(err.splitlines()[-1].partition(" with: ")[2])
    assert program == "diffuse"
    return words


def here(lab: Lab, data: str) -> Path:
    """A link to a data set, or a zip file of it, under a name with a space."""
    name, _, zipped = data.partition(" ")
    if zipped:
        return Path(shutil.make_archive(f"a {name}", "zip", lab[name]))
    link = Path(f"a {name}")
    link.symlink_to(lab[name])
    return link


KINDS: dict[str, tuple[str, list[str]]] = {
    "plain": ("images", []),
    "table": ("grey", ["--condition-on", "level,side"]),
    "small images": ("images", ["--given", "low-res:2"]),
    "masks": ("images", ["--given", "mask:random", "--given-dropout", "0"]),
    "pairs": ("grey", ["--given", "a beside", "--classes"]),
    "small arrays": ("fields", ["--given", "low-res:2"]),
    "of a zip": ("images zipped", ["-o", "a b.safetensors"]),
    "learned variance": ("images", ["--variance", "learned"]),
    "classes": ("images", ["--classes"]),
    "classes always told": ("images", ["--classes", "--label-dropout", "0"]),
    "table always told": ("grey", ["--condition-on", "level,side", "--label-dropout", "0"]),
    "small images of a zip": ("images zipped", ["--given", "low-res:2"]),
    "arrays": ("fields", []),
    "sounds": ("sounds", []),
}


@pytest.mark.parametrize("kind", mostly_slow(KINDS, always=7))
def test_the_command_that_samples_from_a_model_runs(diffuse: Run, lab: Lab, kind: str):
    data, line = KINDS[kind]
    here(lab, "beside")
    ran = diffuse("train", here(lab, data), "--config", QUICK, "--steps", 2, *line).ok()
    words = suggested(ran.err)
    ran = diffuse(*words).ok()
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


def test_pairs_in_a_zip_are_taken_from_it(diffuse: Run, lab: Lab):
    line = ("train", lab["grey"], "--config", QUICK, "--steps", 2)
    line = (*line, "--given", here(lab, "beside zipped"))
    words = suggested(diffuse(*line).err)
    assert "--range" in words
    assert diffuse(*words).code == 0


@pytest.mark.parametrize("kind", mostly_slow([*KINDS][:6], always=3))
def test_the_lines_of_a_card_run(diffuse: Run, lab: Lab, kind: str):
    data, line = KINDS[kind]
    here(lab, "beside")
    assert diffuse("train", here(lab, data), "--config", QUICK, "--steps", 2, *line).code == 0
    Image.new("L", (4, 4)).save("grid.png")
    line = ["--license", "mit", "--samples", "grid.png", "-o", "card"]
    diffuse("push", "model.safetensors", "hf://some/name", *line).ok()
    card = Path("card/README.md").read_text().replace("hf://some/name", "model.safetensors")
    one = lab.sample("beside" if kind == "pairs" else data)
    shutil.copy(one, f"input{one.suffix}")
    (command,) = re.findall(r"^diffuse (sample .*)$", card, re.MULTILINE)
    diffuse(*shlex.split(command)).ok()
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    assert len(names["samples"]) == 16


def test_a_distilled_and_a_second_model_have_folders_of_their_own(diffuse: Run, lab: Lab):
    ran = diffuse(*lab.quick, "--steps", 2)
    assert diffuse(*suggested(ran.err), "-n", 1).code == 0
    ran = diffuse("distill", "model.safetensors", lab["images"], "--steps", 2)
    words = suggested(ran.err)
    assert words == ["sample", "distilled.safetensors", "-o", "samples-2"]
    assert diffuse(*words).code == 0
    assert len([*Path("samples-2").glob("0*.png")]) == 16


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
