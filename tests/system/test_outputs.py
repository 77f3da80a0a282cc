"""Each command refuses an output that it may not write before it reads its input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from file_operations import failing_at

from diffuse_cli.system import files, outputs
from diffuse_cli.system.errors import OutputError
from diffuse_cli.system.outputs import claim_output, hold_output

COMMANDS = {
    "train": ("train broken", "-o", ".safetensors"),
    "convert": ("convert broken", "-o", ".safetensors"),
    "plot": ("eval broken broken", "--plot", ".png"),
    "pairs": ("eval broken broken", "--pairs", ".png"),
    "report": ("eval broken broken", "--report", ".html"),
    "tune": ("tune broken broken", "-o", ".safetensors"),
    "plot of tune": ("tune broken broken", "--plot", ".png"),
    "ema": ("ema broken broken", "-o", ".safetensors"),
    "sheet": ("info folder", "-o", ".png"),
    "demo": ("noise-demo broken", "-o", ".png"),
}
"""The start of a line whose input cannot be read, an output, and what it must end in."""

all_commands = pytest.mark.parametrize(("start", "flag", "suffix"), COMMANDS.values(), ids=COMMANDS)


@pytest.fixture(autouse=True)
def inputs(diffuse):
    """What every command fails to read, as it would say if it came to that."""
    Path("broken").write_bytes(b"nothing that is known")
    Path("folder").mkdir()
    Path("folder/a.png").write_bytes(b"")


@all_commands
def test_what_exists_is_kept(diffuse, start, flag, suffix):
    path = Path("x" + suffix)
    for make in (lambda: path.write_text("mine"), lambda: path.symlink_to("nowhere")):
        make()
        ran = diffuse(*start.split(), flag, path, "-q")
        ran.fails(5, f"{path} exists already", f"hoose another {flag}", "--overwrite")
        assert path.is_symlink() or path.read_text() == "mine"
        path.unlink()
    path.write_text("mine")
    assert diffuse(*start.split(), flag, path, "--overwrite", "-q").code in (3, 4)
    assert path.read_text() == "mine"


@all_commands
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_what_cannot_be_written_is_refused(diffuse, start, flag, suffix, overwrite):
    Path("x" + suffix).mkdir()
    for path in ("broken/x", "x"):  # train names the run directory beside it
        ran = diffuse(*start.split(), flag, path + suffix, "-q", *overwrite)
        ran.fails(5, f"cannot write {path}.")


@all_commands
def test_what_another_process_writes_is_left_to_it(diffuse, start, flag, suffix):
    path = Path("x" + suffix)
    for overwrite in ([], ["--overwrite"]):
        with hold_output(path):
            ran = diffuse(*start.split(), flag, path, "-q", *overwrite)
        assert ran.code == 75
        assert f"process {os.getpid()} is writing to {path}." in ran.line
        assert f"choose another {flag}" in ran.line
        assert not path.exists()
    assert not list(Path().glob(".*"))


@pytest.mark.parametrize("target", ["diffusers", "onnx", "pt2"])
def test_what_another_process_exports_is_left_to_it(diffuse, target):
    path = Path("x" if target == "diffusers" else f"x.{target}")
    with hold_output(path):
        ran = diffuse("convert", "broken", "--to", target, "-o", path, "--overwrite", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (75, "busy")


def test_samples_are_kept(diffuse):
    Path("samples").mkdir()
    for name in ("00000.png", "manifest.json"):
        (Path("samples") / name).touch()
        ran = diffuse("sample", "broken", "-q")
        ran.fails(5, "samples already holds samples", "Choose another -o, or pass --overwrite")
        assert diffuse("sample", "broken", "--overwrite", "-q").code == 4
        (Path("samples") / name).unlink()
    for name in ("notes.txt", "run-01.log"):
        (Path("samples") / name).touch()
    assert diffuse("sample", "broken", "-q").code == 4
    assert diffuse("sample", "broken", "-o", "broken", "-q").code == 5


@pytest.mark.parametrize(
    ("command", "source"), [("convert", "in.safetensors"), ("noise-demo", "in.png")]
)
def test_the_input_is_no_output(diffuse, command, source):
    Path(source).write_bytes(b"mine")
    link = Path(source).with_stem("link")
    link.symlink_to(source)
    for path in (source, f"./{source}", link):
        ran = diffuse(command, source, "-o", path, "--overwrite", "--json")
        assert (ran.code, ran.json["error"]["code"]) == (2, "output_is_input")
    assert Path(source).read_bytes() == b"mine"


def test_a_suffix_in_capitals_will_do():
    with claim_output("X.PNG", ".png", overwrite=False) as path:
        assert path == Path("X.PNG")


OWNED = ("first", "second", "third", "card")


def fill(word: str, *names: str):
    """Write these files, each with its own content."""
    return lambda folder: [files.write_text(folder / n, f"{word} {n}") for n in names]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name in OWNED}


def test_files_of_a_folder_that_fail_from_any_operation_on_are_of_one_output(
    tmp_path: Path, monkeypatch
):
    """Until all new files exist, the old ones are whole. Then they never mix."""
    old, new = ("first", "third", "card"), ("first", "second", "card")
    whole = {word: {n: f"{word} {n}" for n in names} for word, names in (("a", old), ("b", new))}
    outcomes = set()
    for moment in range(500):
        folder = tmp_path / f"{moment}"
        folder.mkdir()
        (folder / ".git").mkdir()
        (folder / "mine").write_text("mine")
        outputs.replace_files(folder, OWNED, fill("a", *old))
        with monkeypatch.context() as patch:
            error = OSError(28, "No space left on device")
            patch.setattr(files, "operation", failing_at(moment, error, forever=True))
            try:
                outputs.replace_files(folder, OWNED, fill("b", *new))
            except OutputError as failure:
                may_lack = failure.hint == "Run the command again, with --overwrite"
            else:
                break
        state = contents(folder)
        words = {text.split()[0] for text in state.values()}
        outcomes.add((may_lack, *words, state in whole.values()))
        assert len(words) == 1, state
        assert may_lack or state == whole["a"]
        unfinished = outputs.list_unfinished(folder, OWNED)
        assert unfinished <= set(state)
        assert words == {"a"} or unfinished == set(state) or state == whole["b"]
        outputs.replace_files(folder, OWNED, fill("b", *new))
        files.remove_leftovers(folder)
        assert contents(folder) == whole["b"]
        assert sorted(p.name for p in folder.iterdir()) == sorted([".git", "mine", *new])
    assert contents(folder) == whole["b"]
    assert {(False, "a", True), (True, "a", False), (True, "b", False)} <= outcomes


def test_a_record_names_only_files_that_are_owned(tmp_path: Path):
    """A path in it leads nowhere, and a file of another name is not ours."""
    folder, other = tmp_path / "pushed", tmp_path / "other"
    (folder / outputs.UNFINISHED).mkdir(parents=True)
    paths = [folder / "card", folder / "mine", other]
    for path in paths:
        path.write_text("mine")
    (folder / "first").symlink_to("/dev/zero")
    (folder / "second").symlink_to(other)
    names = ("card", "mine", "../other", str(other), "first", "second", "..", ".", "", "/dev/zero")
    lines = [f"{files.sha256(other)} {name}" for name in names]
    (folder / outputs.UNFINISHED / outputs.RECORD).write_text("\n".join(lines))
    assert outputs.list_unfinished(folder, OWNED) == {"card", "second"}
    outputs.replace_files(folder, OWNED, fill("b", "first", "card"))
    assert [path.read_text() for path in paths] == ["b card", "mine", "mine"]
    assert sorted(path.name for path in folder.iterdir()) == ["card", "first", "mine"]


def test_the_holder_of_a_lock_is_a_process_that_is_there(tmp_path):
    path = tmp_path / "lock"
    assert outputs.holder(path) is None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for written, process in (
        *((own, own) for own in (os.getpid(), 1)),  # the first process may be another user's
        *((other, None) for other in (ended.pid, 0, -1, 10**30, "rubbish", "")),
    ):
        path.write_text(f"{written}\n")
        assert outputs.holder(path) == process
