"""How much of the variance of a result each hyperparameter explains: functional ANOVA (Hutter et al. 2014)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import create_trial

from harness.adapters.optuna_search import distribution_of, labels_of
from harness.contracts import Choice, SearchSpace

TREES = 16


def fanova(
    space: SearchSpace, points: Sequence[Mapping[str, Any]], results: Sequence[float], *, seed: int
) -> dict[str, float]:
    """Share of the variance of the results, over the space, that each name explains by itself.

    Shares sum to one at most: what two names explain only together is left out of both. Where all results are alike,
    all shares are zero.

    Args:
        points: values by name, inside the space. results: finite, one a point.

    Raises:
        ValueError: for fewer than two points.
    """
    if len(points) < 2:
        raise ValueError(f"importance is asked of at least two points, got {len(points)}; try more points first")
    if min(results) == max(results):
        return dict.fromkeys(space, 0.0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: distribution_of(name, domain) for name, domain in space.items()}
    study = optuna.create_study()
    for values, result in zip(points, results, strict=True):
        params = {name: _stored(space, name, values[name]) for name in space}
        study.add_trial(create_trial(params=params, distributions=distributions, value=result))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = FanovaImportanceEvaluator(n_trees=TREES, seed=seed).evaluate(study)
    return {name: float(found.get(name, 0.0)) for name in space}


def _stored(space: SearchSpace, name: str, value: Any) -> Any:
    domain = space[name]
    return labels_of(domain)[domain.options.index(value)] if isinstance(domain, Choice) else value
