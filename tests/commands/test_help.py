"""`-h`, `--help`, and the answers to an option or a command that does not exist."""

from __future__ import annotations

import itertools
import os
import re
import shlex

import pytest
from conftest import environment

from diffuse_cli.app import CHAPTERS, build, check_names
from diffuse_cli.commands import COMMANDS
from diffuse_cli.commands._cli import help
from diffuse_cli.commands._cli.suggestions import ADVICE, SYNONYMS, VALUES
from diffuse_cli.config.options import GROUPS, field_flag, given_options, option_fields

SCREEN = 30
"""Lines of a small terminal."""

MOST_WORDS = 15
"""Words of a help text."""


@pytest.fixture(params=["plain", "terminal"])
def help_of(request, diffuse, monkeypatch):
    """The help of a command at 80 columns, without a terminal and on one."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(help, "is_terminal", lambda stream: request.param == "terminal")

    def run(*command, flag="--help"):
        ran = diffuse(*command, flag)
        assert (ran.code, ran.err) == (0, "")
        assert ("╭" in ran.out) == (request.param == "terminal")
        return ran.out

    return run


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_no_line_is_too_long_and_no_name_is_broken(help_of, command):
    text = help_of(*filter(None, [command]))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    for line in text.splitlines():
        assert not line.rstrip(" │").endswith(("-", "[default:")), line
    if command:
        check_groups(COMMANDS[command].CONFIG, text.splitlines())


def check_groups(config, lines):
    """Check that every option is in its group, and that groups have an order."""
    titles = [m[1] for line in lines if (m := re.match(r"(?:╭─ )?(\w+)(?::$| ─)", line))]
    assert titles == [name for name in ("Arguments", *GROUPS, "Examples") if name in titles]
    for f, spec in option_fields(config):
        shown = spec.metavar if spec.argument else f.name.replace("_", "-")
        title = "Arguments" if spec.argument else spec.group
        start = next(i for i, line in enumerate(lines) if re.match(rf"(╭─ )?{title}\b", line))
        later = [i for i in range(start + 1, len(lines)) if re.match(r"╭|\w+:$", lines[i])]
        part = "\n".join(lines[start : min(later, default=len(lines))])
        assert re.search(rf"[ -]{re.escape(spec.flag[2:] or shown)}(?!\w)", part), f.name


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_short_help_is_one_screen_with_the_first_group_and_names_of_others(help_of, command):
    text = help_of(*filter(None, [command]), flag="-h")
    lines = text.splitlines()
    assert len(lines) <= SCREEN + (command is None)
    assert all(len(line) <= 80 for line in lines)
    assert "--help" in " ".join(lines[-2:])
    if command is None:
        return
    first = []
    for f, spec in option_fields(COMMANDS[command].CONFIG):
        assert spec.argument or spec.group in " ".join(text.split())
        if spec.group == GROUPS[0] and not spec.argument:
            first.append(field_flag(f))
    assert all(re.search(rf"{flag}(?!\w)", text) for flag in first)
    assert len(first) <= 12


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_a_command_are_in_its_help_and_can_be_parsed(help_of, command, tmp_path):
    module = COMMANDS[command]
    assert len(module.EXAMPLES) == 2
    for example in module.EXAMPLES:
        program, name, *arguments = shlex.split(example)
        assert (program, name) == ("diffuse", command)
        assert all(example in help_of(command, flag=flag) for flag in ("-h", "--help"))
        typed = build().commands[command].make_context(command, arguments).params
        module.CONFIG.from_dict(given_options(module.CONFIG, typed))


@pytest.mark.parametrize("columns", [60, 100])
def test_help_is_as_wide_as_the_terminal(help_of, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    widest = max(map(len, help_of("train").splitlines()))
    assert columns - 10 <= widest <= columns


# -- what was meant -------------------------------------------------------------------------------


def flags_of(command):
    for f, spec in option_fields(COMMANDS[command].CONFIG):
        if not spec.argument:
            yield from (field_flag(f), spec.flag)


def first_with(flag):
    """The first command that has a flag, with as many arguments as it takes."""
    name = next(name for name in COMMANDS if flag in flags_of(name))
    return [name, *("x" for _, spec in option_fields(COMMANDS[name].CONFIG) if spec.argument)]


@pytest.mark.parametrize("typed", SYNONYMS)
def test_a_synonym_is_no_option_and_what_it_stands_for_is_one(diffuse, typed):
    meant = SYNONYMS[typed]
    if not typed.startswith("-"):
        ran = diffuse(typed, "x")
        assert typed not in COMMANDS
        assert meant.split()[0] in COMMANDS
    else:
        ran = diffuse(*first_with(meant.split()[0]), typed)
    ran.fails(2, meant)
    assert not any(typed in flags_of(name) for name in COMMANDS)


@pytest.mark.parametrize(("command", "typed"), list(ADVICE))
def test_advice_is_given_for_no_option_and_names_options_that_exist(diffuse, command, typed):
    for flag in (typed, "--" + typed[2:].replace("-", "_")):
        said = f"there is no option {flag}. {ADVICE[command, typed]}"
        diffuse(command, "x", flag, 1).fails(2, said)
    assert typed not in flags_of(command)
    every = {flag for name in COMMANDS for flag in flags_of(name)}
    assert {*re.findall(r"--[a-z][a-z-]*", ADVICE[command, typed])} <= every


@pytest.mark.parametrize(("flag", "value"), [(f, v) for f in VALUES for v in VALUES[f]])
def test_a_value_of_another_program_is_answered_with_what_can_be_typed(diffuse, flag, value):
    meant = VALUES[flag][value]
    line = first_with(flag)
    for typed in (value, value.upper().replace("-", "_")):
        said = f"{flag}: there is no '{typed}'. Did you mean '{flag} {meant}'?"
        diffuse(*line, flag, typed).fails(2, said)
    config = COMMANDS[line[0]].CONFIG
    fields = {field_flag(f): f.name for f, _ in option_fields(config)}
    words = [flag, *meant.split()]
    check_names(config, {fields[f]: v for f, v in zip(words[::2], words[1::2], strict=True)})


def test_the_list_imports_no_command_and_short_help_and_what_was_meant_no_torch(fresh, tmp_path):
    lines = [(command, "x", typed, "1") for command, typed in ADVICE]
    lines += [(*first_with(f), f, v) for f in VALUES for v in VALUES[f]]
    lines += [("train", "x", typed, "1") for typed in SYNONYMS if typed[0] == "-"]
    (tmp_path / "lines.py").write_text(
        "import sys; from diffuse_cli.app import main; main(['--help'])\n"
        "assert not {'numpy', 'diffuse_cli.commands.train'} & {*sys.modules}\n"
        f"assert all(main(line) == 2 for line in {lines})\n"
        f"assert all(main(line) == 0 for line in {[[name, '-h'] for name in COMMANDS]})\n"
        "print('torch' in sys.modules)\n"
    )
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    ran = fresh(module="lines", env={"PYTHONPATH": path})
    assert ran.out.splitlines()[-1] == "False", ran.err


def test_the_list_of_commands_says_what_each_says():
    assert sorted(itertools.chain(*CHAPTERS.values())) == sorted(COMMANDS.entries)
    for name, command in build().commands.items():
        assert build().commands.about(name) == command.help.split("\n\n")[0]
