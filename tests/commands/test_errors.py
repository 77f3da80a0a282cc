"""Codes of errors: each is documented, and with --json a failure is one object on stdout."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from diffuse_cli.media.file_errors import ERROR_CODES
from diffuse_cli.system.errors import CODES, DiffuseError

PACKAGE = Path(__file__).parents[2] / "diffuse_cli"


def _codes(path: Path) -> set[str]:
    """Codes that a module names: as an argument of a call, or for a class or a variable."""
    codes = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "code":
            values: list[ast.expr] = [node.value]
        elif isinstance(node, ast.Assign):
            names = {getattr(target, "attr", getattr(target, "id", "")) for target in node.targets}
            values = [node.value] if "code" in names else []
        else:
            continue
        while values:
            value = values.pop()
            if isinstance(value, ast.IfExp):
                values += [value.body, value.orelse]
            elif isinstance(value, ast.Constant) and isinstance(value.value, str):
                codes.add(value.value)
    return codes


def test_each_code_that_is_raised_is_documented_and_the_other_way_round():
    raised = {*ERROR_CODES.values()}.union(*map(_codes, PACKAGE.rglob("*.py")))
    assert raised - {""} == {*CODES}


@pytest.mark.parametrize("name", ["key.toml", "layer.toml"])
def test_the_path_of_an_unknown_key_is_its_file(diffuse, lab, name):
    ran = diffuse("train", lab["images"], "--config", lab[name], "-q", "--json")
    assert (ran.code, ran.json["error"]["path"]) == (2, str(lab[name]))


def test_each_class_has_its_most_general_code():
    classes = [DiffuseError]
    for kind in classes:
        classes += kind.__subclasses__()
        assert kind("text").code in CODES
        assert kind("text", code="busy").code == "busy"


def test_the_option_is_the_first_flag_of_the_message():
    assert DiffuseError("--size goes before --fit").option == "--size"
    assert DiffuseError("--size and --fit", option="--fit").option == "--fit"
    assert DiffuseError("no flag - here").to_dict() == {
        "code": "failed", "option": None, "path": None, "message": "no flag - here", "hint": None,
    }  # fmt: skip
