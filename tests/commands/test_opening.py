"""`noise-demo --open`: a stand-in for the viewer is given the file, and its lack is no error."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from diffuse_cli.commands import noise_demo

LINE = ("noise-demo", "grey.png", "--schedule", "cosine", "--steps", 2, "--num-timesteps", 4)
SILENT = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "BROWSER": ""}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8), 90).save("grey.png")
    return tmp_path


def test_the_viewer_is_given_the_file_after_it_is_written(
    process: Callable[..., Any], folder: Path
) -> None:
    viewer = folder / "viewer"
    viewer.write_text('#!/bin/sh\ncp "${1#file://}" seen\necho "$1" > address\n')
    viewer.chmod(0o755)
    ran = process(*LINE, "--gif", "--open", env={**SILENT, "BROWSER": f"{viewer} %s"})
    assert (ran.code, ran.err.count("warning")) == (0, 0), ran.err
    moving = folder / "grey.noise-demo.gif"
    assert (folder / "address").read_text().strip() == moving.as_uri()
    assert (folder / "seen").read_bytes() == moving.read_bytes()


def test_without_a_display_it_is_said_and_all_is_well(
    diffuse: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SILENT.items():
        monkeypatch.setenv(name, value)
    ran = diffuse(*LINE, "--open").ok()
    assert ran.out == "grey.noise-demo.png\n"
    assert "warning: --open: there is no display" in ran.err
    assert "--open" not in diffuse(*LINE, "--overwrite").err


@pytest.mark.parametrize("answer", [[False], OSError("no such program"), webbrowser.Error("none")])
def test_a_viewer_that_does_not_start_is_no_error(
    monkeypatch: pytest.MonkeyPatch, answer: list[bool] | Exception
) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "open", Mock(side_effect=answer))
    reason = noise_demo.open_picture(Path("grey.png"))
    assert reason == "--open: the system has no viewer for grey.png"
