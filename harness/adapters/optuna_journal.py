"""The best points of an earlier search, read from a copy of its journal."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from harness.adapters.optuna_search import labels_of, loss_of
from harness.contracts import Choice, FloatRange, IntRange, SearchSpace


def best_before(journal: Path, space: SearchSpace, *, count: int) -> tuple[dict[str, Any], ...]:
    """Settings of the best finished points, the best first; names and values that the space lacks are left out.

    Raises:
        ValueError: where there is no journal or a damaged one, or no finished point with a setting of this space.
    """
    if not journal.is_file():
        raise ValueError(
            f"a sweep starts from the journal of an earlier one, got no file at {journal}; write --warm with the "
            "folder of a sweep"
        )
    try:
        ended = sorted(finished(journal), key=lambda pair: pair[0])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(
            f"a sweep starts from a journal of Optuna, got a damaged one at {journal} ({type(error).__name__}); "
            "leave --warm out, or write the folder of another sweep"
        ) from error
    points = [known for _, trial in ended if (known := inside(space, trial.params))]
    if not points:
        raise ValueError(
            f"a sweep starts from finished points of an earlier one, got none with settings of this one in {journal}; "
            "leave --warm out, or let that sweep run to its end"
        )
    return tuple(points[:count])


def finished(journal: Path) -> Iterator[tuple[float, FrozenTrial]]:
    """Results and trials of all searches in a journal, which may be in use and is left as it is."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / journal.name
        shutil.copyfile(journal, copy)
        whole = copy.read_bytes()
        copy.write_bytes(whole[: whole.rfind(b"\n") + 1])
        storage = JournalStorage(JournalFileBackend(str(copy)))
        for study in storage.get_all_studies():
            for trial in storage.get_all_trials(study._study_id, states=(TrialState.COMPLETE,)):
                if (loss := loss_of(trial)) is not None:
                    yield loss, trial


def inside(space: SearchSpace, params: dict[str, Any]) -> dict[str, Any]:
    """What of stored settings lies in a space, as its own values."""
    found = {}
    for name, domain in space.items():
        if name in params and (value := own_value(domain, params[name])) is not None:
            found[name] = value
    return found


def own_value(domain: FloatRange | IntRange | Choice, stored: Any) -> Any:
    """The value of a domain that is stored so, None where there is none."""
    if isinstance(domain, Choice):
        labels = labels_of(domain)
        return domain.options[labels.index(stored)] if stored in labels else None
    number = isinstance(stored, (int, float)) and not isinstance(stored, bool)
    return stored if number and domain.low <= stored <= domain.high else None
