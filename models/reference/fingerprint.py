"""What identifies a target in a cache: its name, its space, and its energies at fixed probe points."""

from __future__ import annotations

import hashlib

import torch

from models.contracts import Target

PROBES = 16


def fingerprint(target: Target) -> str:
    """sha256 of name, space and float64 energies (ten digits) at seeded normal points of two widths.

    It needs nothing but the protocol, so a user's own target has one too, and a changed constant changes it. A target
    with an `identity`, a text for all that its energies depend on, is not evaluated.
    """
    if identity := getattr(target, "identity", None):
        return hashlib.sha256(f"{target.name}|{target.space}|{identity}".encode()).hexdigest()
    scale_B1 = torch.linspace(1.0, 4.0, PROBES, dtype=torch.float64)[:, None]
    noise_BD = torch.randn((PROBES, target.space.dim), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    energies = target.energy(target.space.project(scale_B1 * noise_BD)).tolist()
    text = "|".join([target.name, str(target.space.dim), str(target.space.particles), *(f"{u:.9e}" for u in energies)])
    return hashlib.sha256(text.encode()).hexdigest()
