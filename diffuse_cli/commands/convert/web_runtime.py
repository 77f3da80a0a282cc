"""The files of onnxruntime-web, which run a network in a browser."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, product
from pathlib import Path
from typing import IO, cast

from diffuse_cli.system import UsageError, files
from diffuse_cli.system.descriptors import open_regular_file

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"

WASM, WEBGPU = "wasm", "webgpu"

FILES: Mapping[str, tuple[str, str]] = {
    WASM: ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    WEBGPU: ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
"""Script and binary of each execution provider."""

HASHES: Mapping[str, str] = {
    FILES[WASM][0]: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    FILES[WASM][1]: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    FILES[WEBGPU][0]: "0730816731ce2cdfb06f273da065d4a1c7091eb9d1756a83b2916c8a89d015e2",
    FILES[WEBGPU][1]: "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
"""SHA-256 of each file in the package's folder `dist`."""

WITHIN = 300
"""Seconds after which npm has no answer."""

QUICKLY = {
    "npm_config_fetch_retries": "1",
    "npm_config_fetch_retry_mintimeout": "1000",
    "npm_config_fetch_retry_maxtimeout": "1000",
}
"""Environment of npm to try twice within a second: by default it waits a minute for a network."""

FETCHING = f"fetching {PACKAGE} {VERSION} with npm, for at most {WITHIN} s"

HINT = f"On a machine with npm: npm pack {PACKAGE}@{VERSION}, then pass the file with --runtime"


def check_available(option: str, given: str | None) -> None:
    """Refuse an option without the package and without npm.

    Raises:
        UsageError
    """
    if given is None and shutil.which("npm") is None:
        text = f"{option} needs {PACKAGE}, and npm is not installed"
        raise UsageError(text, HINT, code="package_missing")


def read_runtime(given: str | None, providers: Iterable[str] = FILES) -> dict[str, bytes]:
    """Return the files of execution providers by name, from a package or its folder, or by npm.

    Raises:
        UsageError: npm fails, or a file is missing or of another version.
    """
    if given is not None:
        return _read_package(Path(given), providers)
    with tempfile.TemporaryDirectory(prefix="diffuse-runtime-") as folder:
        line, env = ["npm", "pack", "-s", f"{PACKAGE}@{VERSION}"], {**os.environ, **QUICKLY}
        try:
            subprocess.run(
                line, cwd=folder, env=env, check=True, capture_output=True, timeout=WITHIN
            )
        except (OSError, subprocess.SubprocessError) as error:
            text = f"npm cannot fetch {PACKAGE} {VERSION}"
            raise UsageError(text, HINT, code="hub_failed") from error
        return _read_package(next(Path(folder).glob("*.tgz")), providers)


def _read_package(path: Path, providers: Iterable[str]) -> dict[str, bytes]:
    """Return the files of a .tgz or of its folder, each with the expected hash."""
    names = [*chain.from_iterable(map(FILES.__getitem__, providers))]
    contents: dict[str, bytes] = {}
    try:
        with suppress(*DAMAGED):  # then a file is missing
            contents.update(_read_files(path, names))
    except ValueError as error:
        text = f"--runtime {files.show(path)}: {error}"
        raise UsageError(text, HINT, code="invalid_value", path=path) from error
    for name in names:
        if name not in contents:
            text = f"--runtime {files.show(path)} has no dist/{name}"
            raise UsageError(text, HINT, code="invalid_value", path=path)
        if hashlib.sha256(contents[name]).hexdigest() != HASHES[name]:
            text = f"{files.show(path)}: {name} is not that of {PACKAGE} {VERSION}"
            raise UsageError(text, HINT, code="invalid_value", option="--runtime", path=path)
    return contents


DAMAGED = (OSError, EOFError, zlib.error, tarfile.TarError)
"""Errors of a package that is damaged."""


def _read_files(path: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the files of `dist` that are there, in one pass over a .tgz.

    Raises:
        ValueError: the package is not a regular file.
    """
    if path.is_dir():
        for folder, name in product((path, path / "dist", path / "package" / "dist"), names):
            if (folder / name).is_file():
                yield name, (folder / name).read_bytes()
        return
    with open_regular_file(path) as file, tarfile.open(fileobj=file) as package:
        for member in package:
            inside, _, name = member.name.rpartition("/")
            if inside == "package/dist" and name in names and member.isfile():
                yield name, cast(IO[bytes], package.extractfile(member)).read()
