"""How the weights of layers begin."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FILLING = {
    *(getattr(Tensor, name) for name in ("uniform_", "normal_", "fill_", "zero_")),
    *(getattr(nn.init, name) for name in vars(nn.init) if name.endswith("_") and name[0] != "_"),
}
"""What draws weights, or sets them."""


class Undrawn(TorchFunctionMode):
    """Layers are built without values for their weights, for the meta device, where there are none:
    pretending to draw them takes longer than drawing them."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, unless it would fill a tensor."""
        kwargs = kwargs or {}
        if func in FILLING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def zeroed(module: Any) -> Any:
    """Set a layer's parameters to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def balanced(module: Any) -> Any:
    """Draw a linear layer's weights as large for its input as for its output (Glorot & Bengio
    2010, eq. 16); its bias is zero."""
    nn.init.xavier_uniform_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module
