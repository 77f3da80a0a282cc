"""Killed at any moment, a run resumes to the same bytes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import rounds
import torch
from conftest import mostly_slow
from file_operations import Copies, killed_at_each, watching

from diffuse_cli.models import tensor_file
from diffuse_cli.system import files
from diffuse_cli.training.run_directory import KEPT, TENSORS, Checkpoint, RunDirectory


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)

    def tensors(count: int) -> dict[str, torch.Tensor]:
        return {f"{k}": torch.randn(3, 2, generator=generator) for k in range(count)}

    return Checkpoint(
        step=step, model=tensors(2), ema=tensors(2), optimizer=tensors(3), history={}, state={}
    )


def equal(one: Checkpoint, other: Checkpoint) -> bool:
    return one.step == other.step and all(
        same(getattr(one, part), getattr(other, part)) for part in TENSORS
    )


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory with as many checkpoints as are kept, of steps 1, 2, ..."""
    found = RunDirectory(tmp_path / "live" / "model.safetensors")
    for step in range(1, KEPT + 1):
        found.save(checkpoint(step))
    return found


class Disk(Copies):
    """A disk that keeps only what was synced: the copies lack what a power cut would take."""

    def __init__(self, folder: Path, into: Path) -> None:
        super().__init__(folder, into)
        self.unsynced: set[Path] = set()
        self.renamed: list[tuple[Path, Path]] = []

    @contextlib.contextmanager
    def operation(self, name: str, path: Path) -> Iterator[None]:
        self.keep()
        before = set(path.parent.glob(f".{path.name}.*.tmp")) if name == "rename" else set()
        kept = None
        if name == "rename" and path.is_file():
            kept = path.with_name("kept-by-the-disk")
            os.link(path, kept)
        yield
        if name in ("open", "write"):
            self.unsynced.add(path)
        elif name == "sync":
            self.unsynced.discard(path)
        elif name == "rename":
            after = set(path.parent.glob(f".{path.name}.*.tmp"))
            [other] = before ^ after
            if other in self.unsynced:
                self.unsynced.add(path)
            self.renamed.append((path, other) if before - after else (other, path))
            if kept:
                self.renamed.append((kept, path))
        elif name == "sync-folder":
            self.renamed = [r for r in self.renamed if r[0].parent != path]
        self.keep()

    def keep(self) -> Path:
        """Renames whose folder was not synced are undone; files that were not, are empty."""
        copy = super().keep()

        def at(path: Path) -> Path:
            return copy / path.relative_to(self.folder)

        for path in map(at, self.unsynced):
            if path.exists():
                path.write_bytes(b"")
        renamed = [(at(now), at(then)) for now, then in self.renamed]
        undo = [r for r in renamed if r[0].name != "kept-by-the-disk"]
        for now, then in reversed(undo):
            if now.exists():
                now.rename(then)
        for kept, path in (r for r in renamed if r[0].name == "kept-by-the-disk"):
            if not path.exists():
                kept.rename(path)
        return copy


@pytest.mark.parametrize(
    ("kind", "new"),
    [(Copies, KEPT + 1), (Disk, KEPT + 1), (Copies, KEPT)],
    ids=["kill", "power cut", "kill after a fall back"],
)
def test_a_save_that_ends_at_any_operation_leaves_the_old_or_the_new(run, tmp_path, kind, new):
    """After a fall back, the step that was damaged is saved again."""
    damaged = new == KEPT
    if damaged:
        (run.checkpoints / f"step-{KEPT:08d}" / "model.safetensors").write_bytes(b"damaged")
    copies = kind(tmp_path / "live", tmp_path / "ended")
    made = killed_at_each(lambda: run.save(checkpoint(new)), copies)
    assert len(made) > 80
    for copy in made:
        left = RunDirectory(copy / "model.safetensors")
        found, passed = left.load()
        assert found is not None, copy
        assert damaged or passed == [], copy
        assert found.step in (new - 1, new), copy
        assert equal(found, checkpoint(found.step)), copy
        with left.hold_lock():  # what is left of the ended process goes
            pass
        assert not list(copy.rglob(".*.tmp")), copy
    assert found.step == new
    assert len(list(left.checkpoints.iterdir())) == KEPT


@pytest.mark.parametrize("kind", [Copies, Disk], ids=["kill", "power cut"])
def test_a_model_file_whose_replacing_ends_at_any_operation_is_the_old_or_the_new(tmp_path, kind):
    path, copies = tmp_path / "live/m.safetensors", kind(tmp_path / "live", tmp_path / "ended")
    old, new = ({"a": torch.full((5,), value)} for value in (1.0, 2.0))
    tensor_file.write(path, old)
    made = killed_at_each(lambda: tensor_file.write(path, new), copies)
    assert len(made) == 2 * 6 + 1  # open, header, tensor, sync, rename, sync of the folder
    found = [tensor_file.read(copy / path.name) for copy in made]
    assert all(same(one, old) or same(one, new) for one in found)
    renewed = [same(one, new) for one in found]
    assert renewed == sorted(renewed)
    assert renewed[-1]


# -- whole rounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", mostly_slow(["operations", "signals"], always=1))
def test_killed_and_resumed_equals_a_run_that_nothing_stopped(server, tmp_path: Path, kind: str):
    """Two operations, three signals; `rounds.py` does every one, and any number of signals."""
    here = rounds.World(server, tmp_path)
    found = rounds.operations(here) if kind == "operations" else rounds.signals(here)
    assert found["failed"] in ({}, [])
    assert found.get("rounds", 2) == 2
    assert found.get("killed", 3) == 3


def test_what_a_run_writes_goes_through_the_one_place(tmp_path, quick, monkeypatch):
    """Each file of a run appears by an operation that the tests above can stop at."""
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(files, "operation", watching(seen))
    assert quick("--steps", 4, "--save-every", 2, "--preview-every", 2).code == 0
    named = {name for kind, name in seen if kind in ("rename", "append", "mkdir")}
    there = {p.name for p in tmp_path.rglob("*")} - {"model.run", "checkpoints", "previews"}
    assert there <= named
    assert "step-00000004" in there
