"""What a phase trains on: a seed's training set, or rows that are made before its first step.

Dear rows, such as samples of the parent's model, are made once by all workers together, with randomness that depends on
the parent and the settings alone, and kept in the store as one object beside what they cost. A resumed or repeated run
reads them.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from harness.budget import Cost
from harness.checkpoint import DamagedObject, Store
from harness.collective import Collective, share
from harness.contracts import Problem, Sampling
from harness.generation_price import cost_of
from harness.identity import content_hash, derived_seed
from harness.kept_models import kept_flow
from harness.matrix_products import MatrixProductCounter
from harness.plan import Branch, Phase
from models.contracts import Batch, Random


def data_key(branch: Branch, sampling: Sampling) -> str:
    """The name of made rows: the same parent and settings give the same rows."""
    return content_hash({"parent": branch.parent, "sampling": sampling.settings})


def making_cost(problem: Problem, store: Store, branch: Branch) -> Cost:
    """What the rows of a branch cost when they were made; nothing where they were given, or are not made yet."""
    sampling = problem.sampling(branch.phase.objective)
    known = None if sampling is None or not sampling.kept else store.made_data(data_key(branch, sampling))
    return Cost() if known is None else Cost(**known["cost"])


class PhaseData:
    """The data of a trial's phases, on a device; every set is loaded or made when it is first needed."""

    def __init__(self, problem: Problem, store: Store, collective: Collective, device: torch.device) -> None:
        self.problem = problem
        self.store = store
        self.collective = collective
        self.device = device
        self._known: dict[str, Batch] = {}

    def of(self, branch: Branch) -> Batch:
        """What a branch trains on."""
        sampling = self.problem.sampling(branch.phase.objective)
        if sampling is None:
            return self._given(branch.seed)
        key = data_key(branch, sampling)
        if key not in self._known:
            made = self._kept(branch, sampling, key) if sampling.kept else drawn_alone(sampling, derived_seed(key))
            self._known[key] = on_device(made, self.device)
        return self._known[key]

    def stand_in(self, phase: Phase, seed: int) -> Batch:
        """Rows of the same number and shape, for the price of a step: base noise where rows are dear to make."""
        sampling = self.problem.sampling(phase.objective)
        if sampling is None:
            return self._given(seed)
        if not sampling.kept:
            return on_device(drawn_alone(sampling, seed), self.device)
        prior: Any = self.problem.flow(seed, phase.objective).prior
        return on_device(base_noise(prior, sampling.rows, seed), self.device)

    def _given(self, seed: int) -> Batch:
        key = f"seed {seed}"
        if key not in self._known:
            self._known[key] = on_device(self.problem.training_data(seed), self.device)
        return self._known[key]

    def _kept(self, branch: Branch, sampling: Sampling, key: str) -> Batch:
        """From the store; made first where it is not there or cannot be read."""
        if not self.collective.broadcast(self._is_readable(key) if self.collective.rank == 0 else None):
            self._make(branch, sampling, key)
        known = self.store.made_data(key)
        assert known is not None, f"rows {key} were made and must be in the store"
        tensors = self.store.get_state(known["object"])
        return Batch(x_BD=tensors["x"], force_BD=tensors.get("force"))

    def _is_readable(self, key: str) -> bool:
        known = self.store.made_data(key)
        try:
            return known is not None and bool(self.store.get(known["object"]))
        except DamagedObject:
            return False

    def _make(self, branch: Branch, sampling: Sampling, key: str) -> None:
        """All workers draw their rows, rank 0 puts them together and keeps them with their cost."""
        flow = kept_flow(self.problem, self.store, branch.parent, branch.seed) if sampling.from_parent else None
        start = time.perf_counter()
        with MatrixProductCounter() as counter:
            drawn = sampling.draw(flow if flow is None else flow.to(self.device), self._random(sampling.rows, key))
        seconds = time.perf_counter() - start
        tensors = {name: tensor.cpu() for name, tensor in drawn.tensors.items()}
        mine = (tensors, asdict(cost_of(drawn.work, flops=counter.flops, seconds=seconds)))
        shards = self.collective.gather(mine)
        if shards is not None:
            self._keep(sampling, key, branch, shards)
        self.collective.broadcast(None)  # the others read the rows next: they wait until these are there

    def _keep(
        self, sampling: Sampling, key: str, branch: Branch, shards: list[tuple[dict[str, Tensor], dict[str, Any]]]
    ) -> None:
        start = time.perf_counter()
        whole = {name: torch.cat([tensors[name] for tensors, _ in shards]) for name in shards[0][0]}
        batch, work = sampling.finish(whole, seed=derived_seed("finish", key))
        last = cost_of(work, flops=0.0, seconds=time.perf_counter() - start)
        cost = sum((Cost(**cost) for _, cost in shards), last)
        forces = {} if batch.force_BD is None else {"force": batch.force_BD}
        name = self.store.put_state({"x": batch.x_BD, **forces})
        value = {"object": name, "cost": asdict(cost), "parent": branch.parent, "sampling": dict(sampling.settings)}
        self.store.save_made_data(key, value)

    def _random(self, rows: int, key: str) -> Random:
        start, stop = share(rows, self.collective.rank, self.collective.workers)
        generator = torch.Generator().manual_seed(derived_seed("draw", key))
        return Random(generator=generator, global_size=rows, start=start, stop=stop)


def base_noise(prior: Any, rows: int, seed: int) -> Batch:
    """Rows of the base without forces that mean anything: what a step costs does not depend on where its rows lie."""
    generator = torch.Generator().manual_seed(seed)
    x_BD = prior.from_noise(torch.randn(rows, prior.space.dim, generator=generator))
    return Batch(x_BD=x_BD, force_BD=torch.zeros_like(x_BD))


def drawn_alone(sampling: Sampling, seed: int) -> Batch:
    """Cheap rows, drawn as a whole by every worker."""
    generator = torch.Generator().manual_seed(seed)
    random = Random(generator=generator, global_size=sampling.rows, start=0, stop=sampling.rows)
    batch, _ = sampling.finish(dict(sampling.draw(None, random).tensors), seed=seed)
    return batch


def on_device(batch: Batch, device: torch.device) -> Batch:
    forces = None if batch.force_BD is None else batch.force_BD.to(device)
    return Batch(x_BD=batch.x_BD.to(device), force_BD=forces)
