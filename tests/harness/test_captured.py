"""Recorded gradients: inputs and results in fixed memory, and on a GPU the numbers of the eager call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from harness.captured import CapturedGradient, record_on_cuda
from harness.collective import Alone
from harness.loop import Trainer, TrainState
from harness.plan import Branch, Optimiser, Phase
from models.contracts import Batch, GradientSum, Prepared, Recordable, Space, whole_batch
from models.couplings import Independent
from models.fields.egnn import EGNN
from models.flows.continuous import ContinuousFlow
from models.flows.prior import GaussianPrior
from models.objectives.flow_matching import FlowMatching
from models.objectives.path_gradient import PathGradient

SPACE = Space(dim=8, particles=4)
OBJECTIVE = FlowMatching(coupling=Independent(), sigma=0.01)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="records a CUDA graph")


def record_on_host(call: Callable[[], GradientSum]) -> tuple[Callable[[], None], GradientSum]:
    """What a graph does, without a GPU: every replay writes its results where those of the recording lie."""
    results = call()

    def replay() -> None:
        again = call()
        results.loss_sum.copy_(again.loss_sum)
        for held, gradient in zip(results.gradients, again.gradients, strict=True):
            held.copy_(gradient)

    return replay, results


def flow_on(device: str) -> ContinuousFlow:
    torch.manual_seed(0)
    return ContinuousFlow(prior=GaussianPrior(space=SPACE), field=EGNN(4, 2, 8, 2)).to(device)


def prepared(flow: ContinuousFlow, seed: int, rows: int = 6) -> Prepared:
    x_BD = SPACE.project(torch.randn((rows, 8), generator=torch.Generator().manual_seed(seed)))
    made = OBJECTIVE.prepare(flow.prior, Batch(x_BD=x_BD), whole_batch(rows, seed))
    return made.to(next(flow.parameters()).device)


def check_same(found: GradientSum, eager: GradientSum, *, tolerance: float) -> None:
    assert (found.weight, found.work) == (eager.weight, eager.work)
    torch.testing.assert_close(found.loss_sum, eager.loss_sum, rtol=tolerance, atol=tolerance)
    for one, other in zip(found.gradients, eager.gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("where", ["host", pytest.param("cuda", marks=needs_gpu)])
def test_replays_are_the_eager_gradients_of_their_rows_and_weights(where: str) -> None:
    on_gpu = where == "cuda"
    flow = flow_on("cuda" if on_gpu else "cpu")
    captured = CapturedGradient(OBJECTIVE, flow, record=record_on_cuda if on_gpu else record_on_host)
    tolerance = 1e-5 if on_gpu else 0.0
    batches = [prepared(flow, seed) for seed in range(3)]
    found = [captured(batch) for batch in batches]
    for batch, gradient in zip(batches, found, strict=True):
        check_same(gradient, OBJECTIVE.gradient(flow, batch), tolerance=tolerance)
    assert not torch.equal(found[0].loss_sum, found[1].loss_sum)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(1.5)
    check_same(captured(batches[0]), OBJECTIVE.gradient(flow, batches[0]), tolerance=tolerance)
    assert not torch.equal(captured(batches[0]).loss_sum, found[0].loss_sum)


def test_every_shape_is_recorded_once_and_sums_keep_their_parts() -> None:
    flow = flow_on("cpu")
    calls = 0

    def counting(call: Callable[[], GradientSum]) -> tuple[Callable[[], None], GradientSum]:
        nonlocal calls
        calls += 1
        return record_on_host(call)

    captured = CapturedGradient(OBJECTIVE, flow, record=counting)
    whole = prepared(flow, 0, rows=7)
    first, second, third = (captured(part) for part in whole.slices(3))
    assert calls == 2
    summed = first + second + third
    eager = OBJECTIVE.gradient(flow, whole)
    assert (summed.weight, summed.work) == (eager.weight, eager.work)
    torch.testing.assert_close(summed.loss_sum, eager.loss_sum)
    for one, other in zip(summed.gradients, eager.gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_trainer_records_on_a_gpu_alone_and_only_what_may_be_recorded() -> None:
    assert isinstance(OBJECTIVE, Recordable)
    assert not isinstance(PathGradient(kl="forward"), Recordable)
    flow = flow_on("cpu")
    phase = Phase(name="fm", objective={"kind": "fm"}, optimiser=Optimiser(learning_rate=1e-3), batch=6)
    data = Batch(x_BD=SPACE.project(torch.randn((12, 8), generator=torch.Generator().manual_seed(1))))
    trainer = Trainer.of(Branch(parent="", phase=phase, seed=0), OBJECTIVE, data, Alone())
    state = TrainState.start(flow, phase)
    trainer.step(state)
    assert state.recorded is None


@needs_gpu
def test_training_with_a_recorded_gradient_is_training() -> None:
    phase = Phase(name="fm", objective={"kind": "fm"}, optimiser=Optimiser(learning_rate=1e-3), batch=6)
    data = Batch(x_BD=SPACE.project(torch.randn((12, 8), generator=torch.Generator().manual_seed(1))))
    ends = {}
    for device in ("cpu", "cuda"):
        trainer = Trainer.of(Branch(parent="", phase=phase, seed=0), OBJECTIVE, data, Alone())
        state = TrainState.start(flow_on(device), phase)
        for _ in trainer.steps(state, to=8):
            pass
        assert (state.recorded is None) == (device == "cpu")
        ends[device] = torch.cat([p.detach().cpu().flatten() for p in state.flow.parameters()])
    torch.testing.assert_close(ends["cuda"], ends["cpu"], rtol=1e-3, atol=1e-5)
