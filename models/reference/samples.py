"""The front door to reference samples: train, validation and test rows of any target, cached on disk.

Targets that can be sampled exactly are; molecules are sampled by HMC with pivots, all others by HMC, each set from
chains of its own.
Shape suffixes: B rows, D coordinates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.contracts import SampledTarget, Target
from models.reference import cache
from models.reference.drawing import draw_by_hmc, draw_exactly
from models.reference.fingerprint import fingerprint
from models.reference.hmc import HmcSettings
from models.reference.pivot_drawing import draw_by_pivots
from models.reference.pivots import Molecule, PivotSettings
from models.reference.progress import Bar, silent

Settings = HmcSettings | PivotSettings
CODE_VERSION = 1
"""Raise it when a change of this package changes the samples: old cache files are then left alone."""
SETS = ("train", "validation", "test")
RECORD_FIELDS = ("diagnostics", "source", "energy_evaluations", "force_evaluations", "device_seconds")
"""What a cache file keeps beside the rows."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSamples:
    """Samples of a target, and what they cost.

    Attributes:
        train_BD, validation_BD, test_BD: float32 rows in random order, so that any prefix is a fair subset.
        diagnostics: acceptance, split R-hat, autocorrelation times, effective numbers, mean energy, virial.
        source: one line on how they were made.
        energy_evaluations, force_evaluations: all that were called, burn-in included. device_seconds: spent on them.
    """

    train_BD: Tensor
    validation_BD: Tensor
    test_BD: Tensor
    diagnostics: Mapping[str, float]
    source: str
    energy_evaluations: int
    force_evaluations: int
    device_seconds: float


def _make(
    target: Target, sizes: tuple[int, ...], seed: int, settings: Settings, progress: bool, partial: Path | None
) -> ReferenceSamples:
    bar = Bar(target.name)
    shown = bar if progress else silent
    if isinstance(target, SampledTarget):
        drawn = draw_exactly(target, sizes, seed)
    elif isinstance(target, Molecule) and isinstance(settings, PivotSettings):
        drawn = draw_by_pivots(target, sizes, seed, settings, shown, partial=partial)
    else:
        assert isinstance(settings, HmcSettings)
        drawn = draw_by_hmc(target, sizes, seed, settings, shown)
    bar.close()
    train_BD, validation_BD, test_BD = drawn.sets
    return ReferenceSamples(
        train_BD=train_BD,
        validation_BD=validation_BD,
        test_BD=test_BD,
        diagnostics=drawn.diagnostics,
        source=drawn.source,
        energy_evaluations=drawn.work.energy_evaluations,
        force_evaluations=drawn.work.force_evaluations,
        device_seconds=drawn.device_seconds,
    )


def _store(path: Path, samples: ReferenceSamples) -> None:
    arrays = {name: getattr(samples, f"{name}_BD").numpy() for name in SETS}
    cache.save(path, arrays, {name: getattr(samples, name) for name in RECORD_FIELDS})


def _restore(path: Path) -> ReferenceSamples | None:
    found = cache.load(path)
    if found is None:
        return None
    arrays, record = found
    sets = {f"{name}_BD": torch.from_numpy(arrays[name]) for name in SETS}
    return ReferenceSamples(**(sets | record))


def reference_samples(
    target: Target,
    *,
    n_train: int,
    n_validation: int,
    n_test: int,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    progress: bool = True,
    settings: Settings | None = None,
) -> ReferenceSamples:
    """Samples of a target for training, validation and test, made once and then read from the cache.

    Args:
        target: sampled exactly where it has `sample`, with pivots where it is a molecule, by HMC otherwise.
        n_train, n_validation, n_test: rows of each set, at least two.
        seed: of everything random.
        cache_dir: holds one file for each (target, sizes, seed, settings); None keeps nothing.
        progress: show a bar on stderr.
        settings: of the HMC, of whose kind there is one for molecules; ignored for exact targets.

    A molecule's run that was killed goes on where it last saved itself beside the cache.

    Errors: ValueError for sizes below two, pivots of what is no molecule, or where chains cannot be started.
    """
    sizes = (n_train, n_validation, n_test)
    if min(sizes) < 2:
        raise ValueError(f"each set needs at least two rows, got {dict(zip(SETS, sizes, strict=True))}; ask for more")
    settings = settings or (PivotSettings() if isinstance(target, Molecule) else HmcSettings())
    if isinstance(settings, PivotSettings) and not isinstance(target, Molecule):
        raise ValueError(f"pivots turn the bonds of molecules, got {target.name} without topology; write HmcSettings()")
    if cache_dir is None:
        return _make(target, sizes, seed, settings, progress, None)
    exact = isinstance(target, SampledTarget)
    key = {"version": CODE_VERSION, "target": fingerprint(target), "sizes": sizes, "seed": seed}
    key["settings"] = None if exact else asdict(settings)
    readable_name = re.sub(r"\W+", "_", target.name)
    path = Path(cache_dir) / f"{readable_name}-{cache.content_hash(key)[:20]}.npz"
    stored = _restore(path)
    if stored is None:
        stored = _make(target, sizes, seed, settings, progress, path.with_suffix(".partial"))
        _store(path, stored)
    return stored
