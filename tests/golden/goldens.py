"""What the golden test measures: corpora, command lines run, results and their comparison.

Nothing here imports the package but its command line, so that the inside may change freely, and
`benchmarks/same_bits.py` can run another version.

`fixtures/` is what the code wrote when the results were first recorded, and is not written again:
model files after 20 steps (plain; with classes and a recommended setting; with a learned variance),
and a network of diffusers filled from a seed.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import wave
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: equal bytes need equal threads
os.environ["DIFFUSE_CACHE"] = ""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from golden_cases import CASES, COMMON, NETWORKS
from PIL import Image
from safetensors.numpy import load_file

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.json"
FIXTURES = HERE / "fixtures"

PASSED_OVER = ("seconds", "size_bytes", "unet", "training", "settings", "model", "made_with")
"""Parts of what `info` and `eval` print that are no results: times, and what was asked for."""

PARTS = ("tensors", "images")
"""Of these there may be no more than were recorded; new numbers may be printed."""

KEYS, ROW = 3, 6
"""Projections of each array, and the columns of a row."""

DRIFT, IMAGE_DRIFT, LEAST = 1e-3, 4e-3, 1e-6
"""How far off results may be on other machines: the mean, the size and the projections of an array
relative to its size, which is at least `LEAST`, and a number relative to itself or 1. With AVX2,
without any vector extension, with two threads and on another processor, float32 was off by 9e-5 at
most, numbers by 4e-5, and no image was; one pixel of 8x8 off by one level moves them by 1e-3."""


# -- corpora: arithmetic alone, so that they are the same everywhere ------------------------------


def write_grey(folder, count, seed):
    """Noisy 8x8 gradients, every other one light, in two class folders."""
    draw = np.random.RandomState(seed)
    for k in range(count):
        name = ("dark", "light")[k % 2]
        ramp = np.add.outer(np.arange(8) * (k % 5), np.arange(8) * 4)
        pixels = draw.randint(0, 60, (8, 8)) + ramp + 100 * (k % 2)
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{k:02d}.png")


def write_emoji(folder, count=12, side=24):
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


def write_sounds(folder, count=16):
    """Noisy triangle waves of 512 samples, each as loud as the next, of five pitches."""
    draw = np.random.RandomState(3)
    folder.mkdir()
    for k in range(count):
        triangle = abs(np.arange(512) * (k % 5 + 1) % 64 - 32) * 1000 - 16000
        with wave.open(str(folder / f"{k:02d}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes((triangle + draw.randint(-3000, 3000, 512)).astype("<i2").tobytes())


def write_fields(folder, count=12):
    """Float arrays of two channels of 8x8, of which the second has large and small values."""
    draw = np.random.RandomState(4)
    folder.mkdir()
    for k in range(count):
        field = draw.standard_normal((2, 8, 8)) + np.arange(8) * (k % 3) / 4
        field[1] *= 2.0 ** np.round(3 * field[1])
        np.save(folder / f"{k:02d}.npy", field.astype(np.float32))


def write_volumes(folder, count=8):
    """Float arrays of 4x8x8 that become lighter along one axis."""
    draw = np.random.RandomState(5)
    folder.mkdir()
    for k in range(count):
        volume = draw.standard_normal((4, 8, 8)) + np.arange(8) * (k % 3)
        np.save(folder / f"{k:02d}.npy", volume.astype(np.float32))


def write_table(folder):
    """A column of numbers and one of labels of the images in a folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [f"{name},{20 + k % 7},{('north', 'south')[k % 3 % 2]}" for k, name in enumerate(names)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,age,site", *rows]) + "\n")


def write_shards(folder, source, count=2):
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


def write_parquet(file, source):
    """The images of class folders in rows, with their classes as a column."""
    files = sorted(source.rglob("*.png"))
    image = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    label = [path.parent.name for path in files]
    pq.write_table(pa.table({"image": image, "label": label}), file, row_group_size=6)


def furnish(folder):
    """Write what a case reads into a folder."""
    write_grey(folder / "grey", 16, seed=1)
    write_grey(folder / "held", 10, seed=2)
    write_grey(folder / "many", 48, seed=6)
    write_table(folder / "many")
    write_emoji(folder / "emoji")
    write_sounds(folder / "sounds")
    write_fields(folder / "fields")
    write_volumes(folder / "volumes")
    write_shards(folder / "shards", folder / "grey")
    write_parquet(folder / "grey.parquet", folder / "grey")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 3:7] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    for name, text in NETWORKS.items():
        (folder / name).write_text(COMMON + text)
        (folder / f"default-{name}").write_text(text)
    (folder / "init.toml").write_text(COMMON)
    shutil.copytree(FIXTURES, folder, dirs_exist_ok=True)


# -- running and measuring -------------------------------------------------------------------------


def run(line, twice):
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


def by_torchrun(*arguments):
    """stdout of `diffuse` in two processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ran = subprocess.run(
        [sys.executable, *launcher, "-m", "diffuse_cli", *arguments],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def row(name, array):
    """[type and shape, mean, root of the mean square, projections], which any machine agrees on.

    A projection is the sum of the elements, each with a sign keyed by `name`, over the root of
    their number: of the size of the root of the mean square, and another one for any other order.
    """
    wide = array.astype(np.float64).ravel()
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")
    signs = np.random.Generator(np.random.Philox(key=key)).integers(0, 2, (KEYS, wide.size)) * 2 - 1
    values = (wide.mean(), (wide**2).mean() ** 0.5, *(signs @ wide / wide.size**0.5))
    kind = f"{array.dtype} {'x'.join(map(str, array.shape))}"
    return [kind, *(float(f"{value:.5g}") for value in values)]


def block_row(name, tensors):
    """A row of several tensors: of the logarithm of the size of each, and of its mean and
    projections relative to its size, so that a small tensor counts as much as a large one.

    Names, types and shapes are in the first column.
    """
    rows = {key: row(key, tensor) for key, tensor in tensors.items()}
    parts = []
    for _, mean, size, *projections in rows.values():
        size = max(size, LEAST)
        parts.append([math.log(size), mean / size, *(value / size for value in projections)])
    kinds = json.dumps({key: kind for key, (kind, *_) in rows.items()})
    label = f"{len(rows)} tensors {hashlib.sha256(kinds.encode()).hexdigest()[:8]}"
    return [label, *row(name, np.array(parts))[1:]]


def block_name(tensor):
    """The name of a tensor to its first number, or without its last part."""
    numbered = re.match(r".*?\.\d+(?=\.)", tensor)
    return numbered[0] if numbered else tensor.rpartition(".")[0] or tensor


def grouped(values, group):
    """Values by name, in the groups of their names, in order."""
    groups = {}
    for name, value in values.items():
        groups.setdefault(group(name), {})[name] = value
    return groups


def list_name(path):
    """The path of a number without the index of a list, the name of a class and the ending of a
    standard error."""
    path = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)
    return re.sub(r"(?<=classes\.)[^.]+", "*", path).removesuffix("_standard_error")


def list_row(path, values):
    """One value, a few numbers, the row of more numbers, or words in a line."""
    if len(values) == 1:
        return values[0]
    if any(type(value) not in (int, float) for value in values):
        return ", ".join(map(str, values))
    return values if len(values) < ROW else row(path, np.array(values, np.float64))


def rows(measured):
    """What was measured as it is recorded: a row for each block of tensors, each output and each
    list of numbers."""
    blocks = grouped(measured["tensors"], block_name)
    lists = grouped(measured["numbers"], list_name)
    return {
        "tensors": {k: block_row(k, tensors) for k, tensors in blocks.items()},
        "images": {name: row(name, array) for name, array in measured["images"].items()},
        "numbers": {k: list_row(k, [*values.values()]) for k, values in lists.items()},
    }


def hashes(measured):
    """The SHA-256 of the bytes of each tensor and output, with type and shape before them, and of
    the digits of each number."""
    named = {f"{part} {name}": each for part in measured for name, each in measured[part].items()}
    found = {}
    for name, each in named.items():
        array = isinstance(each, np.ndarray)
        kind = f"{each.dtype}{each.shape}" if array else ""
        content = np.ascontiguousarray(each).tobytes() if array else json.dumps(each).encode()
        found[name] = hashlib.sha256(kind.encode() + content).hexdigest()
    return found


def leaves(found, at="", but=()):
    """The numbers and words of a JSON value by their path, without the keys `but`."""
    if isinstance(found, dict):
        pairs = [(f"{at}.{k}".lstrip("."), v) for k, v in found.items() if k not in but]
    elif isinstance(found, list):
        pairs = [(f"{at}.{k}", value) for k, value in enumerate(found)]
    else:
        return {} if found is None else {at: found}
    return {path: leaf for key, value in pairs for path, leaf in leaves(value, key, but).items()}


def numbers(found):
    """The numbers of a JSON value by their path: measures, and the facts of a model file."""
    every = leaves(found, but=PASSED_OVER)
    return {path: leaf for path, leaf in every.items() if type(leaf) in (int, float)}


class Page(HTMLParser):
    """Printed numbers and embedded images of an evaluation page.

    The last section is left out: it has times, versions and the numbers that `--json` prints. So is
    the inside of plots, which is matplotlib's, but not their descriptions. Printed numbers are one
    array: where one is rounded up on one machine and down on another they agree.
    """

    INSIDE = re.compile(r'(<svg[^>]*>).*?</svg>|<style>.*?</style>|id="repeat".*', re.DOTALL)

    def __init__(self, html):
        super().__init__()
        self.text = []
        self.images = []
        self.feed(self.INSIDE.sub(r"\1", html))

    def handle_data(self, data):
        self.text += data.split()

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        self.text += (about.get("alt") or about.get("aria-label") or "").split()
        if tag == "img":
            content = io.BytesIO(b64decode(about["src"].partition(",")[2]))
            self.images.append(np.asarray(Image.open(content)).ravel())

    def arrays(self):
        """Numbers and images by name."""
        printed = re.findall(r"\d[\d,]*(?:\.\d+)?", " ".join(self.text))
        numbers = [float(number.replace(",", "")) for number in printed]
        return {"page.numbers": np.float32(numbers), "page.images": np.concatenate(self.images)}


def measure(name, twice=by_torchrun):
    """Run a case in the working directory, which `furnish` has filled.

    Return the tensors, outputs (`images`) and numbers, each by name: of model files, of `samples/`,
    of the folder `exported`, of an evaluation page, and of lines with `--json`. `twice` runs
    `diffuse` in two processes.
    """
    measured = {"tensors": {}, "images": {}, "numbers": {}}
    for line in CASES[name]:
        out = run(line, twice)
        if "--json" in line:
            measured["numbers"] |= numbers(json.loads(out))
    if (model := Path("m.safetensors")).exists():
        measured["tensors"] = dict(sorted(load_file(model).items()))
    for path in sorted(Path("samples").glob("[0-9]*")):
        measured["images"][path.name] = READERS[path.suffix](path)
    for path in sorted(Path("exported").rglob("*.safetensors")):
        measured["tensors"] |= dict(sorted(load_file(path).items()))
    for path in sorted(Path("exported").rglob("*.json")):
        stem = path.relative_to("exported").stem
        measured["numbers"] |= leaves(json.loads(path.read_text()), stem)
    if Path("page.html").exists():
        measured["images"] |= Page(Path("page.html").read_text()).arrays()
    return measured


def read_sound(path):
    """Read the levels of a sound, from -1 to 1."""
    with wave.open(str(path)) as sound:
        levels = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
        return (levels / 2**15).astype(np.float32)


READERS = {".png": lambda path: np.asarray(Image.open(path)), ".wav": read_sound, ".npy": np.load}


# -- comparing -------------------------------------------------------------------------------------


def differences(expected, measured):
    """What is not as recorded, beyond `DRIFT`."""
    wrong = [
        f"{part} {key}: {was} became {measured[part].get(key)}"
        for part, values in expected.items()
        for key, was in values.items()
        if not _agree(was, measured[part].get(key))
    ]
    new = [
        f"{part} {key} is new"
        for part in PARTS
        for key in measured[part].keys() - expected.get(part, {}).keys()
    ]
    return wrong + new


def _agree(was, now):
    if isinstance(was, list) and isinstance(now, list) and isinstance(was[0], str):
        (kind, *was), (other, *now) = was, now
        most = (IMAGE_DRIFT if kind.startswith("uint8") else DRIFT) * max(was[1], LEAST)
        return bool(kind == other and np.abs(np.subtract(was, now)).max() <= most)
    if isinstance(was, list) and isinstance(now, list):
        return len(was) == len(now) and all(map(_agree, was, now))
    if type(was) in (int, float) and type(now) in (int, float):
        return bool(abs(was - now) <= DRIFT * max(1, abs(was)))
    return bool(was == now)
