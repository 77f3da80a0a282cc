"""Write files. No other module does, except for locks and the index of images.

Every file appears whole or not at all. It is written to a temporary file in the same folder, synced
and renamed. Then the folder is synced, so that the rename survives a power cut. A folder is renamed
before its files are removed. A killed process leaves `.NAME.RANDOM.tmp`. The next write of NAME
removes it, unless a living writer still holds a lock on it. Tests stop the process in `operation`,
which wraps each operation on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffuse_cli.system.errors import OutputError, UsageError
from diffuse_cli.system.memory import format_bytes, read_limit

CACHE = "DIFFUSE_CACHE"
"""Environment variable of the cache folder. If it is empty, there is no cache."""


def cache_folder() -> Path | None:
    """Return `DIFFUSE_CACHE`, else `diffuse` in the user's cache folder, None without a cache."""
    if (chosen := os.environ.get(CACHE)) is not None:
        return Path(chosen) if chosen else None
    user = Path(os.environ.get("XDG_CACHE_HOME", ""))  # XDG ignores relative paths
    with contextlib.suppress(RuntimeError):  # no home is known
        return (user if user.is_absolute() else Path.home() / ".cache") / "diffuse"
    return None


@contextlib.contextmanager
def operation(name: str, path: Path) -> Iterator[None]:
    """Wrap an operation on the disk. Tests replace this function."""
    yield


@contextlib.contextmanager
def report_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` about writing `path` into an `OutputError`.

    It has the names that temporary files and folders get at the end.
    """
    try:
        yield
    except OSError as error:
        path = Path(*(_TEMPORARY.sub(r"\1", part) for part in path.parts))
        reason = os.strerror(error.errno) if error.errno else str(error)
        code = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        text, hint = f"cannot write {show(path)}: {reason}", "Free some space" if code else ""
        raise OutputError(text, hint, code=code, path=path) from error


def show(path: Path | str | bytes, max_length: int | None = None) -> str:
    """Return up to `max_length` characters of a path or name, with unprintable ones escaped."""
    text = os.fsdecode(path)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text[:max_length]


def shorten(value: object, max_length: int = 200) -> str:
    """Return the text of a file or a library on one line of at most `max_length` characters."""
    return show(" ".join(str(value).split()), max_length)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable, on systems that can open a folder."""
    with operation("sync-folder", folder):
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except (PermissionError, IsADirectoryError):
            return
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_BEFORE = ".before"

_TEMPORARY = re.compile(rf"\A\.(.+)\.[0-9a-f]+(\.old|{re.escape(_BEFORE)})?\.tmp\Z")
"""Pattern of temporary names: of files being written, being removed or about to be replaced."""

_OWN: set[Path] = set()
"""Temporary files of this process, which would not notice its own locks."""


def _temporary(path: Path, kind: str = "") -> Path:
    """Return a random temporary name, because process numbers repeat in containers."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{kind}.tmp")


class _Writer(io.BufferedWriter):
    """A new file, which is removed at the end unless it is renamed."""

    def __init__(self, path: Path) -> None:
        _OWN.add(path)  # before another thread can see it
        super().__init__(io.FileIO(path, "x"))
        self.path = path

    def write(self, data: Any) -> int:
        with operation("write", self.path):
            return super().write(data)

    def discard(self) -> None:
        """Close the file, and remove it if it has not been renamed."""
        with contextlib.suppress(OSError):
            self.close()
        with contextlib.suppress(OSError):
            self.path.unlink()
        _OWN.discard(self.path)


def _open_temporary(target: Path, stack: contextlib.ExitStack) -> _Writer:
    """Open a temporary file next to `target`, locked while it is open, which `stack` discards."""
    while True:
        path = _temporary(target).absolute()
        with contextlib.suppress(FileExistsError), operation("open", path):
            file = _Writer(path)
            stack.callback(file.discard)
            locked = _lock(file.fileno()) is not False
            # Another process may have removed it before it was locked.
            if locked and path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[io.BufferedWriter]:
    """Yield a binary file that replaces `path` when the block ends without an error.

    Raises:
        OutputError: the folder cannot be made or the file cannot be written.
    """
    with report_errors(path), contextlib.ExitStack() as stack:
        if not path.parent.is_dir():
            make_folder(path.parent)
        for leftover in _leftovers(path.parent.absolute()):
            name = _TEMPORARY.fullmatch(leftover.name)
            if name and name[1] == path.name and not name[2]:
                _remove_abandoned(leftover)
        file = _open_temporary(path, stack)
        yield file
        with operation("sync", file.path):
            file.flush()
            os.fsync(file.fileno())
        if os.name != "posix":  # on Windows an open file cannot be renamed, and it is not locked
            file.close()
        rename(file.path, path)
        sync_folder(path.parent)


@functools.cache
def _leftovers(folder: Path) -> tuple[Path, ...]:
    """Return the temporary files in a folder when this process first writes there.

    The result is cached, because listing a large folder for every file is slow.
    """
    with contextlib.suppress(OSError):
        return tuple(p for p in folder.iterdir() if _TEMPORARY.fullmatch(p.name))
    return ()


def _remove_abandoned(path: Path) -> None:
    """Remove a file if the process that wrote it is gone, here or on another machine."""
    if path.absolute() not in _OWN:
        with contextlib.suppress(OSError), path.open("r+b") as file:
            if _lock(file.fileno()):
                remove(path)


def _lock(descriptor: int) -> bool | None:
    """Lock a file until this process ends.

    Returns False if another process holds the lock, and None if the system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN) else None
    return True


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`."""
    with replace_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, in UTF-8, with the bytes of names that are not UTF-8."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as `as_json`."""
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """Return a value as indented JSON with sorted keys."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def append_line(path: Path, line: str) -> None:
    """Add one line to a log. A kill may cut it."""
    with report_errors(path), operation("append", path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, an empty one if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a log. Other lines, such as a line that a kill has cut, are skipped."""
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                if isinstance(value := json.loads(line), dict):
                    yield value


def make_folder(path: Path) -> None:
    """Make `path` and its parents."""
    check_local(path)
    with report_errors(path), operation("mkdir", path):
        path.mkdir(parents=True, exist_ok=True)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Replace the folder `path`, whole or not at all, by the folder that `fill` writes.

    The previous folder is removed last. Between the two renames it has another name, under which
    `remove_leftovers` finds it. The caller holds a lock, because folders are not locked.
    """
    temporary, before = _temporary(path), _temporary(path, _BEFORE)
    with report_errors(path):
        try:
            make_folder(temporary)
            fill(temporary)
            sync_folder(temporary)
            if os.path.lexists(path):
                with operation("rename", path):
                    path.rename(before)
            rename(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            with contextlib.suppress(OSError):
                _restore(before, path)
            raise
        remove(before)


def rename(path: Path, target: Path) -> None:
    """Rename a file or a folder. A file replaces `target`."""
    with report_errors(target), operation("rename", target):
        path.replace(target)


def _restore(before: Path, path: Path) -> bool:
    """Restore a folder that was about to be replaced, unless `path` exists again."""
    exists = before.name.endswith(f"{_BEFORE}.tmp") and os.path.lexists(before)
    if free := exists and not os.path.lexists(path):
        rename(before, path)
    return free


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists."""
    with report_errors(path):
        if path.is_symlink() or not path.is_dir():
            if os.path.lexists(path):
                with operation("remove", path):
                    path.unlink(missing_ok=True)
            return
        doomed = _removal_path(path)
        if doomed != path:
            shutil.rmtree(doomed, ignore_errors=True)
            with operation("rename", path):
                path.rename(doomed)
        with operation("remove", doomed):
            shutil.rmtree(doomed)


def _removal_path(path: Path) -> Path:
    """Return the name of a folder while its files are removed."""
    if not _TEMPORARY.fullmatch(path.name):
        return _temporary(path, ".old")
    return path.with_name(path.name.replace(f"{_BEFORE}.tmp", ".old.tmp"))


def remove_leftovers(folder: Path, owned: str = ".+") -> None:
    """Remove temporary files and folders that killed processes left in a folder.

    Folders that were about to be replaced are restored. The caller holds the lock of the names that
    it owns, so that no other process writes temporary folders of these names.

    Args:
        owned: a regular expression of the names that the caller owns.
    """
    with report_errors(folder):
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            parts = _TEMPORARY.fullmatch(path.name)
            if not parts or not re.fullmatch(owned, parts[1]):
                continue
            if _restore(path, folder / parts[1]):
                continue
            (remove if path.is_symlink() or path.is_dir() else _remove_abandoned)(path)


def check_room(folder: Path, total: int, largest: int) -> None:
    """Refuse files that will not fit on the disk.

    Args:
        total: the number of bytes to write into `folder`.
        largest: the number of bytes of the largest file.

    Raises:
        OutputError: the disk has less space, or the limit on the size of a file is less.
    """
    with contextlib.suppress(OSError):  # the system does not say
        if total > (free := shutil.disk_usage(_existing_parent(folder)).free):
            text = f"needs {format_bytes(total)} of disk, and {format_bytes(free)} are free"
            hint = "Free some space, or choose another -o"
            raise OutputError(f"{show(folder)} {text}", hint, code="disk_full", path=folder)
    limit = read_limit("RLIMIT_FSIZE")
    if limit is not None and largest > limit:
        text = f"needs a file of {format_bytes(largest)}, and the limit is {format_bytes(limit)}"
        raise OutputError(f"{show(folder)} {text}", "Raise the limit with `ulimit -f`", path=folder)


def free_space(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet, 0 if unknown."""
    try:
        return shutil.disk_usage(_existing_parent(folder)).free
    except OSError:
        return 0


def _existing_parent(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def check_local(path: Path) -> None:
    """Raise a `UsageError` for a name on the Hugging Face Hub, where only `diffuse push` writes."""
    if path.parts[:1] == ("hf:",):
        where = re.sub("^hf:/+", "hf://", show(path))
        text = f"cannot write {where}: it is on the Hub"
        raise UsageError(text, "To publish, use diffuse push", code="output_unsuited", path=where)


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written.

    Raises:
        OutputError: it is a folder, a parent is a file, or its folder refuses new files.
        UsageError: see `check_local`.
    """
    check_local(path)
    folder = _existing_parent(path.parent)
    if not folder.is_dir() and folder.exists():  # else another process has just renamed it
        raise OutputError(f"cannot write {show(path)}: {show(folder)} is not a folder", path=path)
    if path.is_dir():
        raise OutputError(f"cannot write {show(path)}: it is a folder", path=path)
    with report_errors(path), tempfile.TemporaryFile(dir=_existing_parent(path.parent)):
        pass


def measure_size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder, 0 if it does not exist."""
    paths = path.rglob("*") if path.is_dir() else [path]
    return sum(p.stat().st_size for p in paths if p.is_file())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
