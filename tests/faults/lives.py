"""The study that is killed, and its lives: started in a process of its own, watched, killed, started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import tyro

from harness.contracts import Runner
from harness.launch import recorder_of
from harness.plan_report import conclude_plan
from harness.plan_run import PlanStudyRun
from studies.train_plan import TrainPlan
from tests.faults.traced import lines_written, trace_folder

ROOT = Path(__file__).parents[2]
WORKER = "tests.faults.traced:run_trial"
PATIENCE_SECONDS = 600.0
CHECKPOINT_SECONDS = 0.2
FAILED = 3
"""Exit code of a study of which a trial failed."""


def options(output: Path, checkpoint_seconds: float = CHECKPOINT_SECONDS) -> TrainPlan:
    """Three seeds of FM and then PG, each a trial of one worker, saved several times a second."""
    return TrainPlan(
        target="gmm4",
        stages=("fm=500", "pg=50"),
        seeds="3",
        hidden=8,
        layers=2,
        train_samples=128,
        evaluation_samples=32,
        evaluation_tolerance=1e-3,
        fm_batch=32,
        pg_batch=16,
        solver_steps=2,
        runner="inline",
        checkpoint_seconds=checkpoint_seconds,
        output=output,
    )


def run_study(output: Path, runner: Runner, checkpoint_seconds: float = CHECKPOINT_SECONDS) -> None:
    """Run or resume the study as a study's command does, with workers that trace."""
    asked = options(output, checkpoint_seconds)
    study = asked.study()
    with recorder_of(study, asked, "faults") as recorder:
        run = PlanStudyRun(study, output=output, runner=runner, recorder=recorder)
        print(conclude_plan(run, run.run()), flush=True)
    if run.session.failures:
        raise SystemExit(FAILED)


def run_inline(output: Path, checkpoint_seconds: float = CHECKPOINT_SECONDS) -> None:
    from harness.adapters.inline_runner import InlineRunner

    run_study(output, InlineRunner(worker=WORKER), checkpoint_seconds)


def ray_folder(output: Path) -> Path:
    """As a study's command has it."""
    return output / "train_plan" / options(output).study().id / "ray"


def run_on_ray(output: Path, address: str | None) -> None:
    from harness.adapters.ray_runner import RayRunner

    with RayRunner(address=address, folder=ray_folder(output), worker=WORKER) as runner:
        run_study(output, runner)


class Life(Protocol):
    """A running study process."""

    pid: int

    def ended(self) -> int | None:
        """Its exit code once it has ended."""

    def kill(self) -> None: ...


class Forked:
    """The inline study in a fork of this process, which has its packages imported: a life costs no start-up."""

    def __init__(self, output: Path, log: Path, checkpoint_seconds: float) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(output, log, checkpoint_seconds)
        self._code: int | None = None

    @staticmethod
    def _live(output: Path, log: Path, checkpoint_seconds: float) -> None:
        code = 1
        try:
            stream = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            run_inline(output, checkpoint_seconds)
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def ended(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def kill(self) -> None:
        if self.ended() is None:
            os.kill(self.pid, signal.SIGKILL)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Started:
    """The study on Ray, in a process of its own."""

    def __init__(self, output: Path, log: Path, address: str | None) -> None:
        known = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        there = [] if address is None else ["--address", address]
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.lives", "--output", str(output), *there],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**known, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                cwd=ROOT,
            )
        self.pid = self._process.pid

    def ended(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A life with what is needed to wait for something in it; as a context it ends with its block."""

    life: Life
    output: Path
    log: Path

    def __enter__(self) -> Watched:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.life.kill()

    def wait(self, happened: Callable[[], bool], what: str) -> bool:
        """True when it happens, False if the life ends before. Raises AssertionError when it takes too long."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while self.life.ended() is None:
            if happened():
                return True
            assert time.monotonic() < give_up, f"waited {PATIENCE_SECONDS} s for {what}: {self.log.read_text()[-3000:]}"
            time.sleep(0.005)
        return False

    def after_steps(self, count: int, *, seconds: float = 0.0) -> bool:
        """Wait until so many more lines are traced, and then some seconds."""
        want = lines_written(self.output) + count
        return self.wait(lambda: lines_written(self.output) >= want, f"{count} steps") and self.after(seconds)

    def after(self, seconds: float) -> bool:
        due = time.monotonic() + seconds
        return self.wait(lambda: time.monotonic() >= due, f"{seconds} s")

    def end(self) -> int:
        """Wait for the end: 0, or FAILED where a trial lost too many processes, which the same command mends."""
        self.wait(lambda: False, "the end")
        code = self.life.ended()
        assert code in (0, FAILED), f"a study must end well, got exit code {code}: {self.log.read_text()[-4000:]}"
        return code

    def ended_well(self) -> bool:
        """False where it was killed or a trial of it failed, so that the same command has to be given again."""
        code = self.life.ended()
        assert code in (0, FAILED, -signal.SIGKILL), f"exit code {code}: {self.log.read_text()[-4000:]}"
        return code == 0

    def to_the_end(self) -> None:
        """Wait for the end, which must be a good one."""
        assert self.end() == 0, f"all trials must end well: {self.log.read_text()[-4000:]}"


def newest_worker(output: Path) -> int:
    """The process that traced last."""
    files = trace_folder(output).glob("*")
    return int(max(files, key=lambda file: file.stat().st_mtime_ns).name)


@dataclass(frozen=True, kw_only=True)
class Command:
    """The study under Ray, run by `Started`."""

    output: Path
    address: str | None = None


if __name__ == "__main__":
    command = tyro.cli(Command)
    run_on_ray(command.output, command.address)
