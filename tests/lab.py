"""Tiny data sets, models of every kind and runs, made once for all tests and all workers."""

from __future__ import annotations

import csv
import hashlib
import io
import pickle
import re
import shlex
import wave
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps

ROOT = Path(__file__).parents[1]
QUICK = ROOT / "tests/training/quick.toml"

COUNT = 80
"""Samples of a data set, of which some are held out."""

BASE = """\
batch_size = {batch}
precision = "fp32"
lr = {lr}
warmup = {warmup}
num_timesteps = {timesteps}
preview_every = 100000
keep_raw = true
"""

LEARNS = BASE.format(batch=8, lr=0.002, warmup=5, timesteps=100)
ONE_OF_A_KIND = BASE.format(batch=4, lr=0.001, warmup=0, timesteps=1000) + "ema_lengths = 4\n"

UNET = """\
[unet]
width = 8
multipliers = [1]
blocks = 1
attention = []
groups = 4
"""

VIT = """\
[vit]
patch = 4
width = 8
depth = 1
head_width = 8
context = 0
"""

TRANSFORMER = """\
[vit]
patch = 4
width = 16
depth = 3
head_width = 8
context = 2
dropout = 0.3
"""

RECIPES = {
    "tiny": LEARNS + UNET.replace("[]", "[8]"),
    "transformer": LEARNS + TRANSFORMER,
    "kind-unet": ONE_OF_A_KIND + UNET,
    "kind-vit": ONE_OF_A_KIND + VIT,
}
"""Settings of networks that train in a second."""


def soft(channels: int, top: float, *size: int, seed: int = 10) -> np.ndarray:
    """Soft numbers from 0 to `top`, (COUNT, channels, *size)."""
    draw = np.random.default_rng(seed)
    values = draw.normal(0.5, 0.05, (COUNT, channels, *size))
    values += draw.uniform(-0.3, 0.3, (COUNT, channels, *[1] * len(size)))
    return values.clip(0, 1) * top


def pictures(folder: Path, values: np.ndarray, suffix: str = ".png") -> None:
    """Write each as an image, every other one in another class."""
    for k, image in enumerate(values):
        path = folder / ("dark", "light")[k % 2] / f"{k:02d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = np.moveaxis(image, 0, -1)
        Image.fromarray(whole[..., 0] if len(image) == 1 else whole).save(path)


def write_images(folder: Path, count: int = 60, seed: int = 38, side: int = 8) -> Path:
    """Grey images, every other one light, in two class folders."""
    draw = np.random.default_rng(seed)
    for k in range(count):
        path = folder / ("dark", "light")[k % 2] / f"{k:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw.normal((80, 170)[k % 2], 25, (side, side)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def write_grey(folder: Path) -> None:
    """Images of two classes with a table of a number and a label."""
    values = soft(1, 255, 8, 8).astype(np.uint8)
    pictures(folder, values)
    rows = [
        (f"{('dark', 'light')[k % 2]}/{k:02d}.png", float(image.mean()), "ab"[k // 2 % 2])
        for k, image in enumerate(values)
    ]
    write_rows(folder, [("file_name", "level", "side"), *rows])


def write_shades(folder: Path) -> None:
    """Images whose brightness is their level, and whose left or right half is darker by 40."""
    folder.mkdir()
    draw, rows = np.random.default_rng(3), []
    for k in range(200):
        level, side = draw.uniform(60, 220), ("left", "right")[k % 2]
        pixels = draw.normal(level, 3, (8, 8))
        pixels[:, :4] -= 40 * (side == "left")
        pixels[:, 4:] -= 40 * (side == "right")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{k:03d}.png")
        rows.append((f"{k:03d}.png", "" if k % 20 == 3 else f"{level:.3f}", side))
    write_rows(folder, [("file_name", "level", "side"), *rows])


def write_rows(folder: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write the rows of a folder's table, of which the first has the names."""
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_beside(folder: Path) -> None:
    """The negatives of the images of `write_grey`."""
    pictures(folder, 255 - soft(1, 255, 8, 8).astype(np.uint8))


def write_vectors(path: Path) -> None:
    """A vector for each of the images of `write_grey`, by its name: its brightness, and noise."""
    draw, values = np.random.default_rng(5), soft(1, 255, 8, 8).astype(np.uint8)
    names = [f"{('dark', 'light')[k % 2]}/{k:02d}" for k in range(COUNT)]
    vectors = {n: [v.mean(), *draw.normal(size=2)] for n, v in zip(names, values, strict=True)}
    np.savez(path, **vectors)


def write_negatives(folder: Path) -> None:
    """The negative of each of the images, under its name."""
    for path in write_images(folder).rglob("*.png"):
        ImageOps.invert(Image.open(path)).save(path)


def write_maps(folder: Path) -> None:
    """Label maps of the images: where each is dark, medium and light."""
    for path in write_images(folder).rglob("*.png"):
        Image.fromarray(np.digitize(Image.open(path), [90, 160]).astype(np.uint8)).save(path)


def write_wrongly_named_maps(folder: Path) -> None:
    """The same with a table that is not one of labels and names."""
    write_maps(folder)
    (folder / "labels.csv").write_text("label;name\n")


def write_named_maps(folder: Path) -> None:
    """Label maps of the images of `write_grey`, with names of labels."""
    pictures(folder, np.digitize(soft(1, 255, 8, 8), [100, 140]).astype(np.uint8))
    (folder / "labels.csv").write_text("value,name\n0,ground\n1,wood\n2,sky\n")


def draw_regions(count: int = 60) -> np.ndarray:
    """Labels 0, 1 and 2 in two boxes of 32x32 pixels, (count, 32, 32)."""
    draw, maps = np.random.default_rng(5), np.zeros((count, 32, 32), np.uint8)
    for labels in maps:
        for label in (1, 2):
            top, left, height, width = draw.integers((0, 0, 8, 8), (20, 20, 17, 17))
            labels[top : top + height, left : left + width] = label
    return maps


def write_regions(folder: Path) -> None:
    """Images whose grey level is 40, 120 or 220 where `draw_regions` has label 0, 1 or 2."""
    maps = draw_regions()
    noise = np.random.default_rng(6).normal(0, 3, maps.shape)
    levels = np.array([40, 120, 220])[maps] + noise
    pictures(folder, levels.clip(0, 255).astype(np.uint8)[:, None])


def write_region_maps(folder: Path) -> None:
    """The label maps of these images."""
    pictures(folder, draw_regions()[:, None])


def write_clear(folder: Path) -> None:
    """Colored images with transparency."""
    pictures(folder, soft(4, 255, 8, 8).astype(np.uint8))


def write_deep(folder: Path) -> None:
    """Grey images of 16 bits."""
    pictures(folder, soft(1, 65_535, 8, 8).astype(np.uint16))


def write_pages(folder: Path) -> None:
    """TIFFs of three pages."""
    folder.mkdir()
    for k, image in enumerate(soft(3, 255, 8, 8).astype(np.uint8)):
        first, *others = map(Image.fromarray, image)
        first.save(folder / f"{k:02d}.tiff", save_all=True, append_images=others)


DEGREES = np.linspace(-70, 70, 8)


def soft_fields() -> np.ndarray:
    """Return two variables at 30 times."""
    return soft(2, 40, 8, 8).swapaxes(0, 1).astype(np.float32)


def write_fields(folder: Path) -> None:
    """Arrays of two channels of floats."""
    folder.mkdir()
    for k, field in enumerate(soft(2, 40, 8, 8).astype(np.float32)):
        np.save(folder / f"{k:02d}.npy", field)


def write_netcdf(
    path: Path,
    fields: np.ndarray,
    latitudes: np.ndarray,
    longitudes: np.ndarray,
    *,
    rows: Sequence[int] | slice = slice(None),
    columns: Sequence[int] | slice = slice(None),
    axes: Sequence[int] = (0, 1, 2),
    names: Sequence[str] = ("time", "lat", "lon"),
    units: bool = True,
    members: int = 0,
    scale: float = 0,
    format: str = "NETCDF4",
    kind: str = "f4",
) -> Path:
    """Write t2m and pr, (variables, times, rows, columns), with rows and columns in some order."""
    import netCDF4

    with netCDF4.Dataset(path, "w", format=format) as dataset:
        coordinates = (np.arange(fields.shape[1]), latitudes[rows], longitudes)
        kinds = ("hours since 2000-01-01", "degrees_north", "degrees_east")
        for name, values, unit in zip(names, coordinates, kinds, strict=True):
            dataset.createDimension(name, None if name == "time" else len(values))
            if units:
                variable = dataset.createVariable(name, "f4", (name,))
                variable.units, variable[:] = unit, values
        dims = tuple(names[k] for k in axes)
        if members:
            dataset.createDimension("member", members)
            dims = ("member", *dims)
        for name, unit, values in zip(("t2m", "pr"), ("K", "mm day-1"), fields, strict=False):
            packing = {"fill_value": -9999} if scale else {}
            dtype = np.dtype("i2" if scale else kind)
            order = {"endian": "big"} if dtype.str[0] == ">" else {}
            variable = dataset.createVariable(name, dtype, dims, **packing, **order)
            variable.units = unit
            if scale:
                variable.scale_factor, variable.add_offset = scale, 280.0
            stored = values[:, rows][:, :, columns].transpose(axes)
            variable[:] = stored.reshape(members, -1, *stored.shape[1:]) if members else stored
    return path


PATIENT, LITTLE_ENDIAN = "Marked^Patient", "1.2.840.10008.1.2.1"
TEXTS = {"AE", "AS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}


def dicom(
    values: np.ndarray, names: str = PATIENT, syntax: str = LITTLE_ENDIAN, **elements: Any
) -> bytes:
    """Return a DICOM file with a text in every element that is a text."""
    import pydicom
    from pydicom.datadict import DicomDictionary
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    file = FileDataset("x.dcm", {}, file_meta=meta, preamble=bytes(128))
    for tag, (kind, *_, keyword) in DicomDictionary.items():
        if kind in TEXTS and keyword and 0x0008_0000 <= tag < 0x7000_0000:
            file.add_new(tag, kind, names[:16])
    file.Rows, file.Columns = values.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 8 * values.dtype.itemsize
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(values.dtype.kind == "i")
    file.add_new("PixelData", "OW", values.tobytes())
    for name, value in elements.items():
        setattr(file, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file)
    return buffer.getvalue()


def write_sounds(folder: Path) -> None:
    """Sounds of 256 samples: those of models are a multiple of that."""
    folder.mkdir()
    for k, sound in enumerate(soft(1, 2**15, 256)):
        with wave.open(str(folder / f"{k:02d}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes((sound[0] - 2**14).astype("<i2").tobytes())


def write_masks(folder: Path) -> None:
    """Masks of 8x8 images, of which some are of no use."""
    folder.mkdir()
    hole = np.zeros((8, 8), np.uint8)
    hole[2:6, 3:7] = 255
    clear = np.dstack([hole // 2, 0 * hole])
    for name, values in (
        ("hole", hole), ("black", 0 * hole), ("white", 0 * hole + 255), ("small", hole[:4, :4]),
        ("wide", hole[:4]), ("clear", clear),
    ):  # fmt: skip
        Image.fromarray(values).save(folder / f"{name}.png")


def write_rubbish(folder: Path) -> None:
    """Files that are named as images."""
    folder.mkdir()
    (folder / "a.png").write_text("no picture")
    (folder / "b.png").touch()


def write_package(site: Path, name: str, points: str, modules: Mapping[str, str] = {}) -> None:
    """Write an installed package: its modules by file name, and its entry points."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)
    for file, code in modules.items():
        (site / file).write_text(code)


def write_pipeline(folder: Path) -> None:
    """A pipeline of diffusers, of a U-Net of color images."""
    from private_models import model_of

    from diffuse_cli.commands.convert.exporters import export
    from diffuse_cli.config.exchange_options import ConvertConfig
    from diffuse_cli.models import model_file
    from diffuse_cli.system.events import finish

    model = folder.with_suffix(".safetensors")
    model_file.save(model, model_of())
    finish(export(ConvertConfig(source=str(model), out=str(folder), to="diffusers")))


DATA: dict[str, Callable[[Path], object]] = {
    "images": write_images,
    "negatives": write_negatives,
    "maps": write_maps,
    "named-maps": write_named_maps,
    "wrongly-named-maps": write_wrongly_named_maps,
    "regions": write_regions,
    "region-maps": write_region_maps,
    "shades": write_shades,
    "empty": Path.mkdir,
    "one": lambda path: write_images(path, 1),
    "masks": write_masks,
    "text.txt": lambda path: path.write_text("no picture\n"),
    "text.safetensors": lambda path: path.write_text("no model\n"),
    "unclear.npy": lambda path: np.save(path, np.zeros((4, 9, 3))),
    "fields.nc": lambda path: write_netcdf(path, soft_fields(), DEGREES, DEGREES),
    "gaps.nc": lambda path: write_netcdf(
        path, np.ma.masked_greater(soft_fields()[:1], 0), DEGREES, DEGREES
    ),
    "cut.nc": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)),
    "nan.npy": lambda path: np.save(path, np.full((2, 8, 8), np.nan)),
    "text.png": lambda path: path.write_text("no picture\n"),
    "model.pkl": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "broken.zip": lambda path: path.write_bytes(b"PK\5\6" + b"\xff" * 16 + b"\0\0"),
    "broken.toml": lambda path: path.write_text("steps = = 3\n"),
    "key.toml": lambda path: path.write_text("stepps = 3\n"),
    "type.toml": lambda path: path.write_text('steps = "many"\n'),
    "layer.toml": lambda path: path.write_text("[unet]\nwidht = 8\n"),
    "dropout.toml": lambda path: path.write_text("given_dropout = 0.3\n"),
    "wider.toml": lambda path: path.write_text("[unet]\nwidth = 16\nmultipliers = [1, 2]\n"),
    "betas.txt": lambda path: path.write_text("0.001\n0.25\n0.5\n"),
    "spent.txt": lambda path: path.write_text("1 0.5\n"),
    "rubbish": write_rubbish,
    "pipeline": write_pipeline,
    "grey": write_grey,
    "beside": write_beside,
    "vectors.npz": write_vectors,
    "some.npz": lambda path: np.savez(path, names=["dark/00.png"], vectors=[[1.0, 2, 3]]),
    "text.npz": lambda path: path.write_text("no vectors\n"),
    "uneven.npz": lambda path: np.savez(path, a=np.ones(2), b=np.ones(3)),
    "unnamed.npz": lambda path: np.savez(path, names=["a"], vectors=np.ones((2, 3))),
    "words.npy": lambda path: np.save(path, [["a", "b", "c"]]),
    "two.npy": lambda path: np.save(path, np.eye(2, 3)),
    "long.npy": lambda path: np.save(path, np.ones((2, 4))),
    "same.npy": lambda path: np.save(path, np.ones((COUNT, 3))),
    "gaps.npy": lambda path: np.save(path, np.full((COUNT, 3), np.nan)),
    "rows.npy": lambda path: np.save(path, soft(1, 1, 8, 8)),
    "clear": write_clear,
    "deep": write_deep,
    "pages": write_pages,
    "fields": write_fields,
    "sounds": write_sounds,
}


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        options: of `train`, or of `distill` where there is a teacher.
        data: what it is trained on, one of `DATA`.
        beside: what lies beside that: images, or a file of vectors.
        teacher: the kind that it is distilled from.
        recipe: the settings, one of `RECIPES`.
    """

    options: tuple[Any, ...] = ()
    data: str = "grey"
    beside: str = ""
    teacher: str = ""
    recipe: str = "kind-unet"


KINDS: dict[str, Kind] = {
    "unconditional": Kind(),
    "classes": Kind(("--classes", "--augment", "flip,rotate")),
    "table": Kind(("--condition-on", "level,side")),
    "vectors": Kind(beside="vectors.npz"),
    "pairs": Kind(("--augment", "shift,zoom"), beside="beside"),
    "labels": Kind(("--augment", "rotate,zoom"), beside="named-maps"),
    "degraded": Kind(("--given", "low-res:2", "--augment", "color")),
    "learned-variance": Kind(("--variance", "learned")),
    "distilled": Kind(teacher="unconditional"),
    "flow": Kind(("--schedule", "flow", "--target", "flow")),
    "alpha": Kind(("--alpha",), "clear"),
    "16-bits": Kind(data="deep"),
    "array": Kind(("--augment", "flip,shift"), "fields"),
    "sound": Kind(("--augment", "gain,shift"), "sounds"),
    "stack": Kind(("--layout", "pages"), "pages"),
    "vit": Kind(("--target", "v"), recipe="kind-vit"),
    "keep-weak": Kind(("--keep-weak",)),
}


class Lab:
    """Makes data, models and runs when a test first asks for them, and keeps them.

    Do not write there.

    Attributes:
        folder: the folder that all workers share.
        run: what runs a command line.
    """

    def __init__(self, folder: Path, run: Callable[[Sequence[Any]], int]) -> None:
        self.folder, self.run = folder, run

    def __getitem__(self, name: str) -> Path:
        """Return a data set, a recipe, or the model of a kind."""
        if name in DATA:
            return self.data(name)
        return self.recipe(name) if name in RECIPES else self.model(name)

    def line(self, text: str) -> list[str]:
        """Return the words of a command line in which {name} is an entry of the lab."""
        words = shlex.split(text)
        return [re.sub(r"\{(.+?)\}", lambda name: str(self[name[1]]), word) for word in words]

    @property
    def tiny(self) -> tuple[Any, ...]:
        """A command line that trains the tiny network on the images."""
        return ("train", self["images"], "--config", self["tiny"])

    @property
    def quick(self) -> tuple[Any, ...]:
        """The same with the quickest network, where nothing depends on which."""
        return ("train", self["images"], "--config", QUICK)

    def data(self, name: str) -> Path:
        """Return the folder of a data set."""
        return self._make(self.folder / "data" / name, DATA[name])

    def sample(self, name: str, k: int = 0) -> Path:
        """Return the k-th file of a data set."""
        files = (path for path in self.data(name).rglob("*") if path.suffix not in ("", ".csv"))
        return sorted(files)[k]

    def recipe(self, name: str) -> Path:
        """Return a TOML file of settings."""
        path = self.folder / "recipes" / f"{name}.toml"
        return self._make(path, lambda new: new.write_text(RECIPES[name]))

    def beside(self, kind: Kind) -> tuple[Any, ...]:
        """Return the option that names what lies beside the data of a kind."""
        flag = "--condition-on" if kind.beside.endswith(".npz") else "--given"
        return (flag, self.data(kind.beside)) if kind.beside else ()

    def model(self, name: str) -> Path:
        """Return the model file of a kind, with its run directory beside it."""
        kind = KINDS[name]
        if kind.teacher:
            line = ("distill", self.model(kind.teacher), self.data(kind.data))
            return self.trained(*line, "--precision", "fp32", *kind.options, "--steps", 4)
        line = ("train", self.data(kind.data), "--config", self.recipe(kind.recipe))
        return self.trained(*line, *self.beside(kind), *kind.options, "--steps", 4)

    def trained(self, *line: Any) -> Path:
        """Return the model file of a command line, `train` or `distill`, without its -o."""
        name = hashlib.sha256("\n".join(map(str, line)).encode()).hexdigest()[:12]
        model = self.folder / "models" / name / "model.safetensors"

        def run(_: Path) -> None:
            assert self.run([*line, "-o", model, "-q"]) == 0

        return self._make(model, run)

    def _make(self, path: Path, make: Callable[[Path], object]) -> Path:
        """Make a file or folder unless it is there. Others wait for it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{path.parent.name}-{path.name}.lock"):
            if not path.exists():
                make(path)
        return path
