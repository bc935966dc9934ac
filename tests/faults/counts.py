"""What a killed study lost, holds twice or holds otherwise than the same study left alone; and the tally of it all."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from harness.adapters.mlflow_recorder import MlflowClient
from harness.checkpoint import Store, read_json, write_json
from tests.faults.traced import read_traces, repeats

KINDS = ("worker", "driver", "study", "node")
CLOCKS = "clock/"
"""Metrics that hang on clocks: their points must be there once, their values are free."""

History = dict[tuple[str, str, int], list[str]]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one study has to say after its kills. All but the last three must be zero.

    Attributes:
        trials_lost: runs of the tracker that are missing, twice there or not finished, and segments that are missing.
        events_lost: points of the tracker that are missing. events_twice: points, or events of the store, held twice.
        values_different: points of the tracker, clocks aside, with another value.
        weights_different: segments whose weights, or judged samples, have other bits.
        long_repeats: resumptions that trained more than one checkpoint interval again.
        compared_segments, compared_points: what was compared. most_repeated_steps: by one resumption.
    """

    trials_lost: int = 0
    events_lost: int = 0
    events_twice: int = 0
    values_different: int = 0
    weights_different: int = 0
    long_repeats: int = 0
    compared_segments: int = 0
    compared_points: int = 0
    most_repeated_steps: int = 0

    @property
    def faults(self) -> int:
        return (
            self.trials_lost
            + self.events_lost
            + self.events_twice
            + self.values_different
            + self.weights_different
            + self.long_repeats
        )

    def __add__(self, other: Counts) -> Counts:
        mine, yours = asdict(self), asdict(other)
        most = max(self.most_repeated_steps, other.most_repeated_steps)
        return Counts(**{name: mine[name] + yours[name] for name in mine} | {"most_repeated_steps": most})


def compare(output: Path, undisturbed: Path) -> Counts:
    """A killed study that has ended against the same study left alone."""
    expected, found = weights(undisturbed), weights(output)
    wanted, written = histories(undisturbed), histories(output)
    assert expected, "the undisturbed study must hold segments"
    assert wanted, "the undisturbed study must hold records"
    again = repeats(read_traces(output))
    return Counts(
        trials_lost=len(expected.keys() - found.keys()) + lost_runs(output, undisturbed),
        events_lost=len(wanted.keys() - written.keys()),
        events_twice=sum(len(values) - 1 for values in written.values()) + events_twice(output),
        values_different=sum(
            written[point] != values for point, values in wanted.items() if point in written and is_plain(point)
        ),
        weights_different=sum(found[name] != expected[name] for name in expected.keys() & found.keys()),
        long_repeats=sum(repeat.intervals > 1 for repeat in again),
        compared_segments=len(expected),
        compared_points=len(wanted),
        most_repeated_steps=max((repeat.steps for repeat in again), default=0),
    )


def is_plain(point: tuple[str, str, int]) -> bool:
    return not point[1].startswith(CLOCKS)


def weights(output: Path) -> dict[str, tuple[str, ...]]:
    """The checksum of every segment, with the names of the samples it was judged by, which are hashes."""
    store = Store(output / "store")
    found = {}
    for file in sorted((store.folder / "segments").glob("*.json")):
        judged = sorted((store.folder / "evaluations").glob(f"{file.stem}-*.json"))
        records = (json.loads(path.read_text())["records"] for path in judged)
        found[file.stem] = (json.loads(file.read_text())["checksum"], *records)
    return found


def events_twice(output: Path) -> int:
    """Events that several segments of a branch hold."""
    held: Counter[tuple[str, str, int]] = Counter()
    for file in (output / "store" / "segments").glob("*.json"):
        value = json.loads(file.read_text())
        held.update((value["branch"], event["kind"], event["step"]) for event in value["events"])
    return sum(count - 1 for count in held.values())


def runs(output: Path) -> list[tuple[str, str, str]]:
    """Key, id and status of every run of the tracker."""
    client = client_of(output)
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(everywhere)
    return [(run.data.tags["key"], run.info.run_id, run.info.status) for run in found]


def client_of(output: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{(output / 'mlflow.db').absolute()}")


def lost_runs(output: Path, undisturbed: Path) -> int:
    """Runs that are not there exactly once, finished."""
    good = Counter(key for key, _, status in runs(output) if status == "FINISHED")
    every = Counter(key for key, *_ in runs(output))
    wanted = {key for key, *_ in runs(undisturbed)}
    return sum(good[key] != 1 or every[key] != 1 for key in wanted | every.keys())


def histories(output: Path) -> History:
    """Every point of every run: (key of the run, metric, step) with its values as texts, in which NaN equals NaN."""
    client, found = client_of(output), History()
    for key, run_id, _ in runs(output):
        for metric in client.get_run(run_id).data.metrics:
            for point in client.get_metric_history(run_id, metric):
                found.setdefault((key, metric, point.step), []).append(repr(point.value))
    return found


# the tally


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One study, killed some times and brought to its end."""

    seed: int
    kills: Mapping[str, int]
    counts: Counts


def add_to_tally(path: Path, episode: Episode) -> None:
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_json(path, [*(read_json(path) or []), asdict(episode)])


def read_tally(path: Path) -> list[Episode]:
    """Every episode so far."""
    return [Episode(**{**value, "counts": Counts(**value["counts"])}) for value in read_json(path) or []]


def table(episodes: Iterable[Episode]) -> str:
    """One line a kind of process, then what the studies lost."""
    known = list(episodes)
    killed: Counter[str] = Counter()
    total = Counts()
    for episode in known:
        killed.update(episode.kills)
        total += episode.counts
    lines = [f"{kind:>8} {killed[kind]:6d} kills" for kind in KINDS]
    lines.append(f"{'all':>8} {sum(killed.values()):6d} kills in {len(known)} studies")
    lines += [f"{getattr(total, f.name):8d} {f.name.replace('_', ' ')}" for f in fields(total)]
    return "\n".join(lines)
