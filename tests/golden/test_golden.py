"""Results that no rearrangement may change: weights, samples and measures.

On a machine like one that recorded a case its digest must be equal, to the last bit. On every other
one, whose arithmetic rounds otherwise, the numbers recorded of each array are compared.
"""

from __future__ import annotations

import json

import goldens
import numpy as np
import pytest
import record
from conftest import do_less

from diffuse_cli.training import memory_estimate

RECORD = json.loads(goldens.GOLDEN.read_text())


@pytest.fixture(scope="module")
def digests():
    """Those of machines that round as this one does, by case."""
    here = goldens.machine()
    return next((each["cases"] for each in RECORD["digests"] if each["machine"] == here), {})


@pytest.mark.parametrize("name", goldens.CASES)
def test_results_are_as_recorded(name, digests, tmp_path, monkeypatch, pair):
    monkeypatch.chdir(tmp_path)
    do_less(monkeypatch, full_size=True, plots=True)  # nothing of a preview is recorded
    monkeypatch.setattr(
        memory_estimate, "count_fitting_images", lambda *_: 100
    )  # memory decides no result
    goldens.furnish(tmp_path)
    found = goldens.measure(name, lambda *line: pair(*line).out)
    assert goldens.differences(RECORD["cases"][name], goldens.rows(found)) == []
    if name in digests:
        assert goldens.fingerprint(found) == digests[name], "equal to 5 digits, not to the last bit"


def test_the_record_has_every_case_and_no_other():
    assert list(RECORD["cases"]) == list(goldens.CASES)
    assert all(each["cases"].keys() <= goldens.CASES.keys() for each in RECORD["digests"])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda image: image[:, ::-1],
        lambda image: image[::-1],
        lambda image: image[..., ::-1],
        lambda image: image.swapaxes(0, 1),
        lambda image: np.roll(image, 1, axis=1),
        lambda image: np.random.RandomState(0).permutation(image.ravel()).reshape(image.shape),
        lambda image: image + np.uint8(1),
    ],
    ids=["mirrored", "upside down", "BGR", "transposed", "shifted", "shuffled", "lighter"],
)
def test_another_image_is_seen_on_any_machine(wrong):
    y, x, c = np.mgrid[:16, :16, :3]
    image = (40 + 6 * x + 3 * y + 20 * c + 9 * ((x * y) % 5 == 0)).astype(np.uint8)
    was = found(image)
    rounded = image.copy()
    rounded[3, 4, 1] += 1
    assert goldens.differences(was, found(image)) == []
    assert goldens.differences(was, found(rounded)) == []
    assert goldens.differences(was, found(np.ascontiguousarray(wrong(image)))) != []


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_another_tensor_is_seen_on_any_machine(scale):
    draw = np.random.RandomState(0)
    tensor = (scale * (3 + draw.standard_normal((8, 4, 3, 3)))).astype(np.float32)
    was = found(tensor, "tensors")
    near = tensor * np.float32(1) + np.float32(1e-4 * scale) * draw.standard_normal(tensor.shape)
    assert goldens.differences(was, found(near.astype(np.float32), "tensors")) == []
    for other in (tensor[::-1], tensor[:, ::-1], tensor[..., ::-1], tensor.swapaxes(2, 3)):
        assert goldens.differences(was, found(np.ascontiguousarray(other), "tensors")) != []
    assert goldens.differences(was, found(tensor.astype(np.float16), "tensors")) != []
    assert goldens.differences(was, found(tensor.reshape(4, 8, 3, 3), "tensors")) != []


def found(array, kind="images"):
    """A record of one array."""
    return goldens.rows({"tensors": {}, "images": {}, "numbers": {}, kind: {"it": array}})


def test_one_case_is_recorded_without_the_others():
    here = goldens.machine()
    there = {"machine": {"processor": "another"}, "cases": {"a": "1", "b": "2"}}
    kept = {"digests": [there], "cases": {"a": {}, "b": {}}}
    measured = {"tensors": {}, "images": {}, "numbers": {"n": 1.5}}
    record.recorded(kept, "a", measured)
    assert kept["cases"] == {"a": measured, "b": {}}
    assert kept["digests"] == [
        {"machine": {"processor": "another"}, "cases": {"b": "2"}},
        {"machine": here, "cases": {"a": goldens.fingerprint(measured)}},
    ]


def test_the_record_is_written_as_it_is_read():
    text = goldens.GOLDEN.read_text()
    assert record.written(json.loads(text)) == text
