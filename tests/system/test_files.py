"""Files appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import environment
from file_operations import FULL, ends_at, failing, killed_while, seam, watching

from diffuse_cli.system import files
from diffuse_cli.system.errors import OutputError


class Stop(Exception):
    """The process ends here."""


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_bytes_text_and_json_are_written(tmp_path: Path):
    files.write_bytes(tmp_path / "a", b"\0\r\n")
    files.write_text(tmp_path / "b", "Å\n")
    files.write_json(tmp_path / "deep" / "er" / "c", {"b": 1, "a": [2]})
    assert (tmp_path / "a").read_bytes() == b"\0\r\n"
    assert (tmp_path / "b").read_bytes() == b"\xc3\x85\n"
    assert (tmp_path / "deep/er/c").read_text() == '{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n'
    for line in ("one", "two"):
        files.append_line(tmp_path / "log", line)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    assert everything(tmp_path) == ["a", "b", "deep", "deep/er", "deep/er/c", "log"]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path):
    path = tmp_path / "file"
    files.write_bytes(path, b"old")
    with pytest.raises(Stop), files.replace_file(path) as file:  # noqa: PT012
        file.write(b"half of the ne")
        file.flush()
        assert path.read_bytes() == b"old"
        raise Stop
    assert path.read_bytes() == b"old"
    assert everything(tmp_path) == ["file"]


def test_a_stop_before_any_operation_leaves_old_or_new(tmp_path: Path, monkeypatch):
    path = tmp_path / "file"
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(files, "operation", watching(seen))
    files.write_bytes(path, b"old")
    assert [name for name, _ in seen] == ["open", "write", "sync", "rename", "sync-folder"]
    for stop, _ in seen:
        for after in (False, True):
            monkeypatch.setattr(files, "operation", failing(stop, Stop(), after=after))
            with pytest.raises(Stop):
                files.write_bytes(path, b"new")
            renamed = stop == "sync-folder" or (stop == "rename" and after)
            assert path.read_bytes() == (b"new" if renamed else b"old")
            assert everything(tmp_path) == ["file"]
            path.write_bytes(b"old")


def test_the_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch):
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        order.append("fsync")
        fsync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    files.write_bytes(tmp_path / "file", b"x")
    assert order == ["fsync", "rename", "fsync"]


def test_the_mode_follows_the_umask(tmp_path: Path):
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            files.write_bytes(tmp_path / "file", b"x")
        finally:
            os.umask(before)
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_parent_that_is_a_file_is_an_output_error(tmp_path: Path):
    """And a folder where a file should be."""
    (tmp_path / "file").write_bytes(b"here")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file/new", tmp_path / "file/deeper/new"):
        for attempt in (files.make_folder, lambda path: files.write_folder(path, lambda _: None)):
            with pytest.raises(OutputError, match=r"cannot write .*file"):
                attempt(path)
    for path in (tmp_path / "file/new", tmp_path / "file/deeper/new", tmp_path / "folder"):
        for attempt in (files.check_writable, lambda path: files.write_bytes(path, b"x")):
            with pytest.raises(OutputError, match=r"cannot write") as caught:
                attempt(path)
            assert caught.value.exit_code == 5
    assert everything(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"here"
    files.check_writable(tmp_path / "new" / "file")
    assert everything(tmp_path) == ["file", "folder"]


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(files, "operation", failing("sync", FULL))
    with pytest.raises(OutputError, match=r"No space left on device. Free some space"):
        files.write_bytes(tmp_path / "file", b"x")
    assert everything(tmp_path) == []


def test_room_is_that_of_the_disk_and_of_the_largest_file(tmp_path: Path, monkeypatch):
    import resource

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1000, resource.RLIM_INFINITY))
    files.check_room(tmp_path / "new" / "folder", 5000, 1000)
    with pytest.raises(OutputError, match=r"of disk, and.*Free some space"):
        files.check_room(tmp_path, 5001, 1000)
    with pytest.raises(OutputError, match="ulimit -f"):
        files.check_room(tmp_path, 5000, 1001)


def test_a_folder_that_another_process_replaces_meanwhile_is_a_folder(tmp_path: Path, monkeypatch):
    folder, is_folder = tmp_path / "folder", Path.is_dir
    folder.mkdir()

    def replace(path: Path) -> bool:
        if path == folder and path.exists():
            folder.rmdir()
        return is_folder(path)

    monkeypatch.setattr(Path, "is_dir", replace)
    files.check_writable(folder / "file")
    assert not folder.exists()


# -- what a killed process left --------------------------------------------------------------------

WRITES = (
    "import os, signal, sys; from pathlib import Path; from diffuse_cli.system import files\n"
    "os.getpid = lambda: 1\n"
    "with files.replace_file(Path(sys.argv[1])) as file:\n"
    "    file.write(b'half'); file.flush(); print('there', flush=True); sys.stdin.read()\n"
)


@contextlib.contextmanager
def writer_of(path: Path):
    """A process that is in the middle of writing a file, which is killed at the end."""
    command = [sys.executable, "-c", WRITES, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(), **pipes) as process:
        try:
            assert process.stdout.readline() == "there\n"
            yield process
        finally:
            process.kill()


def test_what_a_killed_process_left_of_a_file_goes_when_it_is_written_next(tmp_path: Path):
    with writer_of(tmp_path / "file"):
        pass
    [left] = everything(tmp_path)
    assert re.fullmatch(r"\.file\.[0-9a-f]+\.tmp", left)
    mine = [".file.x.tmp", ".other.5.tmp", ".file.5.tmp.png", "file.5.tmp"]
    for name in mine:
        (tmp_path / name).touch()
    files.write_bytes(tmp_path / "file", b"new")
    assert everything(tmp_path) == sorted(["file", *mine])


def test_writers_of_equal_process_numbers_do_not_meet(tmp_path: Path, monkeypatch):
    """As in two containers that share a folder: neither's bytes get under the other's name."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "file"
    with writer_of(path) as theirs:
        [written] = everything(tmp_path)
        files.write_bytes(path, b"new")
        files.remove_leftovers(tmp_path)
        assert everything(tmp_path) == [written, "file"]
        with files.replace_file(path) as mine:
            mine.write(b"mine, and long")
            mine.flush()
            theirs.communicate("")
            assert theirs.returncode == 0
            assert path.read_bytes() == b"half"
        assert path.read_bytes() == b"mine, and long"
    assert everything(tmp_path) == ["file"]


def test_a_file_is_locked_until_it_has_its_name(tmp_path: Path, monkeypatch):
    """Else another process could take it for abandoned, between the last byte and the rename."""
    left = []
    sweep = "import sys; from pathlib import Path; from diffuse_cli.system import files; "
    sweep += "files.remove_leftovers(Path(sys.argv[1]))"

    def look(name: str, path: Path) -> None:
        if name == "rename":
            line = [sys.executable, "-c", sweep, str(tmp_path)]
            subprocess.run(line, env=environment(), check=True)
            left.extend(everything(tmp_path))

    monkeypatch.setattr(files, "operation", seam(look))
    files.write_bytes(tmp_path / "file", b"new")
    assert len(left) == 1


def test_threads_of_one_process_do_not_sweep_each_other(tmp_path: Path, monkeypatch):
    """A process does not notice its own locks. A name that is taken is not written to."""
    names = iter(["aa", "aa", "bb"])
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: next(names))
    with files.replace_file(tmp_path / "file") as first:
        first.write(b"first")
        files.write_bytes(tmp_path / "file", b"second")
        files.remove_leftovers(tmp_path)
        assert len(everything(tmp_path)) == 2
    assert (tmp_path / "file").read_bytes() == b"first"


def test_a_thread_does_not_sweep_a_file_that_another_has_just_made(tmp_path: Path, monkeypatch):
    """It is not locked yet, and the lock would not stop this process."""
    made, real = [], files.io.FileIO

    def make(path: Path, mode: str):
        file = real(path, mode)
        files.remove_leftovers(tmp_path)
        made.append(path.exists())
        return file

    with monkeypatch.context() as patch:
        patch.setattr(files.io, "FileIO", make)
        files.write_bytes(tmp_path / "file", b"new")
    assert made == [True]


def test_without_locks_nothing_is_taken_for_abandoned(tmp_path: Path, monkeypatch):
    import fcntl

    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / ".file.5.tmp").touch()
    monkeypatch.setattr(fcntl, "lockf", refuse)
    files.write_bytes(tmp_path / "file", b"new")
    assert everything(tmp_path) == [".file.5.tmp", "file"]


def test_a_file_that_is_swept_before_it_is_locked_is_made_anew(tmp_path: Path, monkeypatch):
    import fcntl

    lock, swept = fcntl.lockf, []

    def swept_first(*arguments):
        if not swept:
            swept.append(*tmp_path.iterdir())
            swept[0].unlink()
        return lock(*arguments)

    monkeypatch.setattr(fcntl, "lockf", swept_first)
    files.write_bytes(tmp_path / "file", b"new")
    assert len(swept) == 1
    assert everything(tmp_path) == ["file"]


# -- folders --------------------------------------------------------------------------------------


def fill(*names: str):
    def filled(folder: Path) -> None:
        for name in names:
            files.write_text(folder / name, name)

    return filled


def test_a_folder_replaces_the_whole_of_an_earlier_one_when_it_is_full(tmp_path: Path):
    path = tmp_path / "folder"

    def watched(folder: Path) -> None:
        fill("a", "b")(folder)
        assert not path.exists()

    def broken(folder: Path) -> None:
        fill("c")(folder)
        raise Stop

    files.write_folder(path, watched)
    with pytest.raises(Stop):
        files.write_folder(path, broken)
    assert everything(tmp_path) == ["folder", "folder/a", "folder/b"]
    files.write_folder(path, fill("c"))
    assert everything(tmp_path) == ["folder", "folder/c"]


def test_an_error_between_the_renames_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, seen = tmp_path / "folder", []
    files.write_folder(path, fill("a"))

    def fail(name: str, target: Path) -> None:
        if (name, target) == ("rename", path):
            seen.append(path.exists())
            if len(seen) == 2:
                raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(files, "operation", seam(fail))
        with pytest.raises(OutputError, match="Input/output error"):
            files.write_folder(path, fill("b"))
    assert seen[:2] == [True, False]
    assert everything(tmp_path) == ["folder", "folder/a"]


def test_a_folder_that_is_killed_at_any_operation_is_the_old_or_the_new_one(tmp_path: Path):
    path, other, seen = tmp_path / "folder", ".other.5.tmp", set()
    (tmp_path / other).touch()
    for moment in range(100):
        files.write_folder(path, fill("a"))
        if not killed_while(lambda: files.write_folder(path, fill("b")), ends_at(moment)):
            break
        seen.add(path.exists())
        files.remove_leftovers(tmp_path, "folder")
        assert everything(tmp_path)[:2] == [other, "folder"]
        assert everything(tmp_path)[2:] in (["folder/a"], ["folder/b"])
    assert everything(tmp_path) == [other, "folder", "folder/b"]
    assert seen == {True, False}, "it was never stopped between the renames"


def test_sweeping_takes_what_was_left_of_the_names_that_are_owned(tmp_path: Path):
    taken = [".00001.png.5.tmp", ".grid.png.66.old.tmp", ".grid.png.66.before.tmp"]
    stay = [".model.safetensors.5.tmp", ".grid.png.tmp", ".00001.png.x.tmp", "00001.png.5.tmp"]
    for name in (*taken, *stay, "grid.png"):
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path, r"\d+\.png|grid\.png")
    assert everything(tmp_path) == sorted([*stay, "grid.png"])


def test_remove_takes_files_folders_and_nothing(tmp_path: Path):
    fill("a")(tmp_path / "folder")
    fill("b")(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    files.remove(tmp_path / "link")
    assert (tmp_path / "folder/a").exists()
    for name in ("folder", "b", "absent"):
        files.remove(tmp_path / name)
    assert everything(tmp_path) == []


# -- names ----------------------------------------------------------------------------------------


def test_a_path_is_shown_on_one_line():
    assert files.show("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert files.show("Bilder/äöü 7.png") == "Bilder/äöü 7.png"
    assert "\n" not in files.show(os.fsdecode(b"\xff\n"))
    files.show(os.fsdecode(b"\xff")).encode()


def test_sha256_is_that_of_the_bytes(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"abc")
    assert files.sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_damaged_json_is_an_empty_object_and_a_torn_line_is_skipped(tmp_path):
    path = tmp_path / "a"
    assert files.read_json(path) == {}
    for text in ('{"a": 1', "[1]", "\udcff", "[" * 100_000):
        path.write_text(text, errors="surrogateescape")
        assert files.read_json(path) == {}
    path.write_text('{"a": 1}')
    assert files.read_json(path) == {"a": 1}
    path.write_bytes(b'{"a": 1}\n{"a": \n[2]\n\xff\n{"a": 3}')
    assert [*files.read_json_lines(path)] == [{"a": 1}, {"a": 3}]
    assert [*files.read_json_lines(tmp_path / "none")] == []


def test_an_error_has_the_names_that_files_get_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "operation", failing("write", FULL))
    fill = lambda folder: files.write_bytes(folder / "index.html", b"page")  # noqa: E731
    with pytest.raises(OutputError) as caught:
        files.write_folder(tmp_path / "site", fill)
    assert caught.value.message == (
        f"cannot write {tmp_path}/site/index.html: No space left on device"
    )
    assert not list(tmp_path.iterdir())


def test_an_error_keeps_names_that_only_contain_a_temporary_one(tmp_path: Path):
    path = tmp_path / "run.v2.0.tmp" / "a.png"
    message = re.escape(f"cannot write {path}: ")
    with pytest.raises(OutputError, match=message), files.report_errors(path):
        raise OSError(errno.ENOSPC, "full")
