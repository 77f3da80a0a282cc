"""Bytes that a network keeps for a gradient, counted before anything is allocated."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass

import torch

from diffuse_cli.core.kernels import arrange_memory
from diffuse_cli.core.networks import Run
from diffuse_cli.models.blueprint import Blueprint

SLACK = {"cpu": 1.7}
"""Peak memory of a step over the memory kept for the backward pass: 1.2 to 2.0 measured on CPUs
(benchmarks/memory.py), where a system that runs out of memory kills the process. On other devices
running out of memory is an error, and the part is halved then."""


@dataclass(frozen=True)
class MemoryCost:
    """Bytes that do not depend on the images, for example of weights, and bytes for each image."""

    fixed: int
    image: int

    def total_bytes(self, images: int, slack: float = 1.0) -> int:
        """Return the bytes of a step with parts of `images` images."""
        return self.fixed + int(images * self.image * slack)


BATCH = 1009
"""Images of the counted batch. It is a large prime, so a storage whose size is a multiple of it is
kept for each image."""


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)
@torch.enable_grad()
def count_kept_bytes(
    blueprint: Blueprint, half: bool, checkpointing: bool, device: str = "cpu"
) -> MemoryCost:
    """Count the bytes that a network keeps for the backward pass, without its weights.

    With `checkpointing`, it keeps the inputs of its blocks, and the tensors of the largest block
    while that runs again. Fake tensors count the bytes without taking memory.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept_sizes: dict[int, int] = {}
    alive: list[torch.Tensor] = []
    largest = MemoryCost(0, 0)

    net = blueprint.build_on_meta()  # quickly built
    with FakeTensorMode(), torch.device(device):
        # `to_empty` and `arrange_weights` do not work with such tensors.
        for module in net.modules():
            for name, weight in module.named_parameters(recurse=False):
                fake = torch.empty(weight.shape, dtype=weight.dtype)
                setattr(module, name, torch.nn.Parameter(arrange_memory(fake)))
            for name, values in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(values.shape, dtype=values.dtype))
        weight_storages = {p.untyped_storage()._cdata for p in net.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weight_storages:
                kept_sizes[storage._cdata] = storage.nbytes()
                alive.append(tensor)  # so that no other storage takes its place
            return tensor

        def keep_inputs(block: Run, *inputs: object) -> torch.Tensor:
            nonlocal largest
            for tensor in inputs:
                if isinstance(tensor, torch.Tensor):
                    keep(tensor)
            before = dict(kept_sizes)
            h = block(*inputs)
            within = _split_sizes([kept_sizes[key] for key in kept_sizes.keys() - before.keys()])
            largest = max(largest, within, key=lambda cost: cost.total_bytes(BATCH))
            kept_sizes.clear()
            kept_sizes.update(before)
            return h

        if checkpointing:
            net.run_block = keep_inputs  # type: ignore[assignment]
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
            torch.autocast(device, torch.bfloat16, enabled=half),
        ):
            cond = blueprint.conditions.make_keywords(torch.zeros(BATCH, dtype=torch.long))
            net(torch.zeros(BATCH, *blueprint.input_space.shape), torch.zeros(BATCH), **cond)
    kept_cost = _split_sizes(kept_sizes.values())
    return MemoryCost(kept_cost.fixed + largest.fixed, kept_cost.image + largest.image)


def _split_sizes(sizes: Collection[int]) -> MemoryCost:
    """Divide the sizes of storages of `BATCH` images into fixed bytes and bytes per image."""
    images = sum(size for size in sizes if size % BATCH == 0)
    return MemoryCost(sum(sizes) - images, images // BATCH)
