"""Training on vectors: whose is whose, that samples follow them, exactness, other sources."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MODEL, RUN, manifest, pixels
from lab import QUICK
from PIL import Image

import diffuse_cli as api
from diffuse_cli.data import read_images
from diffuse_cli.data.samples import match_names
from diffuse_cli.models import model_file
from diffuse_cli.system.events import finish

CENTERS = np.array([[2.0, 0, -1, 5], [-2.0, 1, 3, 5]])
"""Vectors of dark and of light images. Their last entry varies only by rounding."""

LEVELS = (70, 190)
TWO = ("--config", QUICK, "--steps", 2)


@pytest.fixture
def vectors():
    """Write dark and light images in turn, and return a vector of each, near that of its kind."""
    draw, found = np.random.default_rng(0), {}
    Path("images").mkdir()
    for k in range(60):
        levels = draw.normal(LEVELS[k % 2], 5, (8, 8)).astype(np.uint8)
        Image.fromarray(levels).save(f"images/{k:02d}.png")
        found[f"{k:02d}.png"] = CENTERS[k % 2] + draw.normal(0, 0.2, 4) * [1, 1, 1, 1e-8]
    return found


def test_samples_follow_their_vectors_and_combine_with_columns(diffuse, vectors):
    names = [name if k % 3 else name.removesuffix(".png") for k, name in enumerate(vectors)]
    np.savez("v.npz", **dict(zip(names, vectors.values(), strict=True)))
    sides = "".join(f"{name},{'ab'[k // 2 % 2]}\n" for k, name in enumerate(vectors))
    Path("images/metadata.csv").write_text(f"file_name,side\n{sides}")
    line = ("train", "images", "--config", QUICK, "--condition-on", "side,v.npz")
    ran = diffuse(*line, "--steps", 50, "--batch-size", 8, "--width", 32, "--lr", 0.01).ok()
    assert "conditioned on vector: vectors of 4 numbers" in ran.err
    assert "--on side=a --on-vector v.npz" in ran.err
    evaluate = "diffuse eval model.safetensors images --condition-on v.npz"
    assert evaluate in (RUN / "index.html").read_text()

    _, column = model_file.load(MODEL).blueprint.conditions.table.columns
    stack = np.array([*vectors.values()])
    train = stack[~finish(read_images("images")).held_out]
    assert np.allclose(column.mean, train.mean(0), rtol=1e-12)
    assert np.allclose(column.deviation, train.std(0), rtol=1e-12)
    assert column.deviation[-1] == 0

    np.save("centers.npy", CENTERS)
    on = ("--on-vector", "centers.npy", "--on", "side=a", "--on", "side=b")
    diffuse("sample", MODEL, *on, "-n", 32, "--steps", 8, "-o", "out", "-q").ok()
    told = manifest("out")["on"]
    assert [t["side"] for t in told[:4]] == ["a", "a", "b", "b"]
    assert told[0]["vector"] == told[2]["vector"] != told[1]["vector"]
    found = np.array([pixels("out", k).mean() for k in range(32)])
    assert found[::2].mean() == pytest.approx(LEVELS[0], abs=12)
    assert found[1::2].mean() == pytest.approx(LEVELS[1], abs=12)
    near = (CENTERS[0] + [0.1, 0, 0, 9]).tolist()  # an entry that never varied says nothing
    again = api.load(MODEL).sample(2, steps=8, on={"side": "a"}, on_vector=near)
    levels = np.mean([np.asarray(image) for image in again])
    assert levels == pytest.approx(found[:4:2].mean(), abs=6)


def save_sources(vectors):
    """Save the images and their vectors in each way that is read; the data and the column of it."""
    names, values = [*vectors], np.array([*vectors.values()])
    np.savez("v.npz", **vectors)
    yield "images", "v.npz"
    np.savez("v.npz", names=names, vectors=values)
    yield "images", "v.npz"
    np.save("images.npy", np.stack([np.asarray(Image.open(f"images/{name}")) for name in names]))
    np.save("v.npy", values)
    yield "images.npy", "v.npy"
    np.savez("batch.npz", np.load("images.npy")[..., None])
    yield "batch.npz", "v.npy"
    rows = [{"file_name": name, "vector": [*vector]} for name, vector in vectors.items()]
    Path("images/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    yield "images", "vector"
    pa, pq = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    images = [{"bytes": Path(f"images/{name}").read_bytes(), "path": name} for name in names]
    pq.write_table(pa.table({"image": images, "vector": [*vectors.values()]}), "x.parquet")
    yield "x.parquet", "vector"


def test_vectors_of_every_source_train_the_same_model(diffuse, vectors):
    """All keep the order of the images, so that batches and weights are equal to the last bit."""
    weights = []
    for data, column in save_sources(vectors):
        diffuse("train", data, *TWO, "--condition-on", column, "--overwrite", "-q").ok()
        model = model_file.load(MODEL)
        assert model.blueprint.conditions.table.columns[0].name == "vector"
        weights.append(model)
    for other in weights[1:]:
        assert other.blueprint.conditions == weights[0].blueprint.conditions
        assert all(torch.equal(other.ema[name], w) for name, w in weights[0].ema.items())
    samples = [(Image.open(f"images/{name}"), {"vector": v}) for name, v in vectors.items()]
    for data, column in ((samples, "vector"), (np.load("images.npy"), "v.npy")):
        options = {"out": "api.safetensors", "config": QUICK, "steps": 2, "overwrite": True}
        [*api.train(data, condition_on=column, **options)]
        model = model_file.load("api.safetensors")
        assert model.blueprint.conditions == weights[0].blueprint.conditions


def test_a_run_goes_on_with_its_vectors_and_a_model_has_no_path(diffuse, vectors):
    secret = Path("secretfolder")
    secret.mkdir()
    np.savez(secret / "v.npz", **vectors)
    line = ("train", "images", *TWO, "--condition-on", secret / "v.npz")
    diffuse(*line, "--stop-at", 1, "-q").ok()
    for path in (MODEL, *RUN.rglob("*.safetensors")):
        assert b"secretfolder" not in Path(path).read_bytes(), path
    (secret / "v.npz").rename("moved.npz")
    resumed = ("train", "images", "--resume", "--condition-on", "moved.npz", "-q")
    vectors["07.png"][0] += 1
    np.savez("other.npz", **vectors)
    said = "has changed since this run started"
    diffuse(*resumed[:-2], "other.npz", "-q").fails(2, said)
    diffuse(*resumed).ok()
    before = model_file.load(MODEL)
    assert before.step == 2

    again = ("train", "images", "--init", MODEL, "--steps", 1, "--lr", 0, "-o", "b.safetensors")
    diffuse(*again, "-q").fails(3, "Pass the file of vectors with --condition-on FILE.npz")
    diffuse(*again, "--condition-on", "other.npz", "-q").ok()
    after = model_file.load("b.safetensors")
    scales = [(c.mean, c.deviation) for m in (before, after)
              for c in m.blueprint.conditions.table.columns]  # fmt: skip
    assert scales[0] == scales[1]
    assert torch.equal(after.ema["row_embedding.0.weight"], before.ema["row_embedding.0.weight"])
    longer = {name: [*v, 1.0 * k] for k, (name, v) in enumerate(vectors.items())}
    np.savez("longer.npz", **longer)
    ran = diffuse(*again, "--condition-on", "longer.npz", "--overwrite").ok()
    assert "new, at 0: vector" in ran.err
    assert not model_file.load("b.safetensors").ema["row_embedding.0.weight"].any()


def test_names_that_do_not_match_are_listed(diffuse, vectors):
    assert match_names(["a.nii.gz", "b/c.NPY"], ["b/c.png", "a.npy"]).tolist() == [1, 0]
    assert match_names(["a.b.png", "c.png"], ["a.b", "b"]).tolist() == [0, -1]
    line = ("train", "images", *TWO, "--condition-on", "v.npz", "-q")
    names, rows = [*vectors, [*vectors][2]], [*vectors.values(), [*vectors.values()][2]]
    np.savez("v.npz", names=names, vectors=np.stack(rows))
    diffuse(*line).fails(3, f"v.npz has several vectors of {names[2]}")
    renamed = {f"x{name}" if k < 7 else name: v for k, (name, v) in enumerate(vectors.items())}
    np.savez("v.npz", **renamed)
    said = "7 images without a vector in v.npz: 00.png, 01.png, 02.png, 03.png, 04.png, ..."
    diffuse(*line).fails(3, said)
    np.savez("v.npz", **vectors, **{f"x{k}": v for k, v in enumerate(vectors.values())})
    ran = diffuse(*line[:-1]).ok()
    assert "60 vectors of v.npz without an image: x0, x1, x2, x3, x4, ..." in ran.err
    diffuse(*line, "--strict", "--overwrite").fails(3, "without an image")
    Path("v.npz").write_bytes(Path("v.npz").read_bytes()[:3000])
    diffuse(*line, "--overwrite").fails(3, "v.npz: it is not a .npz or .npy file of numbers")
