"""`diffuse push`: a folder with a card of facts, and one commit of it on a server of our own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import in_process
from file_operations import FULL, ends_at, failing_at, killed_while
from hub_server import COMMIT, serving
from lab import QUICK, Lab
from PIL import Image, PngImagePlugin
from private_models import model_of

from diffuse_cli.commands._cli.model_facts import escape
from diffuse_cli.models import model_file
from diffuse_cli.sampling.journal import lock_folder
from diffuse_cli.system import files
from diffuse_cli.system.errors import INSTALL
from diffuse_cli.system.files import sha256

Run = Callable[..., Any]
TARGET = "hf://some/garments"


def head(card: str) -> dict[str, Any]:
    lines = card.split("---\n")[1].splitlines()
    return {key: json.loads(value) for key, _, value in (line.partition(": ") for line in lines)}


def test_a_folder_has_the_model_a_picture_and_a_card_of_facts(
    diffuse: Run, conditional: Path, images: Path
):
    line = ("-n", 6, "--steps", 2, "--metrics", "marginals", "--json")
    Path("eval.json").write_text(diffuse("eval", conditional, images, *line).out)
    ran = diffuse(
        "push", conditional, TARGET, "--license", "mit", "--eval", "eval.json", "-o", "out"
    )
    assert (ran.code, ran.out) == (0, "out\n"), ran.err
    assert sha256(Path("out/model.safetensors")) == sha256(conditional)
    card = Path("out/README.md").read_text()
    assert head(card)["license"] == "mit"
    assert head(card)["pipeline_tag"] == "unconditional-image-generation"
    told = diffuse("info", conditional, "--json").json
    for fact in (
        "# garments\n", "60 steps", f"{told['parameters']:,} parameters", "![Samples of the model]",
        "The first samples, not a selection: unipc, 20 steps, guidance 2, seed 0.", told["sha256"],
        told["data"]["fingerprint"], "| samples | 60, 6 of them held out |", "dark, light",
        "diffuse sample hf://some/garments -n 16", 'load("hf://some/garments")',
        INSTALL.format(extra="hub"),
        "6 generated against 6 real (held-out)", "[eval.json](eval.json)",
    ):  # fmt: skip
        assert fact in card, fact
    assert "±" in card
    assert diffuse("sample", conditional, "-n", 16, "-o", "drawn").code == 0
    assert sha256(Path("drawn/grid.png")) == sha256(Path("out/samples.png"))


def test_samples_of_a_model_that_needs_its_columns_have_values(diffuse: Run, lab: Lab):
    line = ("train", lab["grey"], "--condition-on", "level,side", "--label-dropout", 0)
    model = lab.trained(*line, "--config", QUICK, "--steps", 1)
    diffuse("push", model, TARGET, "--license", "mit", "-o", "out").ok()
    assert Path("out/samples.png").exists()


def test_a_picture_may_be_given_and_nothing_measured_is_said(diffuse: Run):
    """Also of a converted model, which is not said to be trained. Metadata are not published."""
    model_file.save(Path("model.safetensors"), model_of())
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Author", "Marked Author")
    picture = Image.linear_gradient("L")
    picture.save("grid.png", pnginfo=texts)
    line = ("push", "model.safetensors", TARGET, "--license", "cc-by-4.0", "-o", "out", "--json")
    line = (*line, "--samples", "grid.png")
    assert diffuse(*line).json["files"] == ["README.md", "model.safetensors", "samples.png"]
    card = Path("out/README.md").read_text()
    assert ("Not measured" in card, "not a selection" in card) == (True, False)
    assert " parameters, converted with `diffuse`.\n" in card
    with Image.open("out/samples.png") as published:
        assert (published.tobytes(), published.info) == (picture.tobytes(), {})
    Path("grid.png").write_bytes(Path("grid.png").read_bytes()[:-40])
    diffuse(*line, "--overwrite", "-q").fails(3, "truncated or corrupt")


@pytest.mark.parametrize(
    ("option", "digest", "said"),
    [
        ("--eval", "0" * 64, "is of another model"),
        ("--eval", "OWN", "is not what eval prints"),  # it has no number of generated images
        ("--eval", "", "is not what eval prints"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(
    diffuse: Run, model: Path, option: str, digest: str, said: str
):
    settings = {"model_sha256": digest.replace("OWN", sha256(model))}
    facts = {"settings": settings, "n": {"real": 2}, "features": {}, "remarks": []}
    path = "own.json" if option == "--eval" else "own.png"
    Path(path).write_text(json.dumps(facts if digest else {}))
    ran = diffuse("push", model, TARGET, "--license", "mit", option, path, "-o", "out")
    assert ran.fails(2, said).out == ""
    assert not Path("out").exists()


def test_a_model_is_pushed_in_one_commit_and_drawn_from_elsewhere(
    process: Run, model: Path, tmp_path: Path
):
    Image.new("L", (4, 4)).save(tmp_path / "grid.png")
    line = ("push", model, TARGET, "--license", "mit", "--samples", "grid.png")
    with serving() as hub:
        here = {**hub.environment(tmp_path), "HF_TOKEN": "hf_writes"}
        ran = process(*line, env={**here, "HF_TOKEN": "hf_reads"})
        assert (ran.code, "does not let you write to hf://some/garments" in ran.err) == (5, True)
        assert hub.models == {}
        for name, private in (("README.md", False), ("data.csv", True)):
            hub.models["some/garments"] = {name: b"theirs"}
            ran = process(*line, *["--private"] * private, env=here)
            said = "exists and is public" if private else f"holds {name} already. Pass --overwrite"
            assert (ran.code, said in ran.err) == (2 if private else 5, True)
            assert hub.models.pop("some/garments") == {name: b"theirs"}
        ran = process(*line, "--private", env=here).ok()
        assert ran.out == f"{hub.url}/some/garments/commit/{COMMIT}\n"
        assert "private" in json.dumps(hub.made["some/garments"])
        files = hub.models["some/garments"]
        assert sorted(files) == ["README.md", "model.safetensors", "samples.png"]
        assert files["model.safetensors"] == model.read_bytes()
        ran = process(*line, env=here)
        assert (ran.code, "holds a model already. Pass --overwrite" in ran.err) == (5, True)
        files["eval.json"] = b"{}"
        assert process(*line, "--overwrite", env=here).code == 0
        assert sorted(files) == ["README.md", "model.safetensors", "samples.png"]
        assert process("info", TARGET, "--json", "-q", env=here).json["sha256"] == sha256(model)


def test_a_push_that_is_killed_can_be_repeated(diffuse: Run, model: Path):
    Image.new("L", (4, 4)).save("grid.png")
    line = ["push", model, TARGET, "--license", "mit", "--samples", "grid.png", "-q", "-o"]
    assert diffuse(*line, "whole").code == 0
    wanted = {path.name: path.read_bytes() for path in Path("whole").iterdir()}
    moment = 0
    while killed_while(lambda: in_process([*line, "cut"]), ends_at(moment)):
        names = {path.name for path in Path("cut").glob("*")}
        ended = names - {".lock"} == {*wanted}
        assert diffuse(*line, "cut").code == (5 if ended else 0), moment
        assert {path.name: path.read_bytes() for path in Path("cut").glob("[!.]*")} == wanted
        shutil.rmtree("cut")
        moment += 5
    assert moment > 30


@pytest.fixture
def pushed(diffuse: Run, model: Path) -> dict[str, bytes]:
    """The files of an earlier push and of others, in a clone that the link `out` leads to."""
    names = ("model.safetensors", "README.md", "eval.json", "demo.html", "mine.txt", ".gitignore")
    contents = {name: f"old {name}".encode() for name in names}
    Path("clone/.git").mkdir(parents=True)
    for name, content in contents.items():
        (Path("clone") / name).write_bytes(content)
    Path("out").symlink_to("clone")
    Image.new("L", (4, 4)).save("grid.png")
    return contents


def read_files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.iterdir() if path.is_file() and path.name != ".lock"]
    return {path.name: path.read_bytes() for path in paths}


def test_a_push_that_fails_at_any_operation_keeps_the_folder_or_can_be_repeated(
    diffuse: Run, model: Path, pushed: dict[str, bytes], monkeypatch
):
    line = ["push", model, TARGET, "--license", "mit", "--samples", "grid.png", "-q", "-o"]
    assert diffuse(*line, "whole").code == 0
    new = {"mine.txt": pushed["mine.txt"], ".gitignore": pushed[".gitignore"]}
    new |= read_files(Path("whole"))
    line += ["out", "--overwrite"]
    kept, moment = 0, 0
    while True:
        with monkeypatch.context() as patch:
            patch.setattr(files, "operation", failing_at(moment, FULL))
            ran = diffuse(*line)
        if ran.code == 0:
            break
        assert ran.code == 5
        state = read_files(Path("clone"))
        assert state.items() <= pushed.items() or state.items() <= new.items(), moment
        if "Run the command again, with --overwrite" in ran.line:
            assert "out may lack files" in ran.line
        else:  # or only the lock is left
            assert state in (pushed, new), moment
            kept += state == pushed
        assert diffuse(*line).code == 0
        assert read_files(Path("clone")) == new
        for name in {*new} - {*pushed}:
            (Path("clone") / name).unlink()
        for name, content in pushed.items():
            (Path("clone") / name).write_bytes(content)
        moment += 2
    assert 20 < kept < moment / 2
    assert read_files(Path("clone")) == new
    assert Path("out").is_symlink()
    hidden = sorted(path.name for path in Path("clone").glob(".*"))
    assert hidden == [".git", ".gitignore"]


@pytest.mark.parametrize("name", ["README.md", "eval.json", "model.safetensors"])
def test_a_folder_in_the_place_of_a_file_is_refused_at_once(
    diffuse: Run, model: Path, pushed: dict[str, bytes], instead_of_networks, name: str
):
    instead_of_networks()
    (Path("clone") / name).unlink()
    (Path("clone") / name / "mine").mkdir(parents=True)
    ran = diffuse("push", model, TARGET, "--license", "mit", "-o", "out", "--overwrite")
    assert (ran.code, f"cannot write out/{name}: it is a folder" in ran.line) == (5, True)
    assert (Path("clone") / name / "mine").is_dir()


def test_a_push_without_temporary_files_is_refused_before_anything_is_drawn(
    diffuse: Run, model: Path, monkeypatch, instead_of_networks
):
    instead_of_networks()
    Path("file").touch()
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", "file")
        assert in_process(["push", model, TARGET, "--license", "mit", "--overwrite"]) == 5


def test_two_pushes_into_one_folder_do_not_mix(diffuse: Run, model: Path):
    with lock_folder(Path("out")):
        ran = diffuse("push", model, TARGET, "--license", "mit", "-o", "out", "--overwrite")
    assert (ran.code, "is writing to out" in ran.line) == (75, True)
    assert not Path("out").exists()


MARK = "Zugspitze"
"""In the name of every folder and file here, and of nothing else."""


def marked(data: bytes) -> bool:
    return MARK.lower().encode() in data.lower()


def test_no_name_of_a_folder_or_file_leaves_the_machine(
    diffuse: Run, images: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here = tmp_path / MARK
    for k, path in enumerate(sorted(images.rglob("*.png"))):
        copy = here / f"images of {MARK}" / f"{MARK} {path.parent.name}" / f"{MARK}{k}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    data = here / "data"
    (here / f"images of {MARK}").rename(data)
    monkeypatch.chdir(here)
    model, tuned = here / "model.safetensors", here / "tuned.safetensors"
    weaker, line = here / "weaker.safetensors", ("train", data, "--config", recipe, "-q")
    assert diffuse(*line, "--num-timesteps", 1000, "--steps", 6, "-o", weaker).code == 0
    line = (*line, "--num-timesteps", 1000, "--steps", 12, "--init", weaker, "-o", model)
    assert diffuse(*line, "--log", "tensorboard").code == 0
    few = ("-n", 4, "--timesteps", 2, "--steps", 2, "--guide-with", weaker)
    parts = ("--report", here / "eval.html", "--plot", "bits.png", "--pairs", here / "pairs.png")
    ran = diffuse("eval", model, data, *few, *parts, "--json").ok()
    assert marked(ran.out.encode()), "what is printed here may be typed again"
    (here / "eval.json").write_text(ran.out)
    line = ("-n", 4, "--steps", 2, "--samplers", "ddim", "--no-try-starts")
    outs = ("--report", here / "tune.html", "-o", tuned, "--plot", here / "tune.png")
    assert diffuse("tune", model, data, *line, *outs, "-q").code == 0
    line = ("--license", "mit", "--eval", here / "eval.json", "-o", here / "out", "-q")
    assert diffuse("push", model, TARGET, *line).code == 0
    assert diffuse("convert", model, "--to", "diffusers", "-o", here / "folder", "-q").code == 0
    pages = [here / "eval.html", here / "tune.html"]
    for page in pages:
        assert "model.safetensors" in page.read_text()
    logged = list((here / "model.run").rglob("events.out*"))
    numbers = json.loads((here / "out/eval.json").read_text())
    assert (numbers["subject"], numbers["data"]) == ("model.safetensors", "data")
    leaving = [
        *pages, *logged, model, tuned, *here.glob("*.png"),
        *(path for name in ("out", "folder") for path in (here / name).rglob("*.*")),
    ]  # fmt: skip
    assert len(leaving) >= 13
    assert [path.name for path in leaving if marked(path.read_bytes())] == []


def test_texts_of_a_file_are_not_markdown():
    assert escape("<b>|`*_[x]") == r"&lt;b&gt;\|\`\*\_\[x\]"


def test_a_push_does_not_replace_the_model_it_publishes(diffuse: Run, model: Path):
    Path("own").mkdir()
    own = Path(shutil.copy(model, "own/model.safetensors"))
    ran = diffuse("push", own, TARGET, "--license", "mit", "-o", "own", "--overwrite")
    assert (ran.code, "-o own holds the input own/model.safetensors" in ran.line) == (2, True)
    assert sha256(own) == sha256(model)
