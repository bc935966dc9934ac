"""A system as a study trains and judges it: flow, objectives, training data, sharded evaluation, estimates.

Built on every worker from plain settings, so that the settings alone say what was done.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from models.contracts import Batch, Objective, Random, SampledTarget, Target, whole_batch
from models.controlled import ControlledSampler
from models.estimators import (
    DataRecords,
    Estimate,
    ModelRecords,
    SampleRecords,
    WeightedRecords,
    estimate_all,
    estimate_samples,
    estimate_weighted,
    mean_estimate,
    modes_covered_estimate,
    pair_distances,
)
from models.flows.continuous import ContinuousFlow
from models.flows.coupling import CouplingFlow
from models.flows.diffusion import ProbabilityFlow
from models.flows.solvers import Dopri5
from models.generators import Sizes, model_for, model_of
from models.made_rows import MadeRows, made_rows_of
from models.molecules.labelling import AnyLabelling
from models.molecules.observables import molecular_estimates, molecular_picture
from models.objective_settings import objective_of
from models.objectives.flow_matching import flow_matching_loss
from models.problem_settings import EVALUATION_POOL, TRAINING_SEED, check_settings, is_exact
from models.reference.fingerprint import fingerprint
from models.reference.forces import forces_at
from models.reference.pivots import Molecule
from models.reference.published import read_published
from models.reference.samples import ReferenceSamples, reference_samples
from models.systems import System, is_address, system_of, with_atom_classes
from models.targets.gaussian_mixture import GaussianMixture

POOL_FACTOR = 2
"""Reference rows per training row where exact draws are impossible: seeds train on different halves of the pool."""
SETS = ("validation", "test", "model")
"""What an evaluation looks at, unless its settings name some of these."""
EVALUATION_SEED = 20_230_623
"""Of the base noise that every evaluation shares."""


def build(settings: Mapping[str, Any], *, cache: Path) -> BoltzmannProblem:
    """The problem of {"system": ..., "evaluation": ...}; reference samples are read from or made in `cache`.

    Raises:
        ValueError: where settings are missing.
    """
    check_settings(settings)
    return BoltzmannProblem(system=settings["system"], evaluation=settings["evaluation"], cache=cache)


@dataclass(frozen=True, kw_only=True)
class BoltzmannProblem:
    """Fulfils the harness's Problem."""

    system: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    cache: Path

    @cached_property
    def physics(self) -> System:
        """The system that the settings name.

        Raises:
            ValueError: where a user's target has become another one since the settings were made.
        """
        name, known = self.system["target"], self.system["fingerprint"]
        system = with_atom_classes(system_of(name), self.system.get("atom_classes", "distinct"))
        if is_address(name) and fingerprint(system.target) != known:
            raise ValueError(
                f"a study keeps its energy, but {name} has another one here than where the study began; "
                "undo the change or start anew, and let all workers import the same file"
            )
        return system

    @cached_property
    def reference(self) -> ReferenceSamples:
        """Own reference samples: made once, then read; validation and test come from chains of their own.

        The sizes do not depend on how many points an evaluation uses, so the training pool does not either.
        """
        exact = is_exact(self.physics.target)
        n = EVALUATION_POOL
        n_train = 2 if exact else POOL_FACTOR * self.system["train_samples"]
        target = self.physics.target
        if isinstance(target, AnyLabelling):  # one labelling has all of the configurations
            target = target.molecule
        return reference_samples(target, n_train=n_train, n_validation=n, n_test=n, cache_dir=self.cache)

    def points(self, split: Literal["validation", "test"]) -> Tensor:
        """The data points that every evaluation of a study shares, (samples, D) in float64."""
        n, published = self.evaluation["samples"], self.evaluation.get("data")
        if split == "test" and published is not None:
            return read_published(published, self.physics.target, first=n, dtype=torch.float64)
        pool_BD = self.reference.validation_BD if split == "validation" else self.reference.test_BD
        return self.physics.target.space.project(pool_BD[:n].double())

    def model(self, objective: Mapping[str, Any] | None) -> Mapping[str, Any]:
        return model_of(objective)

    def flow(self, seed: int, objective: Mapping[str, Any] | None = None) -> Any:
        """A ContinuousFlow, a CouplingFlow for bootstrapping, or a ControlledSampler for controlled paths."""
        known = ("hidden", "layers", "prior_std", "field_length")
        sizes = Sizes(**{name: self.system[name] for name in known if name in self.system})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return model_for(model_of(objective), self.physics.target, sizes)

    def sampling(self, objective: Mapping[str, Any]) -> MadeRows | None:
        return made_rows_of(objective, self.physics.target)

    def objective(self, settings: Mapping[str, Any]) -> Objective:
        return objective_of(settings, self.physics)

    def training_data(self, seed: int) -> Batch:
        x_BD = self._training_rows(seed)
        return Batch(x_BD=x_BD, force_BD=forces_at(self.physics.target, x_BD, cache_dir=self.cache))

    def _training_rows(self, seed: int) -> Tensor:
        n, target = self.system["train_samples"], self.physics.target
        generator = torch.Generator().manual_seed(seed)
        if self.system["data"] is not None:
            pool = read_published(Path(self.system["data"]), target)
        elif isinstance(target, SampledTarget):
            return target.sample(n, torch.Generator().manual_seed(TRAINING_SEED + seed)).float()
        else:
            pool = self.reference.train_BD
        return pool[torch.randperm(len(pool), generator=generator)[:n]].float()

    def evaluate(
        self, flow: ContinuousFlow | CouplingFlow | ControlledSampler, *, rank: int, workers: int
    ) -> dict[str, np.ndarray]:
        """This worker's share of the records.

        A coupling flow has no path, so that its length is the distance from end to end, and no loss of flow matching.
        Settings may name the sets that are wanted; validation points alone are a third of the work.
        """
        dtype = getattr(torch, self.evaluation["dtype"])
        judged = copy.deepcopy(flow).to(dtype)
        n = self.evaluation["samples"]
        rows = slice(n * rank // workers, n * (rank + 1) // workers)
        if isinstance(judged, ControlledSampler):
            return _prefixed("model", self._weighted_records(judged, rows))
        tolerance = self.evaluation["tolerance"]
        solver = {} if isinstance(judged, CouplingFlow) else {"solver": Dopri5(rtol=tolerance, atol=tolerance)}
        device = next(flow.parameters()).device
        records: dict[str, np.ndarray] = {}
        sets = self.evaluation.get("sets", SETS)
        for split in (name for name in sets if name != "model"):
            x_BD = self.points(split).to(device=device, dtype=dtype)
            records |= _prefixed(split, self._data_records(judged, x_BD, rows, solver))
        return records | (_prefixed("model", self._model_records(judged, rows, solver)) if "model" in sets else {})

    def _data_records(
        self, flow: ContinuousFlow | CouplingFlow, x_BD: Tensor, rows: slice, solver: Mapping[str, Any]
    ) -> DataRecords:
        pulled = flow.pull(x_BD[rows], **solver)
        loss = None  # that of flow matching says nothing of a velocity that is half a score
        if isinstance(flow, ContinuousFlow) and not isinstance(flow.field, ProbabilityFlow):
            loss = _array(flow_matching_loss(flow, x_BD, whole_batch(len(x_BD), EVALUATION_SEED))[rows])
        return DataRecords(
            sample_id=np.arange(rows.start, rows.stop),
            log_q=_array(pulled.log_q_B),
            energy=_array(self.physics.target.energy(x_BD[rows])),
            length=_array(pulled.length_B),
            displacement=_array((pulled.x1_BD - pulled.x0_BD).norm(dim=1)),
            fm_loss=loss,
        )

    def _model_records(
        self, flow: ContinuousFlow | CouplingFlow, rows: slice, solver: Mapping[str, Any]
    ) -> ModelRecords:
        like = next(flow.parameters())
        noise = torch.randn(
            (self.evaluation["samples"], self.physics.target.space.dim),
            generator=torch.Generator().manual_seed(EVALUATION_SEED),
            dtype=torch.float64,
        )
        pushed = flow.push(flow.prior.from_noise(noise[rows].to(like)), **solver)
        return ModelRecords(
            sample_id=np.arange(rows.start, rows.stop),
            x=_array(pushed.x1_BD).astype(np.float32),
            log_q=_array(pushed.log_q_B),
            energy=_array(self.physics.target.energy(pushed.x1_BD)),
            length=_array(pushed.length_B),
            displacement=_array((pushed.x1_BD - pushed.x0_BD).norm(dim=1)),
        )

    def _weighted_records(self, sampler: ControlledSampler, rows: slice) -> WeightedRecords:
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        n = self.evaluation["samples"]
        random = Random(generator=generator, global_size=n, start=rows.start, stop=rows.stop)
        path = sampler.draw(random, like=next(sampler.parameters()))
        return WeightedRecords(
            sample_id=np.arange(rows.start, rows.stop),
            x=_array(path.x_BD).astype(np.float32),
            energy=_array(self.physics.target.energy(path.x_BD)),
            log_weight=_array(path.log_weight_B),
        )

    def estimates(
        self, records: Mapping[str, np.ndarray], split: Literal["validation", "test"], *, expensive: bool = False
    ) -> dict[str, Estimate]:
        """Of a model without density, what its weighted samples tell; the split then makes no difference."""
        target = self.physics.target
        shared = self._against_test_points(expensive)
        model = _without_prefix("model", records)
        log_weight = model["log_weight"] if "log_weight" in model else -model["energy"] - model["log_q"]
        if "log_weight" in model:
            found = estimate_weighted(WeightedRecords.from_npz(model), **shared)
        else:
            data = DataRecords.from_npz(_without_prefix(split, records))
            own = {"prior_std": self.system["prior_std"], "log_z": target.log_z}
            found = estimate_all(data, ModelRecords.from_npz(model), **shared, **own)
        return found | self._modes(model["x"]) | self._molecular(model["x"], log_weight)

    def sample_estimates(self, x_BD: Tensor) -> dict[str, Estimate]:
        """What samples (B, D) alone tell against the test points: energies, distances, modes."""
        x_BD = x_BD.detach().cpu().double()
        energy = self.physics.target.energy(x_BD).numpy()
        samples = SampleRecords(sample_id=np.arange(len(x_BD)), x=x_BD.numpy(), energy=energy)
        found = estimate_samples(samples, **self._against_test_points(False))
        return found | self._modes(samples.x) | self._molecular(samples.x, None)

    def floor(self) -> dict[str, Estimate]:
        """The same of the validation points, which are drawn as the test points are: no sampler does better.

        Where log Z is known, also the negative log-likelihood of the target's own density at the test points.
        """
        target = self.physics.target
        found = self.sample_estimates(self.points("validation"))
        if target.log_z is not None:
            found["nll"] = mean_estimate(target.energy(self.points("test")).numpy() + target.log_z, seed=0)
        return found

    def _against_test_points(self, expensive: bool) -> dict[str, Any]:
        target, reference_BD = self.physics.target, self.points("test")
        return {
            "reference_x": reference_BD.numpy(),
            "reference_energy": target.energy(reference_BD).numpy(),
            "space": target.space,
            "seed": 0,
            "expensive": expensive or self.evaluation.get("transport", False),
        }

    def _modes(self, x: np.ndarray) -> dict[str, Estimate]:
        target = self.physics.target
        if not isinstance(target, GaussianMixture):
            return {}
        width = math.sqrt(target.variance)
        return {"modes_covered": modes_covered_estimate(x, target.means_KD.numpy(), width=width, seed=0)}

    def _molecular(self, x: np.ndarray, log_weight: np.ndarray | None) -> dict[str, Estimate]:
        target = self.physics.target
        if not isinstance(target, Molecule):
            return {}
        reference = self.points("test").numpy()
        return molecular_estimates(
            in_order(x, target), target.topology, reference_mD=reference, log_weight_n=log_weight, seed=0
        )

    def data_cost(self) -> dict[str, Any]:
        """Reference samples and the forces at one training set (energies in kT; seconds where they were made)."""
        target, reference = self.physics.target, self.reference
        forces = reference.force_evaluations + self.system["train_samples"]
        return {
            "samples": self.system["train_samples"],
            "energy_evaluations": reference.energy_evaluations,
            "force_evaluations": forces,
            "flops": float(target.energy_flops * (reference.energy_evaluations + forces)),
            "device_seconds": reference.device_seconds,
        }

    def data_report(self) -> dict[str, Any]:
        """How reference samples were made, with acceptance, autocorrelation, split R-hat and effective number."""
        published = self.evaluation.get("data")
        test = "" if published is None else f"; test points: the first {self.evaluation['samples']} rows of {published}"
        return {"source": self.reference.source + test, **self.reference.diagnostics}

    def picture(self, records: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        target = self.physics.target
        if records is None:
            x_BD = self.points("test")
            x, energy = x_BD.numpy(), target.energy(x_BD).numpy()
        else:
            x, energy = records["model/x"], records["model/energy"]
        if isinstance(target, Molecule):
            shown = {"energy": energy, **molecular_picture(in_order(x, target), target.topology)}
            log_q = None if records is None else records.get("model/log_q")
            return shown if log_q is None else {**shown, "log_weight": -energy - log_q}
        if target.space.mean_free:
            return {"energy": energy, "distances": pair_distances(x, target.space)}
        return {"energy": energy, "x": x} if target.space.dim == 2 else {"energy": energy}


def in_order(x: np.ndarray, target: Target) -> np.ndarray:
    """Samples of a molecule with its atoms in the order of the topology."""
    return _array(target.labelled(torch.from_numpy(x))) if isinstance(target, AnyLabelling) else x


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def _prefixed(group: str, records: DataRecords | ModelRecords | WeightedRecords) -> dict[str, np.ndarray]:
    return {f"{group}/{name}": column for name, column in records.to_npz_dict().items()}


def _without_prefix(group: str, records: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    start = f"{group}/"
    return {key.removeprefix(start): column for key, column in records.items() if key.startswith(start)}
