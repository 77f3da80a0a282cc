"""Killed at any moment, a run resumes to the same bytes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import rounds
import torch
from seams import ends_at, killed_while, watching

from diffuse_cli import files, tensorfile
from diffuse_cli.training.rundir import KEPT, TENSORS, Checkpoint, RunDirectory


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
    found = RunDirectory(tmp_path / "model.safetensors")
    begin(found)
    return found


def begin(run: RunDirectory) -> None:
    """Checkpoints of the steps 1 ... KEPT, and nothing else."""
    files.remove(run.checkpoints)
    for step in range(1, KEPT + 1):
        run.save(checkpoint(step))


def test_a_save_that_is_killed_at_any_operation_leaves_the_old_or_the_new(run: RunDirectory):
    new = KEPT + 1
    for moment in range(10_000):
        killed = killed_while(lambda: run.save(checkpoint(new)), ends_at(moment))
        found, passed = run.load()
        assert found is not None, moment
        assert passed == [], moment
        assert found.step in (new - 1, new), moment
        assert equal(found, checkpoint(found.step)), moment
        if not killed:
            break
        with run.held():  # what is left of the killed process goes
            pass
        assert not list(run.path.rglob(".*.tmp")), moment
        begin(run)
    assert moment > 80
    assert found.step == new
    assert len(list(run.checkpoints.iterdir())) == KEPT


def test_a_save_over_a_damaged_checkpoint_that_is_killed_leaves_the_one_before(run: RunDirectory):
    """After a fall back, the step that was damaged is saved again."""
    for moment in range(10_000):
        path = run.checkpoints / f"step-{KEPT:08d}" / "model.safetensors"
        if path.exists():
            path.write_bytes(b"damaged")
        killed = killed_while(lambda: run.save(checkpoint(KEPT)), ends_at(moment))
        found, _ = run.load()
        assert found is not None, moment
        assert found.step in (KEPT - 1, KEPT), moment
        assert equal(found, checkpoint(found.step)), moment
        if not killed:
            break
    assert found.step == KEPT


def test_a_model_file_that_is_killed_at_any_operation_is_the_old_or_the_new(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    old, new = ({"a": torch.full((5,), value)} for value in (1.0, 2.0))
    for moment in range(1000):
        tensorfile.write(path, old)
        killed = killed_while(lambda: tensorfile.write(path, new), ends_at(moment))
        found = tensorfile.read(path)
        assert same(found, old) or same(found, new)
        if not killed:
            break
    assert moment == 2 * 6  # open, header, tensor, sync, rename, sync of the folder
    assert same(found, new)


# -- a power cut ----------------------------------------------------------------------------------


class Disk:
    """A disk that keeps only what was synced: the seam notes what a power cut would take."""

    def __init__(self, moment: int) -> None:
        self.moment, self.count = moment, 0
        self.unsynced: set[Path] = set()
        self.renamed: list[tuple[Path, Path]] = []

    @contextlib.contextmanager
    def operation(self, name: str, path: Path) -> Iterator[None]:
        self._tick()
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
            self.renamed.append((path, other) if before - after else (other, path))
            if kept:
                self.renamed.append((kept, path))
        elif name == "sync-folder":
            self.renamed = [r for r in self.renamed if r[0].parent != path]
        self._tick()

    def _tick(self) -> None:
        if self.count == self.moment:
            self._cut()
        self.count += 1

    def _cut(self) -> None:
        """Renames whose folder was not synced are undone; files that were not, are empty."""
        for path in self.unsynced:
            if path.exists():
                path.write_bytes(b"")
        undo = [r for r in self.renamed if r[0].name != "kept-by-the-disk"]
        for now, then in reversed(undo):
            if now.exists():
                now.rename(then)
        for kept, path in (r for r in self.renamed if r[0].name == "kept-by-the-disk"):
            if not path.exists():
                kept.rename(path)
        os._exit(137)


def test_a_power_cut_at_any_operation_of_a_save_leaves_the_old_or_the_new(run: RunDirectory):
    new = KEPT + 1
    for moment in range(10_000):
        cut = killed_while(lambda: run.save(checkpoint(new)), Disk(moment).operation)
        found, passed = run.load()
        assert found is not None, moment
        assert passed == [], moment
        assert equal(found, checkpoint(found.step)), moment
        if not cut:
            break
        with run.held():
            pass
        begin(run)
    assert moment > 80
    assert found.step == new


def test_a_power_cut_while_a_model_file_is_replaced_leaves_the_old_or_the_new(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    old, new = ({"a": torch.full((5,), value)} for value in (1.0, 2.0))
    for moment in range(1000):
        for stray in tmp_path.iterdir():
            stray.unlink()
        tensorfile.write(path, old)
        cut = killed_while(lambda: tensorfile.write(path, new), Disk(moment).operation)
        found = tensorfile.read(path)
        assert same(found, old) or same(found, new), moment
        if not cut:
            break
    assert same(found, new)


# -- whole rounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["operations", "signals"])
def test_killed_and_resumed_equals_a_run_that_nothing_stopped(server, tmp_path: Path, kind: str):
    """Three operations, five signals; `rounds.py` does every one, and any number of signals."""
    here = rounds.World(server, tmp_path)
    found = rounds.operations(here) if kind == "operations" else rounds.signals(here)
    assert found["failed"] in ({}, [])
    assert found.get("rounds", 3) == 3
    assert found.get("killed", 5) == 5


def test_what_a_run_writes_goes_through_the_one_place(tmp_path, train, monkeypatch):
    """Each file of a run appears by an operation that the tests above can stop at."""
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(files, "operation", watching(seen))
    assert train("--steps", 4, "--save-every", 2, "--preview-every", 2).code == 0
    named = {name for kind, name in seen if kind in ("rename", "append", "mkdir")}
    there = {p.name for p in tmp_path.rglob("*")} - {"model.run", "checkpoints", "previews"}
    assert there <= named
    assert "step-00000004" in there
