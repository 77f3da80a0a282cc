"""`hf://ORG/NAME` stands for a model: from a server of the tests' own, in processes that ask it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, Hub, serving

from diffuse_cli.system import hub, hub_models
from diffuse_cli.system.errors import ModelFileError
from diffuse_cli.system.events import finish
from diffuse_cli.system.hub import MODEL, HubFile, HubListing
from diffuse_cli.system.hub_models import model_name

NAME = "hf://some/model"


@pytest.fixture
def served(model: Path) -> Iterator[Hub]:
    with serving() as server:
        server.models = {
            "some/model": {"model.safetensors": model.read_bytes(), "README.md": b"# a model"},
            "some/other": {"best.safetensors": model.read_bytes(), "x/y.safetensors": b"y"},
            "some/gated": {"model.safetensors": b""},
            "some/theirs": {"unet/diffusion_pytorch_model.safetensors": b"", "a.pt": b""},
        }
        server.sets = {"some/set": {"data/train.parquet": b""}}
        yield server


@pytest.fixture
def asking(process: Callable[..., Any], served: Hub, tmp_path: Path) -> Callable[..., Any]:
    """Run a command with the server as the hub."""

    def run(*arguments: Any, offline: bool = False) -> Any:
        return process(*arguments, env=served.environment(tmp_path, offline))

    return run


def test_a_name_stands_for_the_model_wherever_one_is_asked_for(
    asking: Callable[..., Any], served: Hub, model: Path, images: Path
) -> None:
    told = asking("info", NAME, "--json", "-q").ok()
    assert told.json["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert served.got == ["model.safetensors"]
    ran = asking("sample", f"{NAME}@main", "-n", 2, "--steps", 2, "-o", "out")
    assert (ran.code, "cache" in ran.err) == (0, False), ran.err
    served.status = 503
    few = ("-n", 4, "--steps", 2, "--metrics", "marginals", "--json")
    ran = asking("eval", NAME, images, *few)
    assert (ran.code, ran.json["subject"]) == (0, NAME), ran.err
    assert f"warning: {NAME} is taken from the cache, as {served.url} answers 503" in ran.err
    line = ("train", images, "--init", NAME, "--steps", 1, "--preview-every", 9, "-q")
    asking(*line, offline=True).ok()
    assert served.got == ["model.safetensors"]
    served.status = 0
    ran = asking("info", f"hf://some/other@{COMMIT}/best.safetensors", "-q")
    assert (ran.code, served.got[1:]) == (0, ["best.safetensors"]), ran.err


@pytest.mark.parametrize(
    ("name", "offline", "code", "said"),
    [
        ("hf://some/none", False, "hub_missing", "hf://some/none"),
        ("hf://some/model@old", False, "hub_missing", "no revision old"),
        ("hf://some/gated", False, "hub_denied", "Accept its terms at http"),
        ("hf://some/other", False, "hub_missing", "such as hf://some/other/best.safetensors"),
        ("hf://some/model/best.safetensors", False, "hub_missing", "no best.safetensors in"),
        (
            "hf://some/theirs@main",
            False,
            "model_unsupported",
            "diffuse convert hf://some/theirs -o",
        ),
        ("hf://some/model", True, "hub_failed", "HF_HUB_OFFLINE is set"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    asking: Callable[..., Any], name: str, offline: bool, code: str, said: str
) -> None:
    ran = asking("sample", name, "--json", offline=offline)
    assert (ran.code, ran.json["error"]["code"]) == (4, code)
    assert said in ran.line


def test_what_is_not_what_the_hub_says_is_not_kept(asking: Callable[..., Any], served: Hub) -> None:
    served.broken = {"model.safetensors"}
    asking("sample", NAME, "-q").fails(4, "does not match its size or checksum")
    served.broken = set()
    assert asking("info", NAME, "-q").code == 0


def test_of_diffusers_the_network_and_the_scheduler_are_downloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = (
        "config.json", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "a.pt",
    )  # fmt: skip
    listing = HubListing("a/b", COMMIT, tuple(HubFile(name, 1, None) for name in names), "", MODEL)
    got: list[str] = []
    monkeypatch.setattr(hub_models, "KNOWN", {})
    monkeypatch.setattr(hub, "list_repository", lambda *name: listing)
    monkeypatch.setattr(hub.HubListing, "download_file", lambda _, file: got.append(file.name))
    assert finish(hub_models.fetch_source("hf://a/b")) == listing.snapshot
    assert sorted(got) == [
        "config.json", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    got.clear()
    assert finish(hub_models.fetch_source("hf://a/b/a.pt")) == listing.snapshot / "a.pt"
    assert got == ["a.pt"]
    described = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]
    for name, weights in (("unet", names[5]), (names[4], names[4])):  # parts of the pipeline
        got.clear()
        assert finish(hub_models.fetch_source(f"hf://a/b/{name}")) == listing.snapshot / name
        assert sorted(got) == sorted([*described, weights])
    with pytest.raises(ModelFileError, match="Convert it: diffuse convert hf://a/b"):
        finish(hub_models.fetch_model("hf://a/b"))


@pytest.mark.parametrize(
    "name",
    ["a/b@../x", "a/b@..%2F..", "a/b@%2e%2e", "a/b@%2Fetc", "a/b@x%2F..%2F..", "a/b@..%5Cx",
     "a/b/../x", "a/b/x/%2E%2E/y", "../b", "a/..", "a/b@."],
)  # fmt: skip
def test_a_name_does_not_lead_out_of_its_repository(diffuse: Callable[..., Any], name: str) -> None:
    for line in (("info", f"hf://{name}"), ("info", f"hf://datasets/{name}")):
        diffuse(*line, "-q").fails(2, "leads out of a repository")


def test_names_are_taken_apart() -> None:
    assert model_name("hf://a/b") == ("a/b", "main", "")
    assert model_name(Path("hf://a/b@v1/x/y.safetensors")) == ("a/b", "v1", "x/y.safetensors")
    assert model_name("hf://a/b@refs/pr/3") == ("a/b", "refs/pr/3", "")
