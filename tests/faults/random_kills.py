"""Kill studies at random moments, bring each to its end, and count what was lost; counts of several runs add up.

    python -m tests.faults.random_kills --how inline --kills 20
    python -m tests.faults.random_kills --how ray --kills 12
    python -m tests.faults.random_kills --how cluster --kills 5

inline kills study processes; ray kills worker, driver (trial) and study processes of a local Ray; cluster kills whole
nodes of a cluster of three, all their processes at once. After its last kill a study is finished in one process and
compared with the same study left alone.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import tyro

from harness.adapters import inline_runner  # noqa: F401  (a life forks from here)
from harness.adapters.ray_processes import end_leftovers
from harness.checkpoint import read_json, write_json
from tests.faults.counts import Episode, add_to_tally, compare, read_tally, runs, table, weights
from tests.faults.lives import CHECKPOINT_SECONDS, Forked, Started, Watched, newest_worker, ray_folder

How = Literal["inline", "ray", "cluster"]
MOST_STEPS = 40
"""A kill comes at most so many lines of the trace after training has gone on, and a random moment later."""
MOST_LIVES = 100
PER_LIFE = 3
"""Workers, and drivers, that one study process sees die: more losses of a trial would end it (as they should)."""
UNDISTURBED_SECONDS = 5.0
"""Between checkpoints where nothing is killed."""
TUNE_FUNCTION = "ray::ImplicitFunc"
"""How Ray titles a process that runs a function for Tune, which is what drives a trial."""
KILLS, TALLY = "kills.json", "tally.json"


@dataclass(frozen=True, kw_only=True)
class RandomKills:
    """Kill studies at random moments and count what is lost. Runs of this program add up in tally.json."""

    output: Path = Path("results/faults")
    """Folder of the studies and of tally.json."""
    how: tuple[How, ...] = ("inline", "ray", "cluster")
    """What is killed, one study each: study processes; workers, drivers and study; nodes."""
    kills: int = 10
    """Most kills in each study. One that an earlier run of this program left unfinished is killed further."""
    minutes: float = 8.0
    """No further kill after so long."""
    finish: bool = True
    """Bring the studies to their end after the last kill, compare and count them."""
    seed: int | None = None
    """Of the random moments (default: another one every time; it is printed)."""


class Killings:
    """The kills of one study so far, on disk, so that those of a run of this program that was cut short count too.

    Args:
        most: further kills. until: no further kill after this (monotonic seconds).
    """

    def __init__(self, folder: Path, seed: int, *, most: int, until: float) -> None:
        self.folder, self.seed, self.rng, self.until = folder, seed, random.Random(seed), until
        before = read_json(folder / KILLS) or {"killed": {}}
        self.killed: Counter[str] = Counter(before["killed"])
        self.most = self.killed.total() + most

    @property
    def go_on(self) -> bool:
        return self.killed.total() < self.most and time.monotonic() < self.until

    def count(self, kind: str) -> None:
        self.killed[kind] += 1
        write_json(self.folder / KILLS, {"seed": self.seed, "killed": self.killed})
        print(f"  {self.killed.total()}: {kind} killed", flush=True)


def main(asked: RandomKills) -> int:
    """Run what is asked; the number of faults in the whole tally."""
    output = asked.output.resolve()
    undisturbed = left_alone(output)
    for how in asked.how:
        seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
        print(f"{how}: up to {asked.kills} kills at moments of seed {seed}", flush=True)
        begun = sorted((output / "killed").glob(f"{how}-*/{KILLS}"))
        folder = begun[0].parent if begun else fresh_study(output / "killed" / f"{how}-{seed}", undisturbed)
        KILLERS[how](Killings(folder, seed, most=asked.kills, until=time.monotonic() + 60 * asked.minutes))
        for mark in sorted((output / "killed").glob(f"{how}-*/{KILLS}")) if asked.finish else ():
            conclude(mark.parent, undisturbed, output / TALLY)
    episodes = read_tally(output / TALLY)
    print(table(episodes))
    return sum(episode.counts.faults for episode in episodes)


def conclude(folder: Path, undisturbed: Path, tally: Path) -> None:
    """Bring a killed study to its end, compare it and count it. It is kept where a fault was found."""
    value = read_json(folder / KILLS)
    with inline_life(folder, "last", checkpoint_seconds=UNDISTURBED_SECONDS) as watched:
        watched.to_the_end()
    end_leftovers(ray_folder(folder))
    episode = Episode(seed=value["seed"], kills=value["killed"], counts=compare(folder, undisturbed))
    add_to_tally(tally, episode)
    print(f"{folder.name}: {value['killed']}, {episode.counts.faults} faults", flush=True)
    (folder / KILLS).unlink()
    if episode.counts.faults == 0:
        shutil.rmtree(folder)


def left_alone(output: Path) -> Path:
    """The same study, once, without a kill."""
    folder, mark = output / "undisturbed", output / "undisturbed.done"
    if not mark.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with inline_life(folder, "only", checkpoint_seconds=UNDISTURBED_SECONDS) as watched:
            watched.to_the_end()
        mark.touch()
    assert weights(folder), "the undisturbed study must hold segments"
    assert runs(folder), "and records; reading them loads, once for all lives, what every life needs"
    return folder


def fresh_study(folder: Path, undisturbed: Path) -> Path:
    """An empty output folder, but for the prices: they place points on the axis of costs, and hang on the moment."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(undisturbed / "store" / "prices", folder / "store" / "prices")
    return folder


def inline_life(folder: Path, number: int | str, *, checkpoint_seconds: float = CHECKPOINT_SECONDS) -> Watched:
    log = folder / f"life-{number}.log"
    return Watched(life=Forked(folder, log, checkpoint_seconds), output=folder, log=log)


def ray_life(folder: Path, number: int, address: str | None = None) -> Watched:
    log = folder / f"life-{number}.log"
    return Watched(life=Started(folder, log, address), output=folder, log=log)


# study processes


def kill_study_processes(killings: Killings) -> None:
    """A study in one process, killed in training most times, and otherwise anywhere between its start and its end."""
    rng, number, trained = killings.rng, 0, False
    while killings.go_on:
        with inline_life(killings.folder, number) as watched:
            if trained or rng.random() < 0.25:
                hit = watched.after(rng.uniform(0.0, 8.0))
            else:
                hit = watched.after_steps(rng.randint(1, MOST_STEPS), seconds=rng.uniform(0.0, 0.05))
                trained = not hit
            assert hit or watched.end() == 0
        if hit:
            killings.count("study")
        number += 1


# workers and drivers of a local Ray


def kill_on_ray(killings: Killings) -> None:
    """Workers and drivers, in turn by chance, and the study process once it has seen enough of them die."""
    for number in range(MOST_LIVES):
        with ray_life(killings.folder, number) as watched:
            left = [*(["worker"] * PER_LIFE), *(["driver"] * PER_LIFE)]
            while killings.go_on and next_moment(watched, killings.rng):
                kind = left.pop(killings.rng.randrange(len(left))) if left else "study"
                if kind == "study":
                    watched.life.kill()
                elif not kill_process(newest_worker(killings.folder) if kind == "worker" else driver_of(watched)):
                    continue
                killings.count(kind)
            if not killings.go_on or watched.ended_well():
                break
    end_leftovers(ray_folder(killings.folder))


def next_moment(watched: Watched, rng: random.Random) -> bool:
    """Wait for a random moment after training has gone on; False where the study ends before."""
    return watched.after_steps(rng.randint(2, MOST_STEPS), seconds=rng.uniform(0.0, 0.3))


def kill_process(pid: int) -> bool:
    """False where it has just ended by itself."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def driver_of(watched: Watched) -> int:
    """The process that Tune placed to drive the running trial."""
    family = psutil.Process(watched.life.pid).children(recursive=True)
    drivers = [process.pid for process in family if TUNE_FUNCTION in title(process)]
    assert drivers, f"a running trial has a driver, got {[title(process) for process in family]}"
    return drivers[-1]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


# nodes of a cluster


def kill_nodes(killings: Killings) -> None:
    """One study on a cluster of a head and two nodes; the node that trains dies, and another one comes."""
    from tests.faults.nodes import Nodes

    with Nodes() as nodes:
        for number in range(MOST_LIVES):
            with ray_life(killings.folder, number, nodes.address) as watched:
                while killings.go_on and next_moment(watched, killings.rng):
                    if nodes.kill_node_of(newest_worker(killings.folder)):
                        killings.count("node")
                if not killings.go_on or watched.ended_well():
                    break


KILLERS: dict[How, Callable[[Killings], None]] = {
    "inline": kill_study_processes,
    "ray": kill_on_ray,
    "cluster": kill_nodes,
}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(1 if main(tyro.cli(RandomKills, description=RandomKills.__doc__)) else 0)
