"""Results that no rearrangement may change: weights, samples and measures.

The numbers recorded of each array hold on any machine to 1e-3. To compare two commits to the last
bit, run `benchmarks/same_bits.py`.
"""

import json

import goldens
import numpy as np
import pytest
import record
from conftest import do_less

from diffuse_cli.training import step_cost

RECORD = json.loads(goldens.GOLDEN.read_text())


@pytest.mark.parametrize("name", goldens.CASES)
def test_results_are_as_recorded(name, tmp_path, monkeypatch, pair):
    monkeypatch.chdir(tmp_path)
    do_less(monkeypatch, (), full_size=True, plots=name == "page")  # plots decide no result,
    monkeypatch.setattr(step_cost, "count_fitting_images", lambda *_: 100)  # nor does memory
    goldens.furnish(tmp_path)
    measured = goldens.measure(name, lambda *line: pair(*line).out)
    assert goldens.differences(RECORD[name], goldens.rows(measured)) == []


def test_the_record_has_every_case_and_no_other_and_is_written_as_it_is_read():
    assert list(RECORD) == list(goldens.CASES)
    assert record.written(RECORD) == goldens.GOLDEN.read_text()


OTHERS = {
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "BGR": lambda image: image[..., ::-1],
    "transposed": lambda image: image.swapaxes(0, 1),
    "shifted": lambda image: np.roll(image, 1, axis=1),
    "shuffled": lambda image: np.random.RandomState(0).permutation(image.ravel()),
    "lighter": lambda image: image + np.uint8(1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_image_is_seen_on_any_machine(name):
    y, x, c = np.mgrid[:16, :16, :3]
    image = (40 + 6 * x + 3 * y + 20 * c + 9 * ((x * y) % 5 == 0)).astype(np.uint8)
    was = found(image)
    rounded = image.copy()
    rounded[3, 4, 1] += 1
    assert goldens.differences(was, found(image)) == []
    assert goldens.differences(was, found(rounded)) == []
    other = np.ascontiguousarray(OTHERS[name](image)).reshape(image.shape)
    assert goldens.differences(was, found(other)) != []


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_another_tensor_is_seen_on_any_machine_and_its_last_bit_by_hashes(scale):
    draw = np.random.RandomState(0)
    tensor = (scale * (3 + draw.standard_normal((8, 4, 3, 3)))).astype(np.float32)
    was, bits = found(tensor, "tensors"), goldens.hashes(measured(tensor, "tensors"))
    near = tensor + np.float32(1e-4 * scale) * draw.standard_normal(tensor.shape)
    assert goldens.differences(was, found(near.astype(np.float32), "tensors")) == []
    assert bits == goldens.hashes(measured(tensor.copy(), "tensors"))
    assert bits != goldens.hashes(measured(np.nextafter(tensor, np.float32(9)), "tensors"))
    others = (tensor[::-1], tensor[:, ::-1], tensor[..., ::-1], tensor.swapaxes(2, 3),
              tensor.astype(np.float16), tensor.reshape(4, 8, 3, 3))  # fmt: skip
    for other in map(np.ascontiguousarray, others):
        assert goldens.differences(was, found(other, "tensors")) != []
        assert bits != goldens.hashes(measured(other, "tensors"))
    one, next_to_it = (goldens.hashes(measured(v, "numbers")) for v in (1.0, 1 + 2**-52))
    assert one != next_to_it


def named(part, values):
    """Values by name as the only measured ones."""
    return {"tensors": {}, "images": {}, "numbers": {}, part: values}


def measured(value, part="images"):
    """One measured value."""
    return named(part, {"it": value})


def found(array, part="images"):
    """A record of one array."""
    return goldens.rows(measured(array, part))


def test_one_case_is_recorded_without_the_others(monkeypatch, tmp_path):
    monkeypatch.setattr(goldens, "GOLDEN", tmp_path / "golden.json")
    monkeypatch.setattr(goldens, "CASES", {"a": (), "b": ()})
    goldens.GOLDEN.write_text(record.written({"b": {"numbers": {"n": 2}}}))
    monkeypatch.setattr(goldens, "measure", lambda name: measured(1.5, "numbers"))
    record.main(["a"])
    kept = json.loads(goldens.GOLDEN.read_text())
    assert kept == {"a": {"numbers": {"it": 1.5}}, "b": {"numbers": {"n": 2}}}
    assert list(kept) == ["a", "b"]


@pytest.mark.parametrize(
    "places",
    [("terms.0", "terms.1"), [f"terms.{k}" for k in range(20)], ("classes.a", "classes.b")],
)
def test_a_row_of_numbers_sees_each_of_them(places):
    """A list, or a number per class, is one row, with its standard errors."""
    paths = [f"{at}.kid{end}" for at in places for end in ("", "_standard_error")]
    numbers = dict.fromkeys(paths, 1.0)
    was = goldens.rows(named("numbers", numbers))
    assert len(was["numbers"]) == 1
    for path in paths:
        now = goldens.rows(named("numbers", {**numbers, path: 1.01}))
        assert goldens.differences(was, now) != []


@pytest.mark.parametrize("change", [0.03, "shape", "type", "name"])
def test_a_block_of_tensors_sees_each_of_them(change):
    draw = np.random.RandomState(0)
    tensors = {
        f"blocks.0.{k}": (scale * draw.standard_normal((4, 6))).astype(np.float32)
        for k, scale in enumerate(np.geomspace(1e-4, 1, 30))
    }
    was = goldens.rows(named("tensors", tensors))
    assert list(was["tensors"]) == ["blocks.0"]
    for key, tensor in tensors.items():
        others = {k: t for k, t in tensors.items() if k != key}
        changed = {
            "shape": {key: tensor.reshape(6, 4)},
            "type": {key: tensor.astype(np.float64)},
            "name": {f"{key}0": tensor},
        }.get(change, {key: tensor * np.float32(1 + 0.03)})
        now = named("tensors", dict(sorted({**others, **changed}.items())))
        assert goldens.differences(was, goldens.rows(now)) != [], key
