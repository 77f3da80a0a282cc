"""Files of tensors: what is written is what is read, and each lie of a header has its sentence."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from edited_models import join_file

from diffuse_cli.models import tensor_file
from diffuse_cli.system.descriptors import open_regular_file

TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.tensor(2.5),
    "c": torch.arange(4, dtype=torch.int64),
    "empty": torch.zeros(0, 3),
    "half": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
    "other half": torch.tensor([3.25], dtype=torch.float16),
    "double": torch.tensor([0.1], dtype=torch.float64),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "t.safetensors"
    tensor_file.write(found, TENSORS, {"z": "1", "a": "2"})
    return found


def fault(path: Path, header: object, body: bytes) -> str:
    path.write_bytes(join_file(header, body))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        tensor_file.read(path)
    return str(caught.value)


def test_what_is_written_is_what_is_read(path: Path):
    for found in (tensor_file.read(path), safetensors.torch.load_file(path)):
        assert found.keys() == TENSORS.keys()
        assert all(
            found[n].dtype == t.dtype and found[n].equal(t) and found[n].shape == t.shape
            for n, t in TENSORS.items()
        )
    with open_regular_file(path) as file:
        assert tensor_file.read_header(file).metadata == {"a": "2", "z": "1"}
    safetensors.torch.save_file(TENSORS, path)
    assert all(t.equal(TENSORS[n]) for n, t in tensor_file.read(path).items())


def test_tensors_have_memory_of_their_own(path: Path):
    found = tensor_file.read(path)
    assert found["b"].data_ptr() != found["c"].data_ptr()
    assert all(tensor.data_ptr() % 64 == 0 for tensor in found.values())
    found["b"].zero_()
    assert tensor_file.read(path)["b"].equal(TENSORS["b"])


def test_a_header_that_could_not_be_read_again_is_not_written(path: Path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="header"):
        tensor_file.write(path, TENSORS, {"long": "x" * tensor_file.LARGEST_HEADER})
    assert path.read_bytes() == before


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "size", "says"),
    [
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "b overlaps another"),
        ({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, 8, "overlaps another"),
        ({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, 20, "b follows unused bytes"),
        ({"a": entry(4, 12, [2])}, 12, "a follows unused bytes"),
        ({"a": entry(0, 8, [2])}, 9, "too long: 9 bytes of data, not 8"),
        ({"a": entry(0, 8, [2])}, 7, "truncated or too long: 7 bytes of data, not 8"),
        ({"a": entry(0, 8, [3])}, 8, "another size than its shape"),
        ({"a": entry(8, 0, [2])}, 8, "has another size than its shape"),
        ({"a": entry(0, 8, [2**40, 2**40])}, 8, "has another size than its shape"),
        ({"a": entry(0, 8, [-2])}, 8, "has an invalid shape or offset"),
        ({"a": entry(0, 8, [True, 2])}, 8, "has an invalid shape or offset"),
        ({"a": entry(0, 8, [2.0])}, 8, "has an invalid shape or offset"),
        ({"a": entry(0, 8, [10**30])}, 8, "has an invalid shape or offset"),
        ({"a": entry(0, 8, [1] * 9 + [2])}, 8, "has an invalid shape or offset"),
        *(
            ({"a": {**entry(0, 8, [2]), "data_offsets": at}}, 8, "has an invalid shape or offset")
            for at in ([0], [], "ab", None, [0.0, 8.0], [-8, 0])
        ),
        *(
            ({"a": described}, 8, "not described as a tensor")
            for described in ({}, [], None, "F32")
        ),
        ({"a": {**entry(0, 8, [2]), "more": 1}}, 8, "not described as a tensor"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "not described as a tensor"),
        ({"a": entry(0, 8, [2], "F31")}, 8, "a has the unknown type F31"),
        ({"a\n\x1b[2J": 5}, 0, "a\\n\\x1b[2J is not described"),
        ({"__metadata__": {"a": 5}}, 0, "metadata are not all text"),
        ({"__metadata__": ["a"]}, 0, "metadata are not all text"),
        (b'{"a":1,"a":1}', 0, "repeats a key"),
        (b'{"a":NaN}', 0, "NaN is not JSON"),
        (b'{"a":-Infinity}', 0, "-Infinity is not JSON"),
        (b"[" * 33 + b"]" * 33, 0, "too many parts or levels"),
        (b"[" + b"[]," * 100_000 + b"[]]", 0, "too many parts or levels"),
        (b"[" + b"0," * 400_001 + b"0]", 0, "too many parts or levels"),
        (b"[]", 0, "not a JSON object"),
        (b" " * (8 * 2**20 + 1), 0, "exceeds 8,388,608"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_lie_has_its_sentence(path: Path, header: object, size: int, says: str):
    assert says in fault(path, header, bytes(size))


def test_a_list_may_be_deep_and_marks_within_texts_are_none():
    assert tensor_file.parse_json(b"[" * 32 + b"]" * 32)
    text = json.dumps({"a": '[{"\\' * 200_000}).encode()
    assert len(tensor_file.parse_json(text)["a"]) == 800_000


def test_a_file_that_shrinks_while_it_is_read_is_noticed(path: Path):
    tensor_file.write(path, {"large": torch.zeros(100_000)})
    with open_regular_file(path) as file:
        header = tensor_file.read_header(file)
        with path.open("r+b") as other:
            other.truncate(path.stat().st_size - 40)
        with pytest.raises(ValueError, match="truncated while it was read"):
            tensor_file.read_tensors(file, header)


def test_of_a_file_that_is_replaced_the_checked_one_is_read(path: Path):
    with open_regular_file(path) as file:
        header = tensor_file.read_header(file)
        tensor_file.write(path, {"b": torch.ones(2, 3)})
        assert tensor_file.read_tensors(file, header)["b"].equal(TENSORS["b"])


def test_a_header_needs_no_more_than_its_part_of_a_file(path: Path):
    """What follows the header is not read to know it."""
    read = []

    class Watching(io.FileIO):
        def readall(self):  # type: ignore[override]
            raise AssertionError("all was read")

        def read(self, size=-1):  # type: ignore[override]
            read.append(size)
            return super().read(size)

    with Watching(path) as file:
        tensor_file.read_header(file)
    assert sum(read) == path.stat().st_size - sum(t.nbytes for t in TENSORS.values())
