"""The code blocks of the pages: all can be parsed, and those that need only this machine run."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import test_docs
import test_tutorials
from conftest import in_process
from lab import ROOT
from page_files import NAMED, SMALLER, first_part, write_named
from test_docs import beside_examples, few  # noqa: F401
from typer.exceptions import TyperException

from diffuse_cli.app import build
from diffuse_cli.commands import COMMANDS
from diffuse_cli.config.options import given_options
from diffuse_cli.config.presets import PRESETS
from diffuse_cli.system.errors import INSTALL, DiffuseError
from diffuse_cli.training.configuration import configure

BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
GENERATED = ROOT / "docs" / "cli.md"
PAGES = sorted({*test_docs.PAGES, *ROOT.glob("*/README.md")} - {GENERATED})


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        language: the word after the opening fence. A shell block has none.
    """

    language: str
    code: str


@cache
def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [Block(m[2], textwrap.dedent(m[3])) for m in BLOCK.finditer(text)]
    assert len(re.findall("^ *```", text, re.MULTILINE)) == 2 * len(found), "an open block"
    return found


WITH_CODE = [page for page in PAGES if blocks_of(page)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# -- parsing ---------------------------------------------------------------------------------------

KEYWORDS = ("do", "done", "export", "until")
OTHER_PROGRAMS = (
    "[", "hf", "ls", "mv", "pre-commit", "scontrol", "scp", "source", "tail", "tar", "tensorboard",
)  # fmt: skip
"""Programs whose arguments are not checked."""

VALUES = {"$a:$b": "0:4", "50000": "64"}
"""Values for placeholders, variables and large numbers of the pages."""


@dataclass(frozen=True)
class Command:
    """A command of a shell block.

    Attributes:
        words: the program and its arguments.
        file: the file for its output.
        launcher: the words that start it in several processes.
    """

    words: list[str]
    file: str = ""
    launcher: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, [self.launcher, *self.words]))


def commands_in(code: str) -> Iterator[Command]:
    """Yield the commands of a shell block, also those that `ssh` runs."""
    code = re.sub(r"\$\(\([^()]*\)\)|\$\([^()]*\)", "1", code.replace("\\\n", " "))
    code = re.sub(r"^ *case .* esac$", "", code, flags=re.MULTILINE)
    for line in code.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in (";", "&&", "||", "|"):
                words.append(word)
                continue
            while words and (words[0] in KEYWORDS or re.match(r"\w+=", words[0])):
                del words[0]
            if words:
                yield from nested(words)
            words = []


def nested(words: list[str]) -> Iterator[Command]:
    """Yield a command, or the ones that it starts."""
    program, *arguments = words
    if program == "ssh":
        yield from commands_in(arguments[-1])
    elif "diffuse_cli" in words:
        at = words.index("diffuse_cli")
        yield Command(["diffuse", *words[at + 1 :]], launcher=shlex.join(words[:at]))
    elif ">" in words:
        at = words.index(">")
        yield Command(words[:at], file=words[at + 1])
    else:
        yield Command([program.removeprefix(".venv/bin/"), *arguments])


def check_diffuse(name: str, *arguments: str) -> None:
    """Check that the command line accepts these arguments."""
    typed = build().commands[name].make_context(name, [*arguments]).params
    COMMANDS[name].CONFIG.from_dict(given_options(COMMANDS[name].CONFIG, typed))


class Parsed(Exception):
    """A script has parsed its arguments."""


def check_python(script: str, *arguments: str) -> None:
    """Check that a script exists and accepts these arguments."""
    if script == "-m":
        assert find_spec(arguments[0]), arguments[0]
        return
    source = (ROOT / script).read_text(encoding="utf-8")
    if "argparse" not in source:
        assert [word for word in arguments if word[0] == "-" and word not in source] == []
        return

    def parse_only(parser: argparse.ArgumentParser, given: Any = None, *_others: Any) -> Any:
        parse(parser, given)
        raise Parsed

    parse = argparse.ArgumentParser.parse_args
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        patch.setattr(sys, "argv", [script, *arguments])
        patch.syspath_prepend((ROOT / script).parent)
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / script), run_name="__main__")


def installed(extra: str) -> str:
    """Return the argument of `pip install` in the program's hints."""
    command = re.search("`(.*)`", INSTALL.format(extra=extra))
    assert command is not None
    return shlex.split(command[1])[-1]


def check_pip(*arguments: str) -> None:
    """Check that the project has the extras that `pip` installs, from where they are."""
    own = [word for word in arguments if re.fullmatch(r"[\w.-]+\[\w+\]", word)]
    assert [word for word in own if word != installed(word.partition("[")[2][:-1])] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.findall(r"\[(\w+)\]", " ".join(arguments))
    assert {*extras} <= {*project["optional-dependencies"]}, extras


def check_pytest(*arguments: str) -> None:
    """Check that the files and folders of tests exist."""
    assert [word for word in arguments if "/" in word and not (ROOT / word).exists()] == []


PROGRAMS: dict[str, Callable[..., None]] = {
    "diffuse": check_diffuse, "python": check_python, "python3": check_python, "pip": check_pip,
    "pytest": check_pytest,
}  # fmt: skip


def with_values(words: list[str]) -> list[str]:
    return [VALUES.get(word, word) for word in words]


def check_shell(code: str) -> None:
    for command in commands_in(code):
        program, *arguments = with_values(command.words)
        assert program in (*PROGRAMS, *OTHER_PROGRAMS), program
        try:
            if program in PROGRAMS:
                PROGRAMS[program](*arguments)
        except (Exception, SystemExit) as error:
            error.add_note(str(command))
            raise


def check_toml(code: str) -> None:
    """Check a configuration, except that of a network that a page adds, and a project."""
    table = tomllib.loads(code)
    if "project" not in table and table.get("network") != "plain":
        configure({"data": "images"}, table)


LANGUAGES: dict[str, Callable[[str], object]] = {
    "": check_shell, "json": json.loads, "python": lambda code: compile(code, "page", "exec"),
    "text": str, "toml": check_toml,
}  # fmt: skip


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_every_block_of_a_page_can_be_parsed(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("eval.json").write_text("{}")
    NAMED["new.npy"](Path("new.npy"))
    for block in blocks_of(page):
        LANGUAGES[block.language](block.code)


def test_hints_install_what_is_there_and_pages_say_the_same():
    """A name without a folder would need a package index, which has no package of diffuse."""
    assert installed("hub") == ".[hub]"
    for page in PAGES:
        for line in re.findall(r"`(pip install [^`\n]*)`", page.read_text(encoding="utf-8")):
            check_shell(line)


WRONG = (AssertionError, DiffuseError, FileNotFoundError, KeyError, SystemExit, TyperException)


@pytest.mark.parametrize("code", [
    "diffuse trian ./images", "diffuse train ./images --step 4", "diffuse sample",
    "A=1 diffuse train ./images --steps four", "until diffuse train; do", "ssh HOST 'diffuse tune'",
    "torchrun --nproc_per_node 8 -m diffuse_cli train ./images --classs", "ls && diffuse see a.png",
    "python benchmarks/nothing.py", "python benchmarks/fields.py a b --seeds 3",
    "python -m missing", "python benchmarks/precision.py --fast", "pytest tests/nothing",
    "pip install '.[nothing]'", "pip install 'diffuse-cli[hub]'", "images   2,000 usable",
])  # fmt: skip
def test_a_wrong_command_is_found(code: str):
    with pytest.raises(WRONG):
        check_shell(code)


# -- running ---------------------------------------------------------------------------------------

NOT_HERE = {
    "benchmarks/": "the commands take hours, and have placeholders",
    "docs/baseline.md": "its runs take days on a GPU",
    "docs/course/": "test_course.py runs it",
    "docs/extending.md": "test_entry_points.py runs it",
    "docs/python.md": "test_docs.py runs it",
    "docs/theory.md": "test_docs.py runs it",
}
"""Pages whose code does not run here, by the start of their path, with the reason."""

SKIPPED = {
    r"hf://google": "it downloads a model",
    r"hf://datasets": "it downloads a data set",
    r"sample hf://ORG/NAME": "it downloads a model",
    r"--init hf://ORG/NAME": "it downloads a model",
    r"push .* --license mit$": "it uploads a model",
    r"--to page": "it fetches a runtime",
    r"push .* --demo$": "it fetches a runtime and uploads a model",
    r"push .* --eval eval.json$": "it uploads a model",
    r"torchrun": "it needs a launcher",
    r"--features inception": "it downloads a network",
}
"""Patterns of commands that do not run here, with the reason."""

LATER = ("diffuse ema model.safetensors",)
"""Commands that a page shows before those that make their files."""

FEWER: dict[str, dict[str, Any]] = {
    "train": {"--steps": 2},
    "distill": {"--steps": 2},
    "sample": {"--steps": 2},
    "eval": {"--steps": 2, "-n": 8, "--timesteps": 2},
    "compare": {"--steps": 2, "-n": 8, "--timesteps": 2},
    "tune": {"--steps": "1,2", "-n": 8, "--samplers": "ddim"},
    "ema": {"--steps": 2, "-n": 8},
    "inpaint": {"--steps": 2},
    "upscale": {"--steps": 2},
    "restore": {"--steps": 2},
    "vary": {"--steps": 2},
    "interpolate": {"--steps": 2, "-n": 3},
}
"""Options that replace those of a page, and `--minutes`."""

FEWER_IN_PYTHON = {
    'train("./images", steps=1000': 'train("./images", steps=2',
    "num_inference_steps=50": "num_inference_steps=2",
    "3, 32, 32": "3, 16, 16",
}
"""Replacements in Python code."""


def fewer(command: Command) -> list[str]:
    """Return the arguments of a `diffuse` command, with less to do."""
    _, name, *rest = with_values(command.words)
    options = FEWER.get(name, {})
    if first_part(rest[0]).startswith(("samples", "members")):  # no model
        options = {"-n": 8}
    kept = [
        word
        for before, word in zip(["", *rest], rest, strict=False)
        if not {before, word} & {*options, "--minutes"}
    ]
    replaced = {} if "--resume" in rest else options
    return [name, *kept, *(str(word) for pair in replaced.items() for word in pair)]


def fewer_in_python(code: str) -> str:
    for old, new in FEWER_IN_PYTHON.items():
        code = code.replace(old, new)
    return code


@pytest.fixture
def smaller_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, settings in SMALLER.items():
        preset = PRESETS[name]
        small = replace(preset, settings={**preset.settings, **settings}, signals={})
        monkeypatch.setitem(PRESETS.entries, name, small)


def expanded(words: list[str]) -> Iterator[str]:
    """Yield the words, with the names of files in place of a pattern."""
    for word in words:
        yield from (sorted(map(str, Path().glob(word))) if "*" in word else []) or [word]


def run(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command of a page, which must not write into what exists."""
    words = fewer(command)
    out = words[words.index("-o") + 1] if "-o" in words else ""
    assert "--resume" in words or not out or not Path(out).exists(), f"{command}: {out} exists"
    write_named([word for word in words if word != out])
    capsys.readouterr()
    code = in_process([*expanded(words)])
    out, err = capsys.readouterr()
    assert code == 0, f"{command}\n{shlex.join(words)}\n{err}"
    if command.file:
        Path(command.file).write_text(out)


def runs_here(command: Command) -> bool:
    skipped = any(re.search(pattern, str(command)) for pattern in SKIPPED)
    return command.words[0] == "diffuse" and not skipped


def code_of(page: Path) -> list[Command | str]:
    """Return the commands and the Python code of a page, in the order in which they run here."""
    found: list[Command | str] = []
    for block in blocks_of(page):
        if block.language == "python":
            found.append(block.code)
        elif block.language == "":
            found += filter(runs_here, commands_in(block.code))
    if page in test_tutorials.PAGES:
        found = [code for code in found if str(code).startswith(test_tutorials.NOT_RUN)]
    return sorted(found, key=lambda code: str(code).startswith(LATER))


RUN_HERE = [p for p in WITH_CODE if not name_of(p).startswith((*NOT_HERE,)) and code_of(p)]
ALWAYS = ("README.md", "docs/judge.md", "docs/commands/train.md", "docs/commands/sample.md")
"""Pages whose code runs in every run of the tests. The others are slow."""


@pytest.mark.usefixtures("beside_examples", "smaller_presets", "untimed")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=name_of(p), marks=[pytest.mark.slow][name_of(p) in ALWAYS :])
        for p in RUN_HERE
    ],
)
def test_the_code_of_a_page_runs(page: Path, capsys: pytest.CaptureFixture[str]):
    names: dict[str, Any] = {"__name__": page.stem}
    for code in code_of(page):
        if isinstance(code, Command):
            run(code, capsys)
        else:
            exec(compile(fewer_in_python(code), str(page), "exec", dont_inherit=True), names)


def test_every_entry_for_parsing_is_of_use():
    shell = [block.code for page in PAGES for block in blocks_of(page) if block.language == ""]
    words = {word for code in shell for word in code.split()}
    assert [word for word in (*KEYWORDS, *OTHER_PROGRAMS, *VALUES) if word not in words] == []
    lines = [str(command) for code in shell for command in commands_in(code)]
    assert [p for p in SKIPPED if not any(re.search(p, line) for line in lines)] == []


def test_every_entry_for_running_is_of_use():
    code = [code for page in RUN_HERE for code in code_of(page)]
    commands = [command for command in code if isinstance(command, Command)]
    python = "".join(block for block in code if isinstance(block, str))
    names = [*map(name_of, WITH_CODE)]
    assert [start for start in NOT_HERE if not any(n.startswith(start) for n in names)] == []
    assert [start for start in LATER if not any(str(c).startswith(start) for c in commands)] == []
    assert FEWER.keys() <= {command.words[1] for command in commands}
    assert NAMED.keys() <= {first_part(word) for command in commands for word in command.words}
    assert [old for old in FEWER_IN_PYTHON if old not in python] == []
