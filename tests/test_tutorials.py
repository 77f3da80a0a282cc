"""The tutorials: their commands and Python run in order, and print what the pages show."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import in_process
from lab import ROOT
from page_files import write_phone
from test_docs import beside_examples, few  # noqa: F401

from diffuse_cli.training import decisions

DOCS = ROOT / "docs"
PAGES = [
    *sorted((DOCS / "tutorials").glob("*.md")),
    DOCS / "troubleshooting.md",
    DOCS / "trackers.md",
]

ALWAYS = ("first-model", "your-photos")
"""Pages that run in every run of the tests. The others are slow."""

QUICKER = {
    "--minutes 4 ": "--steps 2 ",
    "--minutes 5 ": "--steps 2 --log-every 1 ",
    "--minutes 10 ": "--steps 4 --stop-at 2 ",
    "--minutes 20 ": "--steps 3 ",
    "--minutes 60 ": "--steps 4 --stop-at 2 ",
    "--preset small ": "--preset tiny ",
    "--size 128 ": "--size 16 ",
    "--members 16 ": "--members 3 ",
    "--members 4 ": "--members 2 ",
    "-n 200 ": "-n 40 ",
    "fields 1000 ": "fields 100 ",
    "test 100 ": "test 20 ",
    "--steps 500 ": "--steps 2 ",
    "--steps 1000 ": "--steps 22 ",
    "diffuse sample ": "diffuse sample --steps 2 ",
    "diffuse eval ": "diffuse eval --steps 2 --timesteps 2 ",
    "mv photos/bag ": "cp -r photos ",
    "steps=500, ": "steps=2, log_every=1, ",
    "steps=100, ": "steps=4, ",
    "event.step == 20": "event.step == 2",
    "n=96, ": "n=16, steps=2, ",
    "sample(": "sample(steps=2, n=",
}
"""Replacements in the code of the pages, so that a run takes a second."""

NOT_RUN = (
    "python3 -m venv", "pip install", "tensorboard --logdir", "scp ", "ssh ",
    "diffuse sample model.safetensors -n 50000", "diffuse eval many",
    "diffuse convert fast.safetensors page", "diffuse train fields --given coarse",
)  # fmt: skip
"""Commands that change the environment, need another machine, a download or a day."""

NOT_INSTALLED = "--log wandb"
"""Commands with this option fail, because the tests do not install the tracker."""

BY_THE_CLOCK = ("s per step of", "; --minutes ", "steps instead of", ". At 64x64 with this width: ")
"""Lines that are only printed by runs with --minutes or of larger images."""

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def quicker(code: str) -> str:
    for old, new in QUICKER.items():
        code = code.replace(old, new)
    return code


def shape(line: str) -> str:
    """A line without its spacing, with a # in place of each word that has a digit or ellipsis."""
    return " ".join(re.sub(r"\S*[\d…]\S*", "#", line).split())


def run(line: str) -> None:
    """Run a command of a page as its reader does, in the current folder."""
    words = shlex.split(quicker(f"{line} "))
    if "=" in words[0]:  # a variable
        del words[0]
    if words[0] == "diffuse":
        assert in_process(words[1:]) == (2 if NOT_INSTALLED in line else 0), line
        return
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    out = subprocess.run(
        words, env={**os.environ, "PATH": path}, check=True, capture_output=True, text=True
    )
    print(out.stdout, flush=True)


@pytest.mark.usefixtures("beside_examples")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow][path.stem in ALWAYS :])
        for path in PAGES
    ],
)
def test_the_code_of_a_page_runs_and_prints_what_it_shows(
    page: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    text = page.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert text.count("```") == 2 * len(blocks) > 0
    names: dict[str, Any] = {"__name__": page.stem}
    printed: set[str] = set()
    if page.stem == "few-photos":  # whose run takes the default number of steps
        for name, few in (("LEAST_STEPS", 3), ("MOST_PASSES", 1), ("PASSES", 0.1)):
            monkeypatch.setattr(decisions, name, few)
    if page.stem == "your-photos":
        write_phone(Path("phone"))
    if page.stem == "troubleshooting":  # which resumes a run of the first tutorial
        run("diffuse train examples/fashion-mnist.zip --minutes 10 -o garments.safetensors")
    for language, code in (block.groups() for block in blocks):
        if language == "python":
            exec(compile(quicker(code), str(page), "exec", dont_inherit=True), names)
        elif language == "":
            for line in code.splitlines():
                if not line.startswith(NOT_RUN):
                    run(line)
        printed |= {shape(line) for stream in capfd.readouterr() for line in stream.splitlines()}
        if language == "text":
            for line in code.splitlines():
                by_the_clock = any(part in line for part in BY_THE_CLOCK)
                assert by_the_clock or line == "…" or shape(line) in printed, line


def test_every_replacement_is_of_use():
    code = "".join(
        f"{block[2]} ".replace("\n", " \n") for page in PAGES
        for block in BLOCK.finditer(page.read_text(encoding="utf-8"))
    )  # fmt: skip
    assert [old for old in (*QUICKER, *NOT_RUN, NOT_INSTALLED) if old not in code] == []
