"""What the golden test measures: corpora, command lines run, results and their comparison.

Nothing here imports the package but its command line, so that the inside may change freely.

`fixtures/` is what the code wrote when the results were first recorded, and is not written again:
model files after 20 steps (plain; with classes and a recommended setting; with a learned variance),
a run stopped after 7 of 12 steps, and a network of diffusers filled from a seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import wave
from base64 import b64decode
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: equal bytes need equal threads
os.environ["DIFFUSE_CACHE"] = ""

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from golden_cases import CASES, COMMON, NETWORKS
from PIL import Image
from safetensors.numpy import load_file

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.json"
FIXTURES = HERE / "fixtures"

Measured = dict[str, dict[str, Any]]
"""Tensors, outputs (`images`) and numbers of a case, each by name: arrays, and floats or words."""

Recorded = dict[str, dict[str, Any]]
"""A `Measured` whose arrays are `row`s."""

PASSED_OVER = ("seconds", "size_bytes", "unet", "training", "settings", "model", "made_with")
"""Parts of what `info` and `eval` print that are no results: times, and what was asked for."""

PARTS = ("tensors", "images")
"""Of these there may be no more than were recorded; new numbers may be printed."""

KEYS = 3
"""Projections of each array."""

DRIFT = {"float32": 1e-3, "uint8": 4e-3, "numbers": 1e-3}
"""How far off results may be on other machines: the mean, the size and the projections of an array
by its precision, relative to its size, and a number relative to itself or 1. With AVX2, without any
vector extension, with two threads and on another processor, float32 was off by 9e-5 at most,
numbers by 4e-5, and no image was; one pixel of 8x8 off by one level moves them by 1e-3."""


def machine() -> dict[str, str]:
    """What decides the last bits of the arithmetic."""
    fields = ("vendor_id", "cpu family", "model", "model name")
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        about = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        processor = ", ".join(about.get(name, "") for name in fields)
        return {
            "processor": processor,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        }
    return {"processor": platform.processor()}


# -- corpora: arithmetic alone, so that they are the same everywhere ------------------------------


def write_grey(folder: Path, count: int, seed: int) -> None:
    """Noisy 8x8 gradients, every other one light, in two class folders."""
    draw = np.random.RandomState(seed)
    for k in range(count):
        name = ("dark", "light")[k % 2]
        ramp = np.add.outer(np.arange(8) * (k % 5), np.arange(8) * 4)
        pixels = draw.randint(0, 60, (8, 8)) + ramp + 100 * (k % 2)
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{k:02d}.png")


def write_emoji(folder: Path, count: int = 12, side: int = 24) -> None:
    """Colored discs, squares and triangles with soft edges on nothing, 24x24 RGBA."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    for k in range(count):
        name = ("disc", "square", "triangle")[k % 3]
        distance = {
            "disc": np.hypot(x, y),
            "square": np.maximum(abs(x), abs(y)),
            "triangle": np.maximum(abs(x) * 1.5 - y * 0.5, y),
        }[name]
        alpha = ((5 + k % 5 - distance).clip(0, 1) * 255).astype(np.uint8)
        color = [(80 + 61 * k) % 256, (200 + 37 * k) % 256, (30 + 97 * k) % 256]
        pixels = np.dstack([*(np.full_like(alpha, c) for c in color), alpha])
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{k:02d}.png")


def write_sounds(folder: Path, count: int = 16) -> None:
    """Noisy triangle waves of 512 samples, each as loud as the next, of five pitches."""
    draw = np.random.RandomState(3)
    folder.mkdir()
    for k in range(count):
        triangle = abs(np.arange(512) * (k % 5 + 1) % 64 - 32) * 1000 - 16000
        with wave.open(str(folder / f"{k:02d}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes((triangle + draw.randint(-3000, 3000, 512)).astype("<i2").tobytes())


def write_shards(folder: Path, source: Path, count: int = 2) -> None:
    """The images of class folders, dealt to tar files in turn."""
    folder.mkdir()
    files = sorted(source.rglob("*.png"))
    for k in range(count):
        with tarfile.open(folder / f"part-{k:03d}.tar", "w") as archive:
            for path in files[k::count]:
                info = tarfile.TarInfo(path.relative_to(source).as_posix())
                info.size = path.stat().st_size
                with path.open("rb") as file:
                    archive.addfile(info, file)


def write_parquet(file: Path, source: Path) -> None:
    """The images of class folders in rows, with their classes as a column."""
    files = sorted(source.rglob("*.png"))
    image = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    label = [path.parent.name for path in files]
    pq.write_table(pa.table({"image": image, "label": label}), file, row_group_size=6)


def furnish(folder: Path) -> None:
    """Write what a case reads into a folder."""
    write_grey(folder / "grey", 16, seed=1)
    write_grey(folder / "held", 10, seed=2)
    write_emoji(folder / "emoji")
    write_sounds(folder / "sounds")
    write_shards(folder / "shards", folder / "grey")
    write_parquet(folder / "grey.parquet", folder / "grey")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 3:7] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    for name, text in NETWORKS.items():
        (folder / name).write_text(COMMON + text)
    (folder / "init.toml").write_text(COMMON)
    shutil.copytree(FIXTURES, folder, dirs_exist_ok=True)
    # A run directory, but version control ignores folders that end in .run.
    (folder / "stopped").rename(folder / "stopped.run")


# -- running and measuring -------------------------------------------------------------------------


def run(line: str, twice: Callable[..., str]) -> str:
    """stdout of `diffuse` with these arguments, in this process or by `twice`."""
    arguments = line.split()
    if arguments[0] == "twice":
        return twice(*arguments[1:])
    from diffuse_cli.app import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    assert code == 0, f"{line}\n{err.getvalue()}"
    return out.getvalue()


def by_torchrun(*arguments: str) -> str:
    """stdout of `diffuse` in two processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, *launcher, "-m", "diffuse_cli", *arguments],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def digest(array: np.ndarray[Any, Any]) -> str:
    """The first 16 digits of the SHA-256 of the bytes; the shape and type before them."""
    name = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(name + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def row(name: str, array: np.ndarray[Any, Any]) -> list[Any]:
    """[type and shape, mean, root of the mean square, projections], which any machine agrees on.

    A projection is the sum of the elements, each with a sign keyed by `name`, over the root of
    their number: of the size of the root of the mean square, and another one for any other order.
    """
    wide = array.astype(np.float64).ravel()
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")
    signs = np.random.Generator(np.random.Philox(key=key)).integers(0, 2, (KEYS, wide.size)) * 2 - 1
    found = (wide.mean(), (wide**2).mean() ** 0.5, *(signs @ wide / wide.size**0.5))
    kind = f"{array.dtype} {'x'.join(map(str, array.shape))}"
    return [kind, *(float(f"{value:.5g}") for value in found)]


def rows(found: Measured) -> Recorded:
    """What was measured as it is recorded."""
    arrays = {kind: {name: row(name, a) for name, a in found[kind].items()} for kind in PARTS}
    return {**arrays, "numbers": found["numbers"]}


def fingerprint(found: Measured) -> str:
    """A digest of all that a case gave, to the last bit."""
    values = {k: {name: digest(a) for name, a in found[k].items()} for k in PARTS}
    return summed({**values, "numbers": found["numbers"]})


def summed(values: dict[str, dict[str, Any]]) -> str:
    """A digest of digests and numbers by name."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def leaves(found: Any, at: str = "", but: tuple[str, ...] = ()) -> dict[str, Any]:
    """The numbers and words of a JSON value by their path, without the keys `but`."""
    if isinstance(found, dict):
        pairs = [(f"{at}.{k}".lstrip("."), v) for k, v in found.items() if k not in but]
    elif isinstance(found, list):
        pairs = [(f"{at}.{k}", value) for k, value in enumerate(found)]
    else:
        return {} if found is None else {at: found}
    return {path: leaf for key, value in pairs for path, leaf in leaves(value, key, but).items()}


def numbers(found: Any) -> dict[str, float]:
    """The numbers of a JSON value by their path: measures, and the facts of a model file."""
    every = leaves(found, but=PASSED_OVER)
    return {path: leaf for path, leaf in every.items() if type(leaf) in (int, float)}


class Page(HTMLParser):
    """Text and embedded images of an evaluation page.

    The last section is left out: it has times, versions and the numbers that `--json` prints. So is
    the inside of plots, which is matplotlib's, but not their descriptions.
    """

    INSIDE = re.compile(r'(<svg[^>]*>).*?</svg>|<style>.*?</style>|id="repeat".*', re.DOTALL)

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.images: list[np.ndarray[Any, Any]] = []
        self.feed(self.INSIDE.sub(r"\1", html))

    def handle_data(self, data: str) -> None:
        self.text += data.split()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        self.text += (about.get("alt") or about.get("aria-label") or "").split()
        if tag == "img":
            with Image.open(io.BytesIO(b64decode(about["src"].partition(",")[2]))) as image:
                self.images.append(np.asarray(image).ravel())

    def measured(self) -> tuple[dict[str, np.ndarray[Any, Any]], str]:
        """Arrays by name, and a digest of the words.

        Printed numbers are one array: where one is rounded up on one machine and down on another
        they agree. The numbers that `--json` prints are held one by one.
        """
        number = re.compile(r"\d[\d,]*(?:\.\d+)?")
        text = " ".join(self.text)
        printed = [float(found.replace(",", "")) for found in number.findall(text)]
        words = hashlib.sha256(number.sub("#", text).encode()).hexdigest()[:16]
        arrays = {"numbers": np.float32(printed), "images": np.concatenate(self.images)}
        return arrays, words


def measure(name: str, twice: Callable[..., str] = by_torchrun) -> Measured:
    """Run a case in the working directory, which `furnish` has filled, and measure it.

    These are model files, pictures and sounds in `samples/`, the folder `exported`, an evaluation
    page, and the numbers that lines with `--json` print. `twice` runs `diffuse` in two processes.
    """
    found: Measured = {"tensors": {}, "images": {}, "numbers": {}}
    for line in CASES[name]:
        out = run(line, twice)
        if "--json" in line:
            found["numbers"].update(numbers(json.loads(out)))
    for model in filter(Path.exists, map(Path, ("m.safetensors", "stopped.safetensors"))):
        found["tensors"] = dict(sorted(load_file(model).items()))
    for path in sorted(Path("samples").glob("[0-9]*.png")):
        with Image.open(path) as image:
            found["images"][path.name] = np.asarray(image)
    for path in sorted(Path("samples").glob("[0-9]*.wav")):
        with wave.open(str(path)) as sound:
            levels = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
            found["images"][path.name] = (levels / 2**15).astype(np.float32)
    for path in sorted(Path("exported").rglob("*.safetensors")):
        found["tensors"] |= dict(sorted(load_file(path).items()))
    for path in sorted(Path("exported").rglob("*.json")):
        found["numbers"] |= leaves(json.loads(path.read_text()), path.relative_to("exported").stem)
    for path in filter(Path.exists, [Path("page.html")]):
        arrays, found["numbers"]["page.words"] = Page(path.read_text()).measured()
        found["images"] |= {f"page.{name}": array for name, array in arrays.items()}
    return found


# -- comparing -------------------------------------------------------------------------------------


def differences(expected: Recorded, found: Recorded) -> list[str]:
    """What is not as recorded, beyond `DRIFT`."""
    wrong = [
        f"{kind} {key}: {was} became {found[kind].get(key)}"
        for kind, values in expected.items()
        for key, was in values.items()
        if not _agree(was, found[kind].get(key))
    ]
    new = [f"{kind} {key} is new" for kind in PARTS for key in found[kind].keys() - expected[kind]]
    return wrong + new


def _agree(was: Any, now: Any) -> bool:
    if now is None:
        return False
    if isinstance(was, str):
        return bool(was == now)
    if not isinstance(was, list):
        return bool(abs(was - now) <= DRIFT["numbers"] * max(1, abs(was)))
    (kind, *was), (own, *now) = was, now
    most = DRIFT[kind.partition(" ")[0]] * max(was[1], 1e-6)
    return bool(kind == own and np.abs(np.subtract(was, now)).max() <= most)
