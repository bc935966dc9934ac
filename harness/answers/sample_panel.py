"""What a picture of samples shows of one model, or of the data."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True)
class SamplePanel:
    """Samples of one model, or the data.

    Args:
        title: what they are of. x: (n, 2) points where the space is a plane, else None.
        energy: (n,) in kT. distances: any number of pair distances where there are particles, else None.
        angles: (n, 2) in radians where a pair of angles says most, else None; distances are then lengths of bonds.
        log_weight: (n,) of unnormalised weights under which the samples count; None where all count alike.
    """

    title: str
    energy: ArrayLike
    x: ArrayLike | None = None
    distances: ArrayLike | None = None
    angles: ArrayLike | None = None
    log_weight: ArrayLike | None = None
