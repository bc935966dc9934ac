"""OptunaSearch: ask and tell over a journal on disk. A resumed search proposes what an uninterrupted one would."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState

from harness.conditions import Acts, is_acting
from harness.contracts import (
    Choice,
    FloatRange,
    IntRange,
    Ladder,
    PrunerName,
    SearchSpace,
    Suggestion,
    Told,
    Tried,
    TriedState,
)
from harness.identity import canonical, content_hash, derived_seed

_WORST = math.inf
_PRUNED = "pruned"
_RULES = "rules"
# A process killed inside an append leaves its lock behind; an append takes milliseconds.
_STALE_LOCK_SECONDS = 3


class OptunaSearch:
    """A search by a tree-structured Parzen estimator (Bergstra et al. 2011), minimising what is told.

    The draw of a point depends on the seed, its number and the results told before it, and on nothing that lives in
    this process: asked one at a time, an interrupted search goes on as if it had not been. Points that were asked and
    never told are proposed again first, with their numbers and values.

    A trial told as None, or with a value that is not finite, is stored with the value infinity: the sampler learns to
    keep away from it, and it is never the best. A trial that `report` has condemned (for a pruner that prunes: at the
    latest when it reports a value that is not finite) ends as pruned, whatever is told.

    Args:
        name: the search within its storage. space: what is varied, by name.
        trials: how many points are proposed in all; a later session may ask for more.
        seed: of the draws. storage: the journal file, made if absent; one process writes at a time.
        pruner: rule that stops hopeless trials early. n_startup: random points (and unpruned trials) to begin with.
        ladder: the steps at which trials report, which halving needs to know; None leaves them to Optuna's guess.
        acts: settings that are drawn only where another one, which comes before them in the space, has some value.
        first: settings that the first points take, the rest of each being drawn; one a point.
        objectives: how many numbers are told. Of more than one the estimator models their Pareto front (Ozaki et al.
            2022), and no trial is pruned.

    Raises:
        ValueError: for a space that cannot be searched, or when the storage holds this name under other rules.
    """

    def __init__(
        self,
        *,
        name: str,
        space: SearchSpace,
        trials: int,
        seed: int,
        storage: Path,
        pruner: PrunerName = "none",
        n_startup: int = 10,
        ladder: Ladder | None = None,
        acts: Acts | None = None,
        first: Sequence[Mapping[str, Any]] = (),
        objectives: int = 1,
    ) -> None:
        if objectives > 1 and pruner != "none":
            raise ValueError(
                f"a search of several objectives prunes nothing, got {objectives} and the pruner {pruner!r}; "
                "write none, or one objective"
            )
        self._objectives = objectives
        self._acts, self._first = acts or {}, tuple(first)
        self._name, self._space, self._trials, self._seed, self._n_startup = name, dict(space), trials, seed, n_startup
        self._distributions = {key: distribution_of(key, domain) for key, domain in space.items()}
        # Optuna greets every study and trial on the console, where the study has its own lines.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = _open_journal(storage)
        self._study = optuna.create_study(
            study_name=name,
            storage=self._storage,
            pruner=_pruner(pruner, n_startup, ladder),
            directions=["minimize"] * objectives,
            load_if_exists=True,
        )
        further = [{"acts": self._acts, "first": self._first}] if self._acts or self._first else []
        several = [objectives] if objectives > 1 else []
        rules = [space, seed, pruner, n_startup, *([] if ladder is None else [ladder]), *further, *several]
        self._keep_rules(content_hash(rules), storage)
        self._prunes = pruner != "none"
        self._open: dict[int, Trial] = {}
        self._again = [trial.number for trial in self._all() if not trial.state.is_finished()]

    def ask(self) -> Suggestion | None:
        if self._again:
            return self._propose(self._again.pop(0))
        number = len(self._all())
        return self._propose(number) if number < self._trials else None

    def tell(self, number: int, value: Told | None) -> None:
        trial = self._known(number)
        if trial.state.is_finished():
            return
        if _PRUNED in trial.user_attrs:
            self._study.tell(number, state=TrialState.PRUNED)
        else:
            told = value if isinstance(value, tuple) else (_WORST if value is None else value,)
            worst = value is None or not all(map(math.isfinite, told))
            self._study.tell(number, [_WORST] * self._objectives if worst else list(told))
        self._open.pop(number, None)
        self._again = [other for other in self._again if other != number]

    def report(self, number: int, step: int, value: float) -> bool:
        frozen = self._known(number)
        if frozen.state.is_finished() or _PRUNED in frozen.user_attrs:
            return frozen.state is TrialState.PRUNED or _PRUNED in frozen.user_attrs
        if step in frozen.intermediate_values:
            return False
        trial = self._trial(number)
        trial.report(value, step)
        condemned = self._prunes and (not math.isfinite(value) or trial.should_prune())
        if condemned:
            # Kept in the storage, so that a resumed trial is not judged a second time against newer rivals.
            trial.set_user_attr(_PRUNED, True)
        return condemned

    @property
    def best(self) -> Suggestion | None:
        finite = [(value, trial.number) for trial in self._all() if (value := loss_of(trial)) is not None]
        if not finite:
            return None
        number = min(finite)[1]
        return Suggestion(number=number, values=self._decoded(self._known(number).params))

    @property
    def front(self) -> tuple[int, ...]:
        """By rising number; none that failed."""
        return tuple(trial.number for trial in self._study.best_trials if loss_of(trial) is not None)

    @property
    def history(self) -> tuple[Tried, ...]:
        """Every point proposed so far, in order of its number, with all that was reported and told."""
        return tuple(self._tried(trial) for trial in self._all())

    def _tried(self, trial: FrozenTrial) -> Tried:
        value = loss_of(trial)
        state: TriedState = "finished" if value is not None else "failed"
        if trial.state is TrialState.PRUNED:
            state = "pruned"
        # A process killed while it drew a point leaves some of it open: it is drawn to its end when it is asked again.
        values = self._decoded(trial.params)
        drawn = all(key in values or not is_acting(key, values, self._acts) for key in self._space)
        return Tried(
            number=trial.number,
            values=values if drawn else {},
            state=state if trial.state.is_finished() else "open",
            reported=dict(trial.intermediate_values),
            value=value,
        )

    def _propose(self, number: int) -> Suggestion:
        trial = self._trial(number)
        # Optuna draws the joint part when it is first wanted, which is later if a killed process had begun: draw it
        # here, and give what is drawn alone a sampler for each parameter, so that nothing depends on what was kept.
        self._study.sampler = self._sampler(number, "")
        _ = trial.relative_params
        for key, domain in self._distributions.items():
            if is_acting(key, self._decoded(trial.params), self._acts):
                self._study.sampler = self._sampler(number, key)
                _suggest(trial, key, domain)
        return Suggestion(number=number, values=self._decoded(trial.params))

    def _trial(self, number: int) -> Trial:
        if number not in self._open:
            self._study.sampler = self._sampler(number, "")
            known = number < len(self._all())
            self._open[number] = Trial(self._study, self._id(number)) if known else self._study.ask()
        return self._open[number]

    def _sampler(self, number: int, parameter: str) -> optuna.samplers.BaseSampler:
        seed = derived_seed(self._seed, self._name, number, parameter) % 2**32
        with warnings.catch_warnings():  # that groups and fixed settings may change in Optuna
            warnings.simplefilter("ignore")
            sampler = optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=self._n_startup,
                multivariate=True,
                group=bool(self._acts),
                constant_liar=True,
            )
            if number >= len(self._first):
                return sampler
            return optuna.samplers.PartialFixedSampler(self._stored(self._first[number]), sampler)

    def _stored(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: labels_of(domain)[domain.options.index(values[key])] if isinstance(domain, Choice) else values[key]
            for key, domain in self._space.items()
            if key in values
        }

    def _decoded(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {key: _decode(domain, params[key]) for key, domain in self._space.items() if key in params}

    def _known(self, number: int) -> FrozenTrial:
        trials = self._all()
        if not 0 <= number < len(trials):
            raise ValueError(
                f"only a proposed trial can be told or reported, got number {number} of {len(trials)} proposed; "
                "write the number that ask() gave"
            )
        return trials[number]

    def _all(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(self._name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)

    def _keep_rules(self, rules: str, storage: Path) -> None:
        begun = self._study.user_attrs.get(_RULES)
        if begun is None:
            self._study.set_user_attr(_RULES, rules)
        elif begun != rules:
            raise ValueError(
                "a search keeps its space, seed, pruner and startup to the end, but others were given for "
                f"{self._name!r}, begun in {storage}; write another search name or another output folder"
            )


def loss_of(trial: FrozenTrial) -> float | None:
    """The first of what was told of a finished trial, None where it failed, was pruned or is open."""
    values = trial.values if trial.state is TrialState.COMPLETE else None
    return values[0] if values and all(map(math.isfinite, values)) else None


def _open_journal(path: Path) -> JournalStorage:
    """The storage, cleared of the half line that a process killed while writing may have left at its end."""
    path = path.absolute()  # Optuna's lock is a link to this path, which has to resolve from any folder
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            whole = file.read()
            end = whole.rfind(b"\n") + 1
            if end < len(whole):
                file.truncate(end)
    except OSError as error:
        raise ValueError(
            f"a search needs a file that it can write, got {path} ({error.strerror}); write another output folder"
        ) from error
    lock = JournalFileSymlinkLock(str(path), grace_period=_STALE_LOCK_SECONDS)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _pruner(name: PrunerName, n_startup: int, ladder: Ladder | None) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=n_startup)
    if name == "successive_halving":
        if ladder is None:
            return optuna.pruners.SuccessiveHalvingPruner()
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=ladder.first, reduction_factor=ladder.factor)
    if name == "hyperband" and ladder is not None:
        return optuna.pruners.HyperbandPruner(
            min_resource=ladder.first, max_resource=ladder.steps[-1], reduction_factor=ladder.factor
        )
    if name == "none":
        return optuna.pruners.NopPruner()
    raise ValueError(
        f"a pruner is none, median, successive_halving or (with a ladder) hyperband, got {name!r}; write one of these"
    )


def distribution_of(key: str, domain: FloatRange | IntRange | Choice) -> BaseDistribution:
    """Optuna's form of one hyperparameter's domain.

    Raises:
        ValueError: for a domain that cannot be searched.
    """
    if isinstance(domain, Choice):
        labels = labels_of(domain)
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"a choice needs distinct options, got {labels!r} for {key!r}; write each value once")
        return CategoricalDistribution(labels)
    if domain.high < domain.low or (domain.log and domain.low <= 0):
        raise ValueError(
            f"a range runs from low to high, above 0 on a log scale, got {domain} for {key!r}; "
            "write low <= high and, with log=True, 0 < low"
        )
    if isinstance(domain, IntRange):
        return IntDistribution(domain.low, domain.high, log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def labels_of(domain: Choice) -> tuple[Any, ...]:
    """What Optuna stores for the options: scalars as they are, anything else as its canonical text."""
    scalar = (str, int, float, bool, type(None))
    return tuple(option if isinstance(option, scalar) else canonical(option) for option in domain.options)


def _decode(domain: FloatRange | IntRange | Choice, stored: Any) -> Any:
    return domain.options[labels_of(domain).index(stored)] if isinstance(domain, Choice) else stored


def _suggest(trial: Trial, key: str, domain: BaseDistribution) -> None:
    """Draw one parameter, or keep the value that the storage already holds for it."""
    if isinstance(domain, FloatDistribution):
        trial.suggest_float(key, domain.low, domain.high, log=domain.log)
    elif isinstance(domain, IntDistribution):
        trial.suggest_int(key, domain.low, domain.high, log=domain.log)
    elif isinstance(domain, CategoricalDistribution):
        trial.suggest_categorical(key, domain.choices)
