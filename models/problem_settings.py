"""The plain settings that say which problem is trained and how its models are judged: part of every name in a store."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.contracts import SampledTarget, Target
from models.reference.fingerprint import fingerprint
from models.reference.published import read_published
from models.systems import AtomClasses, system_of, with_atom_classes

TRAINING_SEED = 1_000_000_007
"""Added to a study's seed for exact draws: validation and test points are drawn with small seeds of their own."""
EVALUATION_POOL = 10_000
"""Rows of the validation and of the test set; an evaluation takes the first of them."""
NAMES = {
    "system": ("target", "fingerprint", "train_samples", "data", "hidden", "layers", "prior_std"),
    "evaluation": ("samples", "tolerance", "dtype"),
}
"""Settings that every problem has."""


def system_settings(
    target: str,
    *,
    train_samples: int | None = None,
    data: Path | None = None,
    hidden: int | None = None,
    layers: int | None = None,
    atom_classes: AtomClasses = "distinct",
) -> dict[str, Any]:
    """The settings that decide what a model is trained on; part of the identity of everything trained.

    Args:
        target: a name or module:function. train_samples: rows of a training set. data: a published .npy file to train
            on instead of own reference samples. hidden, layers: of the field. atom_classes: that it tells apart.
    """
    system = with_atom_classes(system_of(target), atom_classes)
    if train_samples is not None and train_samples < 2:
        raise ValueError(f"a training set needs at least two rows, got {train_samples}; write for example 2000")
    settings = {
        "target": target,
        "fingerprint": fingerprint(system.target),
        "train_samples": system.recipe.train_samples if train_samples is None else train_samples,
        "data": None if data is None else str(data.resolve()),
        "hidden": system.hidden if hidden is None else hidden,
        "layers": system.layers if layers is None else layers,
        "prior_std": system.prior_std,
    }
    if system.field_length is not None:
        settings["field_length"] = system.field_length
    if system.target.space.types is not None:
        settings["types"] = list(system.target.space.types)
    if atom_classes != "distinct":
        settings["atom_classes"] = atom_classes
    if data is not None and data.is_file():
        settings["data_sha256"] = hashlib.sha256(data.read_bytes()).hexdigest()
    elif is_exact(system.target):
        settings["training_seed"] = TRAINING_SEED
    return settings


def check_settings(settings: Any) -> None:
    """Raise ValueError unless all that every problem is made of is there; a file that was cut may lack some of it."""
    for group, names in NAMES.items():
        known = settings.get(group) if isinstance(settings, Mapping) else None
        missing = [name for name in names if name not in known] if isinstance(known, Mapping) else names
        if missing:
            raise ValueError(
                f"a problem has the {group} settings {', '.join(names)}, got none of {', '.join(missing)}; run the "
                "command of the study again, which writes them anew"
            )


def is_exact(target: Target) -> bool:
    """Whether the target draws independent samples by itself."""
    return isinstance(target, SampledTarget)


def evaluation_settings(
    target: str,
    *,
    samples: int | None = None,
    tolerance: float = 1e-5,
    data: Path | None = None,
    transport: bool = False,
    validation_only: bool = False,
) -> dict[str, Any]:
    """The settings that decide how models are judged.

    Args:
        samples: points of each set and draws of the model. tolerance: of dopri5, relative and absolute.
        data: a published .npy file whose first rows are the test points; validation points stay own ones.
        transport: also transport distances between configurations (W2), which take seconds each.
        validation_only: neither test points nor the model's own samples, for what is decided on the way.
    """
    system = system_of(target)
    recipe = system.recipe
    if samples is not None and not 32 <= samples <= EVALUATION_POOL:
        raise ValueError(f"an evaluation takes 32 to {EVALUATION_POOL} samples, got {samples}; write for example 2048")
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"a solver's tolerance must be positive and finite, got {tolerance}; write for example 1e-5")
    dtype = str(recipe.evaluation_dtype).removeprefix("torch.")
    points = samples or recipe.evaluation_samples
    settings = {"samples": points, "tolerance": tolerance, "dtype": dtype}
    if transport:
        settings["transport"] = True
    if validation_only:
        settings["sets"] = ["validation"]
    if data is None:
        return settings
    read_published(data, system.target, first=points)  # a file that will not do is told now
    return {**settings, "data": str(data.resolve()), "data_sha256": hashlib.sha256(data.read_bytes()).hexdigest()}
