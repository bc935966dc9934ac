"""Couplings of base and data points: independent, optimal transport, equivariant optimal transport."""

from models.couplings.assignment import assign_particles
from models.couplings.pairing import (
    EMD_MAX_ITERATIONS,
    Coupling,
    EquivariantOptimalTransport,
    Independent,
    OptimalTransport,
    Pairs,
    optimal_permutation,
    squared_distances,
)
from models.couplings.particles import (
    ELEMENTS_PER_BLOCK,
    SVD_FLOPS,
    aligned_costs,
    equivariant_costs,
    kabsch,
    permute_particles,
)

__all__ = [
    "ELEMENTS_PER_BLOCK",
    "EMD_MAX_ITERATIONS",
    "SVD_FLOPS",
    "Coupling",
    "EquivariantOptimalTransport",
    "Independent",
    "OptimalTransport",
    "Pairs",
    "aligned_costs",
    "assign_particles",
    "equivariant_costs",
    "kabsch",
    "optimal_permutation",
    "permute_particles",
    "squared_distances",
]
