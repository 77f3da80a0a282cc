"""The documentation says what the program says."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import traceback
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import do_less, log_rows
from lab import ROOT
from PIL import Image

from diffuse_cli.commands import COMMANDS
from diffuse_cli.config.presets import PRESETS
from diffuse_cli.core import NETWORKS, Conditions
from diffuse_cli.media import MEDIA
from diffuse_cli.media.image.image_metadata import FORMATS
from diffuse_cli.models import model_header, tensor_file
from diffuse_cli.training.cost_estimate import EXPECTED

THEORY = ROOT / "docs" / "theory.md"
TEXT = THEORY.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PROSE = BLOCK.sub("", TEXT)
IMAGES = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PROSE)
LINKS = re.findall(r"(?<!!)\[([^\]]+)\]\(([^)]+)\)", PROSE)
NAMED = sorted({(text.strip("`"), path) for text, path in LINKS if text.startswith("`")})
"""Functions and classes are named as [`module.name`](path of the module)."""


def script(name: str) -> Any:
    """A script of docs/ as a module."""
    name = f"docs/{name}"  # site.py is not the module `site`
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # for its dataclasses
    spec.loader.exec_module(module)
    return module


@cache
def rendered() -> str:
    """The help of every command, as the program gives it."""
    return script("render_cli").render()  # type: ignore[no-any-return]


def test_cli_page_is_the_programs_own_help():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == rendered(), "run: python docs/render_cli.py"


def test_the_man_page_is_the_programs_own_help_and_is_well_formed():
    page = ROOT / "docs" / "diffuse.1"
    assert page.read_text(encoding="utf-8") == script("render_cli").manual(), (
        "run: python docs/render_cli.py"
    )
    for checker in (["mandoc", "-Tlint"], ["man", "-l", "--warnings", "-E", "UTF-8"]):
        if shutil.which(checker[0]):
            ran = subprocess.run([*checker, page], capture_output=True, text=True, check=False)
            assert (ran.returncode, ran.stderr) == (0, "")
            assert checker[0] == "man" or ran.stdout == ""


def test_tables_of_numbers_are_what_metrics_say():
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert page == script("render_numbers").render(page), "run: python docs/render_numbers.py"


def test_types_of_the_python_interface_are_the_options_of_the_commands():
    module = ROOT / "diffuse_cli" / "api" / "keywords.py"
    text = script("render_options").render()
    assert module.read_text(encoding="utf-8") == text, "run: python docs/render_options.py"


# -- the theory -----------------------------------------------------------------------------------


@cache
def defined(path: Path) -> set[str]:
    """The functions and classes of a module."""
    return {n.name for n in ast.parse(path.read_text()).body if hasattr(n, "name")}


def find(name: str, path: Path) -> Any:
    """What `module.name` of a file is; of a test, that it is defined there."""
    stem, *parts = name.split(".")
    assert stem == path.stem, f"{name} is not in {path.name}"
    if path.is_relative_to(ROOT / "tests"):
        assert parts[0] in defined(path), f"{path.name} has no {parts[0]}"
        return None
    module = path.relative_to(ROOT).with_suffix("")
    found: Any = importlib.import_module(".".join(module.parts))
    for part in parts:
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(("name", "path"), NAMED, ids=[name for name, _ in NAMED])
def test_theory_names_what_exists(name: str, path: str):
    find(name, (THEORY.parent / path).resolve())


@pytest.mark.parametrize(("name", "path"), [
    ("process.Process.rewind", "diffuse_cli/core/process.py"),
    ("process.clip", "diffuse_cli/core/process.py"),
    ("guidance.clip", "diffuse_cli/core/process.py"),
    ("test_process.test_nothing", "tests/core/test_process.py"),
])  # fmt: skip
def test_a_name_that_does_not_exist_is_found_out(name: str, path: str):
    with pytest.raises((AssertionError, AttributeError)):
        find(name, ROOT / path)


def test_theory_names_no_function_without_its_link():
    modules = {path.stem for path in (ROOT / "diffuse_cli" / "core").glob("*.py")}
    bare = re.findall(r"(?<!\[)`(\w+)\.\w[\w.]*`", PROSE)
    assert not modules & set(bare)


def test_theory_walks_through_the_whole_core():
    assert len(LINKS) > 80
    linked = {(THEORY.parent / target).resolve() for _, target in LINKS}
    core = {path for path in (ROOT / "diffuse_cli" / "core").glob("*.py") if path.stem[0] != "_"}
    assert core <= linked, sorted(path.name for path in core - linked)


@pytest.mark.parametrize("path", [THEORY, *THEORY.parent.glob("*/*.md")], ids=lambda p: p.stem)
def test_a_page_names_options_of_the_program(path: Path):
    named = re.findall(r"`[^`\n]*`", path.read_text(encoding="utf-8"))
    flags = {flag for text in named if "benchmarks/" not in text
             for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)}  # fmt: skip
    assert len(flags) > 5 or path != THEORY
    assert not {flag for flag in flags if not re.search(rf"{flag}\b(?!-)", rendered())}


@pytest.mark.parametrize("path", IMAGES)
def test_theory_shows_images_that_exist(path: str):
    with Image.open(THEORY.parent / path) as image:
        image.verify()


def run_block(block: re.Match[str], path: Path, names: dict[str, Any]) -> None:
    """Run a block of a page; its line in the page is the line of an error."""
    lines_before = block.string.count("\n", 0, block.start(1))
    try:
        exec(compile("\n" * lines_before + block[1], str(path), "exec"), names)
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[1]
        pytest.fail(f"{path.name}:{line.lineno}: {line.line}\n{error!r}", pytrace=False)


def test_the_python_of_the_theory_holds():
    names: dict[str, Any] = {"__name__": "theory"}
    blocks = list(BLOCK.finditer(TEXT))
    assert len(blocks) > 20
    for block in blocks:
        assert "assert " in block[1], block[1]
        run_block(block, THEORY, names)


# -- from Python -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of examples with a tenth of the images."""
    folder = tmp_path_factory.mktemp("root") / "examples"
    folder.mkdir()
    for path in (ROOT / "examples").glob("*.py"):
        (folder / path.name).symlink_to(path)
    for path in sorted((ROOT / "examples").glob("*.zip")):
        with zipfile.ZipFile(path) as all_, zipfile.ZipFile(folder / path.name, "w") as some:
            for name in sorted(n for n in all_.namelist() if n.endswith((".png", ".webp")))[::10]:
                some.writestr(name, all_.read(name))
    return folder


@pytest.fixture
def beside_examples(tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the examples in it, where trainings draw quick previews and the preset
    tiny is tinier."""
    monkeypatch.chdir(tmp_path)
    do_less(monkeypatch)
    monkeypatch.setattr(NETWORKS, "entries", dict(NETWORKS.entries))
    settings = {"width": 8, "multipliers": (1,), "blocks": 1, "attention": ()}
    small = dataclasses.replace(PRESETS["tiny"], settings=settings)
    monkeypatch.setitem(PRESETS.entries, "tiny", small)
    (tmp_path / "examples").symlink_to(few)
    return tmp_path


def test_the_python_of_the_python_page_runs(beside_examples: Path):
    names: dict[str, Any] = {"__name__": "python"}
    for block in BLOCK.findall((ROOT / "docs" / "python.md").read_text(encoding="utf-8")):
        exec(compile(block, "docs/python.md", "exec", dont_inherit=True), names)
    assert (beside_examples / "plain.safetensors").exists()
    assert names["images"].shape == (4, 1, 28, 28)  # of the core library


def test_the_notebook_runs(beside_examples: Path):
    """Its cells, one after the other, without a kernel."""
    notebook = json.loads((ROOT / "examples" / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells:
        exec(compile(cell, "examples/notebook.ipynb", "exec", dont_inherit=True), names)
    assert not any(cell.get("outputs") for cell in notebook["cells"])


# -- the bibliography -----------------------------------------------------------------------------

BIBLIOGRAPHY = ROOT / "docs" / "bibliography.md"
KEYS = re.findall(r"^\| ([^|\n]+ \d{4}[a-z]?) \|", BIBLIOGRAPHY.read_text("utf-8"), re.MULTILINE)
CITING = [
    *(ROOT / "diffuse_cli").rglob("*.py"),
    *({*(ROOT / "docs").rglob("*.md")} - {BIBLIOGRAPHY}),
    ROOT / "README.md",
]
NAME = r"[^\W\d_a-z][\w'-]+"
CITATION = re.compile(rf"{NAME} (?:et al\.|& {NAME}),? \(?\d{{4}}[a-z]?")


def joined(text: str) -> str:
    """The text in one line, without the marks of comments, quotes and literals at line breaks."""
    return re.sub(r"""["#>\s]*\n["#>\s]*""", " ", text)


def test_every_citation_is_in_the_bibliography():
    found = {
        key: path for path in CITING for key in CITATION.findall(joined(path.read_text("utf-8")))
    }
    assert len(found) > 40
    assert {key: path.name for key, path in found.items() if key not in KEYS} == {}


def test_no_author_is_cited_without_a_year():
    for path in CITING:
        text = joined(path.read_text("utf-8"))
        assert re.findall(r".{20}et al\b(?!\. \d{4})", text) == [], path.name


def test_every_key_of_the_bibliography_is_cited_and_means_one_paper():
    text = joined("".join(path.read_text("utf-8") for path in CITING))
    assert len(KEYS) == len(set(KEYS))
    assert [key for key in KEYS if not re.search(rf"{key}\b", text)] == []
    shared = {key[:-1] for key in KEYS if key[-1].isalpha()}
    assert shared
    assert not shared & set(KEYS)


@pytest.mark.parametrize(
    "text", ["(Song et al. 2021, eq. 12)", "Nobody & Nowhere\n    # 2020", "Ho et\nal. (2021)"]
)
def test_an_unknown_citation_is_found_out(text: str):
    (key,) = CITATION.findall(joined(text))
    assert key not in KEYS


# -- what is promised -----------------------------------------------------------------------------

RELIABILITY = ROOT / "docs" / "reliability.md"
PROMISES: dict[str, str] = json.loads((ROOT / "tests" / "promises.json").read_text("utf-8"))
"""The main test of each promise of the page."""


@pytest.mark.parametrize("test", PROMISES.values())
def test_a_promise_names_a_test_that_exists(test: str):
    path, _, name = test.partition("::")
    assert name in defined(ROOT / path)


def test_every_promise_links_to_the_file_of_its_test():
    rows = re.findall(r"^\| (?!promise|---)(.+) \|$", RELIABILITY.read_text("utf-8"), re.MULTILINE)
    assert len(rows) > 40
    for row, (promise, test) in zip(rows, PROMISES.items(), strict=True):
        file = test.partition("::")[0]
        assert row == f"{promise} | [{Path(file).stem}](../{file})"


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]


@cache
def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_a_page_links_to_files_and_headings_that_exist(page: Path):
    prose = without_code(page.read_text(encoding="utf-8"))
    for target in re.findall(
        r"(?:\]\(|src=\")(?!https?:)([^)\s\"]+)", re.sub(r"`[^`]*`", "", prose)
    ):
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_command_has_a_page_that_ends_with_its_options():
    pages = {path.stem: path for path in (ROOT / "docs" / "commands").glob("*.md")}
    assert pages.keys() == {*COMMANDS}
    for name, path in pages.items():
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# diffuse {name}\n\n```\ndiffuse ")
        assert text.endswith(f"\n[All options](../cli.md#diffuse-{name})\n")


def test_what_is_missing_is_still_missing():
    """A page that says so must change with it."""
    page = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    assert list(NETWORKS.entries) == ["unet", "vit"]
    assert "networks other than a U-Net and a plain transformer" in page
    assert list(MEDIA.entries) == ["array", "audio", "image"]
    assert "data other than [images]" in page
    assert "formats other than PNG, JPEG, WebP, AVIF, BMP, GIF and TIFF" in page
    assert {name.upper() for name in re.findall(r"\w+", page)} >= set(FORMATS)
    assert "progressive and adversarial distillation" in page
    assert Conditions.__dataclass_fields__.keys() == {"classes", "given", "table"}


# -- the formats -----------------------------------------------------------------------------------


def rows_of(first: str) -> list[list[str]]:
    """Rows of the table of docs/formats.md whose first column has this header."""
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    (table,) = re.findall(rf"^\| {re.escape(first)} \|.*\n\|-.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]


def check_listed(first: str, found: set[str]) -> None:
    """Check that a table of docs/formats.md lists these names, and no other as always present."""
    rows = [({*re.findall(r"`([^`]+)`", row[0])}, "always" in row) for row in rows_of(first)]
    always = {name for names, required in rows if required for name in names}
    assert always - found == set(), first
    assert found - {name for names, _ in rows for name in names} == set(), first


def test_formats_lists_the_keys_of_a_run_of_two_steps(
    train: Callable[..., Any], diffuse: Callable[..., Any]
):
    train("--steps", 2, "--eval-every", 2, "--eval-images", 4, "-q").ok()
    diffuse("sample", "model.safetensors", "-n", 2, "--steps", 2, "-o", "samples", "-q").ok()

    with Path("model.safetensors").open("rb") as file:
        metadata = tensor_file.read_header(file).metadata
    (row,) = [row for row in rows_of("metadata key") if "modelspec" in row[0]]
    assert {*re.findall(r"modelspec\.\w+", row[0])} == {n for n in metadata if "modelspec" in n}
    check_listed("metadata key", {*metadata})
    check_listed("key of `diffuse.config`", {*json.loads(metadata["diffuse.config"])})

    run = Path("model.run")
    (checkpoint,) = (run / "checkpoints").iterdir()
    check_listed("file of a checkpoint", {path.name for path in checkpoint.iterdir()})
    paths = {f"{p.relative_to(run)}{'/' * p.is_dir()}" for p in (*run.glob("*"), *run.glob("*/*"))}
    folders = {path for path in paths if any(p != path and p.startswith(path) for p in paths)}
    check_listed("path", paths - folders)
    found = {key for row in log_rows(run) for key in row}
    check_listed("key", found)
    assert {"loss", "lr", "grad_norm", "images_per_second", "held_out_loss", "kid"} <= found

    manifest = json.loads(Path("samples/manifest.json").read_text())
    check_listed("key of `manifest.json`", {*manifest})


def test_a_dry_run_names_runs_of_the_page_of_expectations():
    rows = json.loads((ROOT / "benchmarks/results/expect.json").read_text())
    runs = script("expect").RUNS
    shown = {(runs[r["run"]].size, r["width"], r["images_seen"], runs[r["run"]].time) for r in rows}
    assert {*EXPECTED} <= shown


@pytest.mark.parametrize("size", [64, 128, 256])
def test_a_run_of_the_page_of_expectations_has_numbers_and_a_picture(tmp_path, monkeypatch, size):
    expect, train = script("expect"), tmp_path / "train"
    train.mkdir()
    sample = train / "a.png"
    Image.new("RGB", (size, size)).save(sample)
    monkeypatch.setattr(expect, "RUNS", {"x": expect.Run("dots", 1, size, 10, "Dots.")})
    monkeypatch.setattr(expect, "PICTURES", tmp_path)
    (row,) = json.loads((ROOT / "benchmarks/results/expect.json").read_text())[:1]
    commands = []

    def diffuse(command, *arguments):
        commands.append(command)
        return {
            **row, "images": [sample] * expect.STRIP, "step": 3, "memorized_copies": 0.0,
            "training": {"batch_size": 4, "width": 32}, "n": {"generated": 500},
        }  # fmt: skip

    monkeypatch.setattr(expect, "diffuse", diffuse)
    found = expect.measure("x", train, tmp_path / "test", tmp_path)
    assert commands == ["train", "sample", "eval", "eval", "info"]
    assert (found.keys(), found["images_seen"], found["copies"]) == (row.keys(), 12, 0)
    picture = Image.open(tmp_path / f"x.{'png' if size < 256 else 'jpg'}")
    assert picture.width > picture.height
    assert "Dots. 12 images seen." in expect.render([found])


PRINTED: dict[str, tuple[str, ...]] = {
    "train": ("train {images} --config {tiny} --steps 2 -o x.safetensors",),
    "train --dry-run": ("train {images} --config {tiny} --dry-run",),
    "sample": (
        "sample {classes} -n 2 --steps 2",
        "interpolate {unconditional} {image} {image} -n 2 --steps 2",
    ),
    "eval": ("eval {classes} {grey} -n 4 --steps 2 --timesteps 2",),
    "tune": ("tune {unconditional} {grey} --steps 1,2 --samplers ddim -n 4",),
    "ema": ("ema {unconditional} {grey} --metric held-out",),
    "compare": ("compare {unconditional} {flow}",),
    "info DATA": ("info {grey}", "info {fields}", "info {sounds}", "info {deep}"),
    "info MODEL": ("info {unconditional}",),
    "info RUN": ("info {run}",),
    "convert": ("convert {unconditional} x.pt2 --to pt2",),
}
"""Command lines for each table of printed keys, in which {name} is an entry of the lab."""


@pytest.mark.parametrize("command", PRINTED)
def test_formats_lists_the_keys_that_a_command_prints(diffuse: Any, lab: Any, command: str):
    paths = {"image": lab.sample("grey"), "run": lab["unconditional"].with_suffix(".run")}
    for line in PRINTED[command]:
        words = [
            str(paths.get(word[1:-1]) or lab[word[1:-1]]) if word[0] == "{" else word
            for word in line.split()
        ]
        ran = diffuse(*words, "--json").ok()
        found = {*ran.json}
        if command == "eval":  # metrics have a page
            found = {k for k in found if not isinstance(ran.json[k], float)} | {"seconds"}
        check_listed(f"key of `{command} --json`", found)


def test_formats_lists_every_version_of_a_model_file():
    assert [int(row[0]) for row in rows_of("version")] == [*range(1, model_header.VERSION + 1)]


# -- the page of the wheel -------------------------------------------------------------------------

README = (ROOT / "README.md").read_text(encoding="utf-8")
TARGET = re.compile(r'(?:\]\(|src=")([^)\s"]+)')


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def test_the_wheel_describes_itself_without_links_that_lead_nowhere():
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    core = ProjectMetadata(str(ROOT), PluginManager()).core
    assert core.readme_content_type == "text/markdown"
    assert core.readme.startswith("# diffuse\n")
    found = TARGET.findall(without_code(core.readme))
    assert [t for t in found if not t.startswith(("#", "https:"))] == []
    assert "diffuse train ./images" in core.readme


def test_with_an_address_its_links_are_whole():
    page = without_code(script("wheel_page").whole(README, "https://example.org/diffuse"))
    assert [t for t in TARGET.findall(page) if not t.startswith(("#", "https:"))] == []
    found = re.findall(r"https://example.org/diffuse/(blob|raw)/HEAD/([^)#\s\"]+)", page)
    there = [t for t in TARGET.findall(without_code(README)) if not t.startswith(("#", "https:"))]
    assert [path for _, path in found] == [t.split("#")[0] for t in there]
    assert {kind for kind, path in found if path.endswith((".png", ".gif"))} == {"raw"}
    assert all((ROOT / path).exists() for _, path in found)
    assert len(found) > 30
