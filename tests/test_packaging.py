"""What is published: the source archive holds what its tests need, and all say one version."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOWS = ROOT / ".github" / "workflows"
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


def test_one_license_and_no_other_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert "version:" not in citation.replace("cff-version:", "")
    assert re.findall(r"^license: (.*)$", citation, re.MULTILINE) == [PROJECT["license"]]
    (author,) = PROJECT["authors"]
    assert f"Copyright (c) 2026 {author['name']}" in (ROOT / "LICENSE").read_text("utf-8")
    assert f"- name: {author['name']}\n" in citation


def test_ci_runs_the_versions_that_are_promised():
    workflow = (WORKFLOWS / "tests.yml").read_text(encoding="utf-8")
    tested = re.findall(r'"(3\.\d+)"', re.findall(r"python: \[(.*)\]", workflow)[0])
    classified = re.findall(r":: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert tested == classified
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_ci_runs_the_systems_that_are_promised():
    workflow = (WORKFLOWS / "tests.yml").read_text(encoding="utf-8")
    names = {"ubuntu": "Linux", "macos": "MacOS", "windows": "Windows"}
    tested = {names[name] for name in re.findall(r"runs-on: (\w+)-", workflow)}
    systems = [c for c in PROJECT["classifiers"] if c.startswith("Operating System :: ")]
    assert tested == {system.split(" :: ")[-1] for system in systems}


def test_ci_runs_the_oldest_versions_that_are_allowed():
    workflow = (WORKFLOWS / "tests.yml").read_text(encoding="utf-8")
    assert "--resolution lowest-direct -e '.[dev]'" in workflow
    allowed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    bounded = re.compile(r"[\w-]+>=[\d.]+(,<[\d.]+)?|diffuse-cli\[\w+\]")
    assert [each for each in allowed if not bounded.fullmatch(each)] == []


def test_a_release_is_published_after_its_tests():
    workflow = (WORKFLOWS / "release.yml").read_text(encoding="utf-8")
    jobs = dict(re.findall(r"^  (\w+):\n((?:    .*\n|\n)*)", workflow, re.MULTILINE))
    assert jobs["tests"].strip() == "uses: ./.github/workflows/tests.yml"
    assert "needs: [tests, build]" in jobs["publish"]
    assert "workflow_call:" in (WORKFLOWS / "tests.yml").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, CI has no Chromium")
@pytest.mark.parametrize(("ci", "ended"), [("true", "1 failed"), ("", "1 skipped")])
def test_ci_fails_without_chromium(ci: str, ended: str, tmp_path: Path):
    page = (
        "from browser import Browser, needs_browser\n\n\n@needs_browser\ndef test_page(tmp_path):\n"
    )
    (tmp_path / "test_page.py").write_text(f"{page}    Browser(tmp_path)\n")
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, tmp_path],
        env={
            **os.environ, "CI": ci, "PATH": str(tmp_path), "PYTHONPATH": str(ROOT / "tests"),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended in found.stdout
    assert bool(found.returncode) == bool(ci)
