"""What is published: the source archive holds what its tests need, and all say one version."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from diffuse_cli import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_source_archive_holds_every_file_of_the_repository():
    from hatchling.builders.sdist import SdistBuilder

    found = {Path(file.path) for file in SdistBuilder(str(ROOT)).recurse_included_files()}
    for part in ("diffuse_cli", "tests", "docs", "examples", "benchmarks", ".ci", ".github"):
        there = {path for path in (ROOT / part).rglob("*") if path.is_file()}
        missing = {path for path in there - found if "__pycache__" not in path.parts}
        assert there, part
        assert missing == set()
    assert {*ROOT.glob("*.md"), ROOT / "CITATION.cff", ROOT / "LICENSE"} <= found


def test_one_version_and_one_license():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [__version__]
    assert re.findall(r"^license: (.*)$", citation, re.MULTILINE) == [PROJECT["license"]]
    (author,) = PROJECT["authors"]
    assert f"Copyright (c) 2026 {author['name']}" in (ROOT / "LICENSE").read_text("utf-8")
    assert f"- name: {author['name']}\n" in citation


def test_ci_runs_the_versions_that_are_promised():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    tested = re.findall(r'"(3\.\d+)"', re.findall(r"python: \[(.*)\]", workflow)[0])
    classified = re.findall(r":: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert tested == classified
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_ci_runs_the_systems_that_are_promised():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    names = {"ubuntu": "Linux", "macos": "MacOS", "windows": "Windows"}
    tested = {names[name] for name in re.findall(r"runs-on: (\w+)-", workflow)}
    systems = [c for c in PROJECT["classifiers"] if c.startswith("Operating System :: ")]
    assert tested == {system.split(" :: ")[-1] for system in systems}
