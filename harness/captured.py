"""A gradient as one CUDA graph: recorded once for a shape, then replayed without launching its kernels one by one.

The eager call is the reference: a replay runs the same kernels on the same numbers. Weights are read where they lie, so
an optimiser that changes them in place needs no new recording.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from models.contracts import GradientSum, Objective, Prepared, Work

WARM_UPS = 3
"""Eager calls before a recording, so that libraries have chosen their kernels and made their work spaces."""

Shapes = tuple[tuple[str, torch.Size, torch.dtype], ...]


class Record(Protocol):
    """Records what a call does and gives back a way to do it again, with results in the same memory."""

    def __call__(self, call: Callable[[], GradientSum]) -> tuple[Callable[[], None], GradientSum]: ...


def record_on_cuda(call: Callable[[], GradientSum]) -> tuple[Callable[[], None], GradientSum]:
    """A CUDA graph of the call, and its results, which every replay writes anew."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph.replay, results


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recorded gradient: where its inputs lie, how to run it, and where its results lie."""

    inputs: Prepared
    replay: Callable[[], None]
    results: GradientSum

    def run(self, prepared: Prepared) -> GradientSum:
        """The gradient of other rows of the same shape, in memory of its own."""
        for name, held in self.inputs.tensors.items():
            held.copy_(prepared[name])
        self.replay()
        return replace(
            self.results,
            gradients=tuple(gradient.clone() for gradient in self.results.gradients),
            loss_sum=self.results.loss_sum.clone(),
            work=self.results.work + prepared.work,
        )


class CapturedGradient:
    """`objective.gradient` of one flow, recorded once for each shape of rows.

    Args:
        objective: one whose gradient may be recorded: fixed shapes, no look at numbers from the host, no random draws.
        flow: changed in place only. record: how; on the GPU that the flow is on by default.
    """

    def __init__(self, objective: Objective, flow: Any, *, record: Record = record_on_cuda) -> None:
        self.objective = objective
        self.flow = flow
        self.record = record
        self.recordings: dict[Shapes, Recording] = {}

    def __call__(self, prepared: Prepared) -> GradientSum:
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in prepared.tensors.items())
        if shapes not in self.recordings:
            self.recordings[shapes] = self._recorded(prepared)
        return self.recordings[shapes].run(prepared)

    def _recorded(self, prepared: Prepared) -> Recording:
        inputs = Prepared(tensors={name: tensor.clone() for name, tensor in prepared.tensors.items()}, work=Work())
        replay, results = self.record(lambda: self.objective.gradient(self.flow, inputs))
        return Recording(inputs=inputs, replay=replay, results=results)
