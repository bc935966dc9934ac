"""Counting the operations of matrix products while they are done."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class MatrixProductCounter(TorchDispatchMode):
    """Counts the operations of matrix products, forward and backward, by torch's own formulas.

    torch's FlopCounterMode does the same, but its module tracker refuses `autograd.grad` with respect to leaves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out
