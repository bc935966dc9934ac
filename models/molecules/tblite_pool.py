"""A pool of processes that share out semi-empirical energies.

Shapes: B batch, N atoms. Units: bohr, Hartree.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property

import numpy as np

from models.molecules.tblite_worker import Method, evaluate, start

ROWS_AT_ONCE = 4
"""That a process takes at a time, some 30 ms of work."""


class TblitePool:
    """Processes of one thread each, started fresh (a fork would copy threads that hold locks) on the first energy.

    A script that uses it needs the usual `if __name__ == "__main__"`.

    Attributes:
        evaluated, failed: configurations so far, and how many of them had no self-consistent charges.
    """

    def __init__(self, method: Method, *, processes: int) -> None:
        """Errors: ValueError for no process, ModuleNotFoundError where tblite is missing."""
        if processes < 1:
            raise ValueError(f"a pool has at least one process, got {processes}; write for example 2")
        if importlib.util.find_spec("tblite") is None:
            raise ModuleNotFoundError(
                "semi-empirical energies come from tblite, which is not installed; write pip install '.[molecules]'"
            )
        self.method, self.processes = method, processes
        self.evaluated = self.failed = 0

    @cached_property
    def _executor(self) -> ProcessPoolExecutor:
        fresh = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.processes, mp_context=fresh, initializer=start, initargs=(self.method,))

    def energies_and_gradients(self, x_BN3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) and (B, N, 3); +inf and zeros where it failed. They do not depend on the number of processes."""
        energy_B, gradient_BN3 = np.full(len(x_BN3), np.inf), np.zeros_like(x_BN3)
        for row, found in enumerate(self._executor.map(evaluate, x_BN3, chunksize=ROWS_AT_ONCE)):
            if found is None:
                self.failed += 1
            else:
                energy_B[row], gradient_BN3[row] = found
        self.evaluated += len(x_BN3)
        return energy_B, gradient_BN3

    def close(self) -> None:
        """End the processes; the next energy starts them again."""
        executor = self.__dict__.pop("_executor", None)
        if executor is not None:
            executor.shutdown()
