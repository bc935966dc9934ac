"""Per-sample records of an evaluation: what workers gather, store, and merge by sample id.

Shapes: n samples, D coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.estimators.estimate import Array


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Arrays that share their rows; row i belongs to the sample with id `sample_id[i]`."""

    sample_id: NDArray[np.int64]

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.to_npz_dict().items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of a record must have equal lengths, got {lengths}; gather all of them")

    def to_npz_dict(self) -> dict[str, NDArray]:
        """Named columns for np.savez; columns that were not measured are left out."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: np.asarray(column) for name, column in columns.items() if column is not None}

    @classmethod
    def from_npz(cls, columns: Mapping[str, NDArray]) -> Self:
        """From what `to_npz_dict` gave, or from an open npz file; other names in it are ignored."""
        return cls(**{f.name: columns[f.name] for f in fields(cls) if f.name in columns})

    @classmethod
    def merge(cls, shards: Sequence[Self], *, expected: int | None = None) -> Self:
        """One record of all shards in the order of their sample ids, which must follow each other without gap.

        Args:
            shards: records of disjoint samples, in any order; they must hold the same columns.
            expected: how many samples there must be in all.
        """
        tables = [shard.to_npz_dict() for shard in shards]
        names = {frozenset(table) for table in tables}
        if len(names) != 1:
            raise ValueError(f"shards must hold the same columns, got {[sorted(n) for n in names]}; gather all alike")
        whole = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
        order = np.argsort(whole["sample_id"], kind="stable")
        _check_ids(whole["sample_id"][order], expected)
        return cls.from_npz({name: column[order] for name, column in whole.items()})


@dataclass(frozen=True, kw_only=True)
class DataRecords(_Columns):
    """The flow at test points.

    Attributes:
        log_q: normalised log density of the test point. energy: in kT.
        length: int |v| dt on the way to the base. displacement: |x1 - x0|. fm_loss: per-sample loss, or None.
    """

    log_q: Array
    energy: Array
    length: Array
    displacement: Array
    fm_loss: Array | None = None


@dataclass(frozen=True, kw_only=True)
class ModelRecords(_Columns):
    """Samples of the flow.

    Attributes:
        x: samples (n, D). log_q: their normalised log density. energy: in kT.
        length: int |v| dt from the base. displacement: |x1 - x0|.
    """

    x: Array
    log_q: Array
    energy: Array
    length: Array
    displacement: Array


@dataclass(frozen=True, kw_only=True)
class SampleRecords(_Columns):
    """Samples alone, of whatever made them.

    Attributes:
        x: samples (n, D). energy: in kT.
    """

    x: Array
    energy: Array


@dataclass(frozen=True, kw_only=True)
class WeightedRecords(_Columns):
    """Samples of a model without density.

    Attributes:
        x: samples (n, D). energy: in kT. log_weight: of unbiased weights, whose mean is Z.
    """

    x: Array
    energy: Array
    log_weight: Array


def _check_ids(sorted_id: NDArray[np.int64], expected: int | None) -> None:
    steps = np.diff(sorted_id)
    if (steps == 0).any():
        repeated = np.unique(sorted_id[1:][steps == 0])
        raise ValueError(
            f"each sample id must occur once, got {len(repeated)} of them repeated (first {repeated[0]}); "
            "give every worker its own samples"
        )
    if (steps > 1).any():
        gap = int(sorted_id[:-1][steps > 1][0]) + 1
        raise ValueError(
            f"sample ids must follow each other, got a gap at {gap}; a shard is missing: gather all workers"
        )
    if expected is not None and len(sorted_id) != expected:
        raise ValueError(
            f"there must be {expected} samples, got {len(sorted_id)}; a shard is missing: gather all workers"
        )
