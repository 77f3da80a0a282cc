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


def named(part, values):
    """Values by name as the only measured ones."""
    return {"tensors": {}, "images": {}, "numbers": {}, part: values}


def different(part, was, now):
    """Whether the rows of measured values, or of one, differ."""
    both = [goldens.rows(named(part, v if isinstance(v, dict) else {"it": v})) for v in (was, now)]
    return goldens.differences(*both) != []


def test_another_image_is_seen_on_any_machine():
    y, x, c = np.mgrid[:16, :16, :3]
    image = (40 + 6 * x + 3 * y + 20 * c + 9 * ((x * y) % 5 == 0)).astype(np.uint8)
    rounded = image.copy()
    rounded[3, 4, 1] += 1
    assert not different("images", image, rounded)
    shuffled = np.random.RandomState(0).permutation(image.ravel()).reshape(image.shape)
    others = (image[:, ::-1], image[::-1], image[..., ::-1], image.swapaxes(0, 1),
              np.roll(image, 1, axis=1), shuffled, image + np.uint8(1))  # fmt: skip
    for other in map(np.ascontiguousarray, others):
        assert different("images", image, other)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_another_tensor_is_seen_on_any_machine_and_its_last_bit_by_hashes(scale):
    def bits(value):
        return goldens.hashes(named("tensors", {"it": value}))

    draw = np.random.RandomState(0)
    tensor = (scale * (3 + draw.standard_normal((8, 4, 3, 3)))).astype(np.float32)
    near = tensor + np.float32(1e-4 * scale) * draw.standard_normal(tensor.shape)
    assert not different("tensors", tensor, near.astype(np.float32))
    assert bits(tensor) == bits(tensor.copy()) != bits(np.nextafter(tensor, np.float32(9)))
    others = (tensor[::-1], tensor[:, ::-1], tensor[..., ::-1], tensor.swapaxes(2, 3),
              tensor.astype(np.float16), tensor.reshape(4, 8, 3, 3))  # fmt: skip
    for other in map(np.ascontiguousarray, others):
        assert different("tensors", tensor, other)
        assert bits(tensor) != bits(other)
    assert bits(1.0) != bits(1 + 2**-52)


@pytest.mark.parametrize(
    "places",
    [("terms.0", "terms.1"), [f"terms.{k}" for k in range(20)], ("classes.a", "classes.b")],
)
def test_a_row_of_numbers_sees_each_of_them(places):
    """A list, or a number per class, is one row, with its standard errors."""
    paths = [f"{at}.kid{end}" for at in places for end in ("", "_standard_error")]
    numbers = dict.fromkeys(paths, 1.0)
    assert len(goldens.rows(named("numbers", numbers))["numbers"]) == 1
    assert all(different("numbers", numbers, {**numbers, path: 1.01}) for path in paths)


def test_a_block_of_tensors_sees_each_of_them():
    draw = np.random.RandomState(0)
    tensors = {
        f"blocks.0.{k}": (scale * draw.standard_normal((4, 6))).astype(np.float32)
        for k, scale in enumerate(np.geomspace(1e-4, 1, 30))
    }
    assert list(goldens.rows(named("tensors", tensors))["tensors"]) == ["blocks.0"]
    for key, tensor in tensors.items():
        others = {k: t for k, t in tensors.items() if k != key}
        changes = [(key, tensor * np.float32(1.03)), (key, tensor.reshape(6, 4)),
                   (key, tensor.astype(np.float64)), (f"{key}0", tensor)]  # fmt: skip
        for name, changed in changes:
            assert different("tensors", tensors, dict(sorted({**others, name: changed}.items())))
