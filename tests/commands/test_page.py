"""Pages that sample in a browser: their files, and whole pages in Chromium."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import shlex
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from browser import Browser, needs_browser
from conftest import mostly_slow
from file_operations import FULL
from PIL import Image
from private_models import POINTWISE, SMALL, SMALLEST, model_of

import diffuse_cli
from diffuse_cli.commands.convert import web_runtime
from diffuse_cli.commands.convert.exporters import page
from diffuse_cli.config.sample_options import SamplerChoice
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.core import NETWORKS, Conditions, Space
from diffuse_cli.core.conditions import ConditioningArray, LabelColumn, MetadataTable, NumberColumn
from diffuse_cli.core.data_gaussian import measure
from diffuse_cli.media.figures import arrange_grid
from diffuse_cli.media.image.label_maps import color_labels
from diffuse_cli.models import model_file
from diffuse_cli.system.events import Notice, finish

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

HOSTILE = "</script><b>a 'cat'"
AGE = NumberColumn(name="age", mean=1.0, deviation=2.0, low=0.0, high=9.0)
SITE = LabelColumn(name=HOSTILE, values=("a", HOSTILE))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as found:
        yield found


# -- the files ------------------------------------------------------------------------------------


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages have something else in place of the network, which takes ten seconds to trace."""
    monkeypatch.setattr(page.onnx, "make_file", lambda found, weights: (b"no network", 0.0))


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like that of the runtime, with other contents, which are expected here."""
    contents = {name: name.encode() for name in web_runtime.HASHES}
    folder = tmp_path / "runtime"
    (folder / "dist").mkdir(parents=True)
    for name, content in contents.items():
        (folder / "dist" / name).write_bytes(content)
    hashes = {name: web_runtime.hashlib.sha256(c).hexdigest() for name, c in contents.items()}
    monkeypatch.setattr(web_runtime, "HASHES", hashes)
    return folder


def save(name: str = "model.safetensors", **parts: Any) -> Path:
    model_file.save(Path(name), model_of(**parts))
    return Path(name)


def test_a_folder_or_one_file_has_everything(diffuse, stored, untraced):
    save(config=SMALL)
    ran = diffuse("convert", "model.safetensors", "out", "--to", "page", "--runtime", stored)
    assert (ran.code, ran.out) == (0, "out\n"), ran.err
    names = {path.name for path in Path("out").iterdir()}
    assert names == {page.INDEX, page.MODEL, page.LICENSE, *web_runtime.HASHES}
    text = (Path("out") / page.INDEX).read_text()
    assert "connect-src 'self'" in text.replace("&#39;", "'")
    for path in Path("out").iterdir():
        assert str(Path(model_file.__file__).parents[2]).encode() not in path.read_bytes()
    line = ("--to", "page", "--runtime", stored, "--single-file", "--overwrite", "--json")
    ran = diffuse("convert", "model.safetensors", "out", *line)
    assert [path.name for path in Path("out").iterdir()] == [page.INDEX]
    assert ran.json["bytes"][page.INDEX] == (Path("out") / page.INDEX).stat().st_size


@pytest.mark.parametrize("linked", [False, True], ids=["folder", "link"])
@pytest.mark.parametrize(("target", "part"), [("page", page.INDEX), ("diffusers", "README.md")])
def test_a_folder_is_replaced_where_a_link_leads_if_convert_wrote_it(
    diffuse, stored, untraced, target, part, linked
):
    save(config=SMALL)
    folder = Path("www" if linked else "site")
    folder.mkdir()
    if linked:
        Path("site").symlink_to("www")
    (folder / part).write_text("mine, made with diffuse")
    line = ("convert", "model.safetensors", "site", "--to", target)
    line += ("--runtime", stored) * (target == "page")
    for more in ((), ("--overwrite",)):
        diffuse(*line, *more, "-q").fails(5, f"site holds {part}, which convert did not write")
    assert (folder / part).read_text() == "mine, made with diffuse"
    (folder / part).unlink()
    for more in ((), ("--overwrite",)):
        ran = diffuse(*line, *more)
        assert (ran.code, ran.out) == (0, "site\n"), ran.err
        assert Path("site").is_symlink() == linked
        assert "diffuse" in (folder / part).read_text()
        (folder / part).write_text((folder / part).read_text() + "stale")
    assert {path.name for path in Path().glob("[!.]*")} >= {"site", folder.name}
    diffuse(*line, "-q").fails(5, "site exists already")
    assert (folder / part).read_text().endswith("stale")
    diffuse(*line, "--overwrite").ok()
    assert "stale" not in (folder / part).read_text()
    assert not [*Path().glob(".*")]


def test_a_page_says_how_to_look_at_it(diffuse, stored, untraced):
    """The command is executed, on a free port."""
    save(config=SMALL)
    line = ("convert", "model.safetensors", "my page", "--to", "page", "--runtime", stored)
    said = diffuse(*line).err
    command = shlex.split(said.partition("`")[2].partition("`")[0])
    assert command[:1] == ["python"], said
    words = [sys.executable, "-u", *command[1:], "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        port = server.stdout.readline().partition(" port ")[2].split()[0]
        with urllib.request.urlopen(f"http://localhost:{port}") as answer:
            assert answer.read() == Path("my page/index.html").read_bytes()
        server.kill()
    said = diffuse(*line, "--single-file", "--overwrite").err
    assert "open 'my page'/index.html in a browser" in said
    assert diffuse(*line, "--overwrite", "-q").err == ""


def test_hostile_names_are_text(diffuse, stored, untraced):
    parts = {"classes": (HOSTILE, "b"), "table": MetadataTable(columns=(AGE, SITE))}
    make_page(diffuse, save(config=SMALL, conditions=Conditions(**parts)), stored)
    text = (Path("out") / page.INDEX).read_text()
    assert HOSTILE not in text
    assert "<b>" not in text


@pytest.mark.parametrize(
    ("cause", "code", "said"),
    [("size", 4, "size = 8x8x8"), ("runtime", 2, ""), ("npm", 2, ""), ("export", 5, "")],
)
def test_a_demo_that_cannot_be_made_replaces_nothing(
    diffuse, stored, untraced, model, monkeypatch, cause, code, said
):
    files = {name: f"old {name}" for name in ("model.safetensors", "README.md", "eval.json")}
    Path("out").mkdir()
    for name, text in files.items():
        (Path("out") / name).write_text(text)
    if cause == "size":
        model = save(config=SMALL, space=Space(channels=1, size=(8, 8, 8), medium="array"))
    Image.new("L", (4, 4)).save("grid.png")
    line = ["push", model, "hf://some/name", "--license", "mit", "--demo", "--samples", "grid.png"]
    if cause == "npm":  # as it is without a network
        fails = subprocess.CalledProcessError(1, "npm")
        monkeypatch.setattr(web_runtime.subprocess, "run", Mock(side_effect=fails))
    else:
        line += ["--runtime", "grid.png" if cause == "runtime" else stored]
    if cause == "export":
        monkeypatch.setattr(page.onnx, "make_file", Mock(side_effect=FULL))
    diffuse(*line, "-o", "out", "--overwrite", "-q").fails(code, said)
    assert {path.name: path.read_text() for path in Path("out").iterdir()} == files


def test_a_runtime_is_checked_by_its_hash(diffuse, stored):
    save(config=SMALL)
    _, binary = web_runtime.FILES[web_runtime.WEBGPU]
    line = ("convert", "model.safetensors", "--to", "page", "-q", "--runtime")
    (stored / "dist" / binary).write_bytes(b"other")
    ran = diffuse(*line, stored).fails(2, f"{binary} is not that of")
    assert "npm pack onnxruntime-web@" in ran.line


def test_npm_is_named_and_asked_twice_at_most(diffuse, monkeypatch):
    """By default, it waits for more than a minute for a network that is not there."""
    fetch = Mock(side_effect=subprocess.CalledProcessError(1, "npm"))
    save(config=SMALL)
    monkeypatch.setattr(web_runtime.shutil, "which", lambda name: name)
    monkeypatch.setattr(web_runtime.subprocess, "run", fetch)
    line = ("convert", "model.safetensors", "--to", "page")
    ran = diffuse(*line)
    assert ran.code == 2
    assert "fetching onnxruntime-web 1.30.0 with npm, for at most 300 s\n" in ran.err
    assert "npm cannot fetch onnxruntime-web" in ran.err
    assert "pass the file with --runtime" in ran.err
    waits = {"npm_config_fetch_retries": "1", "npm_config_fetch_retry_mintimeout": "1000"}
    assert waits.items() <= fetch.call_args.kwargs["env"].items()
    monkeypatch.setattr(web_runtime.shutil, "which", lambda name: None)
    assert "npm is not installed" in diffuse(*line, "-q").line


def test_a_demo_is_pushed_with_the_facts_and_metrics(
    diffuse, stored, untraced, conditional, images
):
    line = ("-n", 6, "--steps", 2, "--metrics", "marginals", "--json")
    Path("eval.json").write_text(diffuse("eval", conditional, images, *line).out)
    push = ("push", conditional, "hf://some/garments", "--license", "cc-by-4.0", "--demo")
    ran = diffuse(*push, "--runtime", stored, "--eval", "eval.json", "-o", "out")
    assert (ran.code, ran.out) == (0, "out\n"), ran.err
    text = Path("out/demo.html").read_text()
    for fact in ("cc-by-4.0", "dark, light", "±", "60"):
        assert fact in text
    assert "hf://some/garments" in text
    assert conditional.name not in text
    assert "[demo.html](demo.html)" in Path("out/README.md").read_text()
    assert diffuse(*push[:-1], "-o", "out", "--overwrite").code == 0
    assert not Path("out/demo.html").exists()


# -- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the runtime. Tests that need it are skipped where npm cannot fetch it."""
    folder = tmp_path_factory.mktemp("npm")
    name = f"{web_runtime.PACKAGE}@{web_runtime.VERSION}"
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    line = ["npm", "pack", "--silent", name]
    if subprocess.run(line, cwd=folder, capture_output=True, timeout=120).returncode:
        pytest.skip("npm cannot fetch the runtime")
    (found,) = folder.glob("*.tgz")
    return found


@pytest.fixture(scope="session")
def runtime(package: Path) -> Path:
    """The folder that is in the package."""
    folder = package.with_suffix("")
    shutil.unpack_archive(package, folder, "gztar", filter="data")
    return folder


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the current folder."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def pointwise(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The network and configuration of models for tests of what is around a network."""
    monkeypatch.setitem(NETWORKS, "pointwise", POINTWISE)
    return {"network": "pointwise", "config": POINTWISE.Config()}


STATE = "document.getElementById('state').textContent"


def generate(browser: Browser, url: str, before: str = "", **controls: Any) -> np.ndarray[Any, Any]:
    """Return samples (N, H, W, 4) that a page generates with these values of its controls.

    Args:
        before: code to run when the model is loaded.
    """
    browser.open(url)
    browser.wait(f"{STATE} === 'Ready.'")
    browser.evaluate(before)
    for name, value in controls.items():
        browser.evaluate(
            f"{{const control = document.getElementById({json.dumps(name)}) "
            f"?? document.querySelector({json.dumps(name)}); control.value = {json.dumps(value)};"
            "control.dispatchEvent(new Event('input', {bubbles: true}))}"
        )
    browser.evaluate("document.getElementById('start').click()")
    browser.wait(f"/samples in|cannot/.test({STATE})", 300)
    assert "samples in" in browser.evaluate(STATE)
    return read_canvases(browser)


def read_canvases(browser: Browser) -> np.ndarray[Any, Any]:
    shown = browser.evaluate(
        "[...document.querySelectorAll('#samples canvas')].map((c) => [c.height, c.width, "
        "...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])"
    )
    return np.stack([np.array(each[2:], np.uint8).reshape(*each[:2], 4) for each in shown])


def read_samples(folder: Path) -> np.ndarray[Any, Any]:
    paths = sorted(folder.glob("[0-9]*.png"))
    return np.stack([np.array(Image.open(path).convert("RGBA")) for path in paths])


def largest_difference(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> int:
    assert one.shape == other.shape
    assert one[..., :3].std() > 5
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def make_page(diffuse: Any, model: Path, runtime: Path, *more: str) -> None:
    line = ("convert", model, "out", "--to", "page", "--runtime", runtime, "-q", "--overwrite")
    diffuse(*line, *more).ok()


@needs_browser
@pytest.mark.parametrize(
    "narrow", mostly_slow([True, False], always=1), ids=lambda n: "narrow" if n else "wide"
)
def test_a_page_generates_what_sample_generates(
    diffuse, tmp_path, package, served, pointwise, narrow
):
    """As a folder on a narrow dark screen, and as one file with a U-Net on a wide one."""
    shape, draw = (1, 3, 16, 16), torch.Generator().manual_seed(0)
    data = torch.randn(9, *shape[1:], generator=draw).cumsum(-1) / 9
    network = pointwise if narrow else {"config": replace(SMALLEST, patch=2)}
    model = model_of(
        **network, space=Space(channels=3, size=(16, 16)),
        gaussian=measure(lambda: [data]), diffusion=DiffusionConfig(target="v"),
    )  # fmt: skip
    weak = {name: 0.8 * tensor for name, tensor in model.ema.items()}
    choice = SamplerChoice("unipc", 5, weak_guidance=2.0, start="gaussian")
    path = Path("model.safetensors")
    model_file.save(path, replace(model, weak=weak, weak_step=1, sampling=choice))
    make_page(diffuse, path, package, *["--single-file"] * (not narrow))
    url = f"{served}/out/" if narrow else (tmp_path / "out/index.html").as_uri()
    with Browser(tmp_path / "profile", 390 if narrow else 1440, dark=narrow) as browser:
        found = generate(browser, url, count=3, seed="11")
        assert browser.errors == []
        assert not browser.scrolls_sideways
        words = browser.evaluate("document.getElementById('command').textContent").split()
        other = generate(browser, url, count=3, seed="11", weak="1")
    assert words[:2] == ["diffuse", "sample"]
    assert diffuse(*words[1:], "-o", "samples", "-q").code == 0
    expected = read_samples(Path("samples"))
    assert largest_difference(found, expected) <= 2
    assert largest_difference(other, expected) > 2


@needs_browser
def test_a_page_has_classes_and_columns(diffuse, browser, runtime, served, pointwise):
    parts = {"classes": (HOSTILE, "b"), "table": MetadataTable(columns=(AGE, SITE))}
    learned = DiffusionConfig(variance="learned", num_timesteps=30)
    model = save(**pointwise, conditions=Conditions(**parts), diffusion=learned)
    make_page(diffuse, model, runtime)
    chosen = {"label": "0", "[data-column='0']": "3.5", "[data-column='1']": "1", "guidance": "2"}
    found = generate(browser, f"{served}/out/", count=2, **chosen)
    assert browser.errors == []
    line = ("-n", 2, "--class", HOSTILE, "--on", "age=3.5", "--on", f"{HOSTILE}={HOSTILE}")
    common = ("sample", model, "-q", "--precision", "fp32")
    assert diffuse(*common, *line, "--guidance", 2, "-o", "samples").code == 0
    assert largest_difference(found, read_samples(Path("samples"))) <= 2
    address, values = browser.evaluate("location.href"), "listShared().map(([, c]) => c.value)"
    shared = browser.evaluate(values)
    assert {"2", "0", "3.5", "1"} <= {*shared}
    found = generate(browser, f"{served}/out/", count=4)
    assert diffuse(*common, "-n", 4, "-o", "all").code == 0
    assert largest_difference(found, read_samples(Path("all"))) <= 2
    browser.open("about:blank")
    browser.open(address)
    assert browser.evaluate(values) == shared
    first = browser.evaluate("document.querySelector('#samples img').src")
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(first.partition(",")[2]))))
    assert diffuse(*common, "-n", 16, "-o", "first").code == 0
    samples = np.moveaxis(read_samples(Path("first"))[..., :3], -1, 1)
    assert largest_difference(picture, np.array(arrange_grid(samples))) <= 1


@pytest.mark.slow
@needs_browser
def test_a_page_uses_webgpu_and_repeats_on_the_processor_what_fails(
    diffuse, tmp_path, runtime, served
):
    config = replace(SMALLEST, attention=(8,))
    model = save(config=config, conditions=Conditions(classes=("a", "b")))
    make_page(diffuse, model, runtime)
    line = ("-n", 2, "--steps", 5, "--guidance", 1, "--precision", "fp32", "-o", "all", "-q")
    assert diffuse("sample", model, *line).code == 0
    chosen = {"count": 2, "sampling": "0", "guidance": "1"}
    with Browser(tmp_path / "profile", gpu=True) as browser:
        browser.open(f"{served}/out/")
        if not browser.evaluate("!!navigator.gpu && navigator.gpu.requestAdapter().then(Boolean)"):
            pytest.skip("this browser has no WebGPU")
        lose = "networks.model.run = () => Promise.reject(Error('lost'))"
        for code, ends, warnings in (("", " on the GPU.", 0), (lose, " seconds.", 1)):
            found = generate(browser, f"{served}/out/", before=code, **chosen)
            assert largest_difference(found, read_samples(Path("all"))) <= 2
            assert browser.evaluate(STATE).endswith(ends)
            assert len(browser.errors) == warnings


@needs_browser
def test_a_page_has_the_sampler_of_distilled_models(diffuse, browser, runtime, served, pointwise):
    distilled = {"teacher": "0" * 64}
    model = save(**pointwise, diffusion=DiffusionConfig(target="x0"), distilled=distilled)
    make_page(diffuse, model, runtime)
    found = generate(browser, f"{served}/out/", count=2)
    assert diffuse("sample", model, "-n", 2, "-q", "--precision", "fp32").code == 0
    assert largest_difference(found, read_samples(Path("samples"))) <= 2
    assert browser.errors == []


def test_a_condition_that_was_never_dropped_is_required(diffuse, stored, untraced):
    """A model without an unconditional prediction has no guidance."""
    table = model_of(config=SMALL, conditions=Conditions(table=MetadataTable(columns=(AGE,))))
    classes = model_of(conditions=Conditions(classes=("a", "b")))
    for dropout, scale in ((0.1, 2.0), (0, None)):
        training = {"label_dropout": dropout}
        assert page.describe_sampling(replace(classes, training=training))["guidance"] == scale
        model_file.save(Path("model.safetensors"), replace(table, training=training))
        make_page(diffuse, Path("model.safetensors"), stored)
        tags = Path("out/index.html").read_text().split("<")
        (field,) = [tag for tag in tags if "placeholder=" in tag and tag.startswith("input")]
        assert ("required" in field) == (dropout == 0)


def test_a_model_without_a_sampler_of_the_page_keeps_its_steps():
    model = model_of(config=SMALL)
    for choice, title in (
        (SamplerChoice("ddpm", 7), "unipc, 7 steps"), (SamplerChoice("ddim", 9), "ddim, 9 steps"),
    ):  # fmt: skip
        found = page.describe_sampling(replace(model, sampling=choice))
        assert found["samplings"][found["chosen"]]["title"] == title
    off = replace(model, weak=model.ema, weak_step=1, sampling=SamplerChoice("ddim", 9, None, 1.0))
    assert page.describe_sampling(off)["weak"] is None
    noted = list[Notice]()

    def first_setting():
        found = page.describe_sampling(model_file.load("model.safetensors"))
        return found["samplings"][found["chosen"]]

    model_file.save(Path("model.safetensors"), replace(model, sampling=SamplerChoice("ddpm", 7)))
    first = finish(
        page.draw_first(finish(model_file.find("model.safetensors")), "ema", first_setting()),
        noted.append,
    )
    assert "the page has no ddpm, which is recommended, but unipc" in str(noted)
    model_file.save(Path("model.safetensors"), replace(model, sampling=SamplerChoice("unipc", 7)))
    assert first == finish(
        page.draw_first(finish(model_file.find("model.safetensors")), "ema", first_setting())
    )
    short = model_of(
        diffusion=DiffusionConfig(num_timesteps=12),
        gaussian=measure(lambda: [torch.randn(9, 3, 8, 8)]),
    )
    steps = [each["steps"] for each in page.describe_sampling(short)["samplings"]]
    assert steps == 2 * [5, 10, 12]


SPACES = {
    "array": Space(channels=2, size=(8, 12), medium="array", levels=None, mean=(0, 3), std=(1, 2)),
    "sound": Space(
        channels=1, size=(64,), medium="audio", levels=None, mean=(0,), std=(0.2,), rate=8000
    ),
    "16 bits": Space(channels=1, size=(8, 8), levels=65536),
    "stack": Space(channels=3, size=(8, 8), layout="pages"),
    "alpha": Space(channels=4, size=(8, 8), layout="alpha:ffffff"),
    "color": Space(channels=3, size=(8, 8)),
    "limits": Space(channels=3, size=(8, 8), levels=65536, limits=(9000, 40000)),
}


@needs_browser
@pytest.mark.parametrize("name", mostly_slow([*SPACES][:5]))
def test_a_page_shows_samples_of_every_medium(diffuse, browser, runtime, served, pointwise, name):
    space = SPACES[name]
    make_page(diffuse, save(**pointwise, space=space), runtime)
    found = generate(browser, f"{served}/out/", count=2)
    panels = space.channels if space.medium == "array" or space.layout == "pages" else 1
    assert found.shape[2] == panels * space.size[-1]
    values = np.array(browser.evaluate("Array.from(shown)"), np.float32)
    loaded = diffuse_cli.load("model.safetensors")
    samples = loaded.sample(2, seed=0, precision="fp32").arrays
    stored = space.to_stored(torch.from_numpy(values).reshape(2, *space.shape)).numpy()
    most = 1e-3 * float(np.std(samples)) if space.levels is None else 2 * space.levels / 256
    assert np.abs(stored.astype(float) - samples.astype(float)).max() <= most
    if space.rate:
        browser.click("#samples canvas")
    assert browser.errors == []


def open_photo(browser: Browser) -> None:
    """Open input.png as the conditioning image, and keep the files that the page offers."""
    browser.evaluate(
        "(async () => { photo = await createImageBitmap(await (await fetch('/input.png')).blob()); "
        "showInput(); })()"
    )
    browser.evaluate(
        "{const make = URL.createObjectURL.bind(URL), known = window.blobs = {};"
        "URL.createObjectURL = (b) => { const url = make(b); known[url] = b; return url; }}"
    )


def generate_and_save(browser: Browser, *names: str) -> None:
    """Generate two samples, and write files that the page offers."""
    browser.wait(f"{STATE} === 'Ready.'")
    browser.evaluate("document.getElementById('count').value = 2")
    browser.evaluate("document.getElementById('start').click()")
    browser.wait(f"/samples in|cannot/.test({STATE})")
    for name in names:
        browser.wait(f"document.getElementById('save-{name}').href")
        code = f"blobs[document.getElementById('save-{name}').href].arrayBuffer()"
        levels = browser.evaluate(f"{code}.then((b) => Array.from(new Uint8Array(b)))")
        Path(f"{name}.png").write_bytes(bytes(levels))


@needs_browser
@pytest.mark.parametrize("name", mostly_slow(["color", "16 bits", "limits"], always=1))
def test_a_page_fills_a_hidden_part_of_an_image(diffuse, browser, runtime, served, pointwise, name):
    space = SPACES[name]
    given = ConditioningArray(channels=space.channels, what="mask")
    model = save(**pointwise, conditions=Conditions(given=given), space=space)
    make_page(diffuse, model, runtime)
    size = space.size
    levels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(levels if space.channels == 3 else levels[..., 0]).save("input.png")
    browser.open(f"{served}/out/")
    open_photo(browser)
    browser.click("#given", 0.25, 0.25)
    hidden = np.array(browser.evaluate("Array.from(hidden)"), np.uint8).reshape(size)
    assert 0 < hidden.sum() < hidden.size
    generate_and_save(browser, "input", "mask")
    assert np.array_equal(np.array(Image.open("mask.png").convert("L")), 255 * hidden)
    line = ("-n", 2, "--given", "input.png", "--mask", "mask.png", "--precision", "fp32", "-q")
    assert diffuse("sample", model, *line, "-o", "samples").code == 0
    if space.levels == 256:
        assert largest_difference(read_canvases(browser), read_samples(Path("samples"))) <= 2
    values = np.array(browser.evaluate("Array.from(shown)"), np.float32)
    stored = space.to_stored(torch.from_numpy(values).reshape(2, *space.shape)).numpy()
    samples = diffuse_cli.load(model).sample(
        2, given="input.png", mask="mask.png", precision="fp32"
    ).arrays  # fmt: skip
    difference = np.abs(stored.astype(float) - samples.astype(float)).max()
    assert difference <= 2 * space.bins / 256
    assert samples.std() > space.bins / 50
    assert browser.errors == []


@needs_browser
def test_a_page_paints_a_label_map_that_sample_reads(diffuse, browser, runtime, served, pointwise):
    """The labels of a map of the user, here evenly spread, and the last label around a corner."""
    given = ConditioningArray(channels=3, labels=(0, 1, 5), names=("a", HOSTILE, "c"))
    model = save(**pointwise, conditions=Conditions(given=given), space=SPACES["color"])
    make_page(diffuse, model, runtime)
    maps = np.random.default_rng(0).integers(0, 3, (8, 8), np.uint8)
    maps[:4] = 0
    Image.fromarray(maps * np.uint8(127)).save("input.png")
    browser.open(f"{served}/out/")
    open_photo(browser)
    browser.evaluate("document.getElementById('paint').value = 2")
    browser.click("#given", 0.25, 0.25)
    generate_and_save(browser, "input")
    labels = np.array(Image.open("input.png").convert("L"))
    changed = labels != np.array([0, 1, 5])[maps]
    assert changed.any()
    assert (labels[changed] == 5).all()
    assert not changed[4:].any()
    pixels = "document.getElementById('given').getContext('2d').getImageData(0, 0, 8, 8).data"
    colors = np.array(browser.evaluate(f"Array.from({pixels})")).reshape(8, 8, 4)[..., :3]
    assert np.array_equal(colors.transpose(2, 0, 1), color_labels(labels[None, None])[0])
    line = ("-n", 2, "--given", "input.png", "--precision", "fp32", "-q", "-o", "samples")
    assert diffuse("sample", model, *line).code == 0
    assert largest_difference(read_canvases(browser), read_samples(Path("samples"))) <= 2
    assert browser.errors == []


@needs_browser
def test_a_folder_opened_as_a_file_says_that_it_needs_a_server(
    diffuse, browser, stored, untraced, tmp_path
):
    make_page(diffuse, save(config=SMALL), stored)
    browser.open((tmp_path / "out/index.html").as_uri())
    browser.wait(f"{STATE} !== 'Loading the model.'")
    assert "python -m http.server" in browser.evaluate(STATE)
