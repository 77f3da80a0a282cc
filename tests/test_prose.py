"""The words of docs, docstrings and messages."""

from __future__ import annotations

import json
from pathlib import Path

import prose
import pytest


def test_suspicious_phrases_only_become_fewer():
    """After rewriting some: `python tests/prose.py --lower`."""
    most, now = json.loads(prose.BASELINE.read_text()), prose.counts()
    assert {kind: n for kind, n in now.items() if n > most[kind]} == {}, "python tests/prose.py"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"""The model is told a class."""', ["docstring"]),
        ('"""What is left."""', ["docstring"]),
        ('raise ValueError("the folder says what it has")', ["message"]),
        ('"""Return the model: `is told`."""', []),
        ('KEY = "is told"', []),
    ],
)
def test_a_phrase_is_found(text: str, found: list[str], tmp_path: Path):
    path = tmp_path / "module.py"
    path.write_text(text)
    assert [kind for kind, *_ in prose.findings(path)] == found


def test_code_and_formulas_of_pages_are_not_read(tmp_path: Path):
    path = tmp_path / "page.md"
    path.write_text("Run `a; b`.\n\n```\nis told\n```\n\n$$\nx; y\n$$\n\n- one beside two\n")
    assert [words for _, words, _ in prose.findings(path)] == ["one beside two"]
