"""The benchmarks, which no other test runs, find in the package what they import from it."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.glob("*.py")))
def test_a_benchmark_finds_what_it_imports(script: str):
    for node in ast.walk(ast.parse((FOLDER / script).read_text())):
        if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith("diffuse_cli"):
            continue
        module = import_module(str(node.module))
        inner = getattr(module, "__path__", None)
        for name in (alias.name for alias in node.names):
            found = hasattr(module, name) or (inner and find_spec(f"{node.module}.{name}"))
            assert found, f"line {node.lineno}: {node.module} has no {name}"
