"""Settings for learning a system from its energy alone, used where a study leaves them open."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from models.contracts import Space

NetworkName = Literal["field", "sinusoidal"]
BufferStart = Literal["prior", "estimate", "data"]


@dataclass(frozen=True, kw_only=True)
class BootstrapRecipe:
    """Flow annealed bootstrap: the coupling flow, the annealing that makes rows from it, and what is kept of them.

    Attributes:
        prior_std: width of the target, which the flow begins as. layers, hidden, couplings, bins: of the flow.
        bridges, leapfrog_steps, step_size: of annealing; the step size, a length, adapts.
        rows: annealed every so many steps (`every`). capacity, minimum: of the buffer.
    """

    prior_std: float
    step_size: float
    layers: int = 12
    hidden: int = 64
    couplings: Literal["spline", "affine"] = "spline"
    bins: int = 8
    bridges: int = 8
    leapfrog_steps: int = 5
    ratio_clip: float = 10.0
    batch: int = 512
    every: int = 8
    rows: int = 512
    capacity: int = 16_384
    minimum: int = 2048
    learning_rate: float = 1e-3
    gradient_clip: float = 100.0


@dataclass(frozen=True, kw_only=True)
class EnergyRecipe:
    """Denoising energy matching, the samplers of controlled paths, and bootstrapping. Lengths are those of the target.

    Attributes:
        sigma_min, sigma_max: of the geometric noise schedule. samples: K. clip: of the regression target, of every
            particle or of the row. weighting, variance_offset: of the loss over noise times.
        network: the system's own field, or sinusoids of coordinates in units of `length`. hidden, layers: of it, None
            for those of the system. scaled: width of the data, where score networks see rows in units of their width.
        capacity, inner_steps, generated: of the replay buffer, which `initial_rows` from `initial` begin.
        sde_steps, noise_scale, climb_steps: of the reverse process that refills it.
        bootstrap: of flow annealed bootstrap.
        control_*: of both path samplers; `control_score_clip` is the largest norm of the score that a control has a
            share of, None for plain networks. pis_*: path integral. dds_*: denoising diffusion; `dds_largest` is the
            share of fresh variance in the first step.
    """

    sigma_min: float
    sigma_max: float
    samples: int
    clip: float
    clip_of: Literal["particles", "row"]
    learning_rate: float
    pis_sigma: float
    pis_learning_rate: float
    dds_sigma: float
    dds_learning_rate: float
    bootstrap: BootstrapRecipe
    weighting: Literal["one", "variance"] = "one"
    variance_offset: float | None = None
    network: NetworkName = "field"
    length: float = 1.0
    scaled: float | None = None
    hidden: int | None = None
    layers: int | None = None
    batch: int = 512
    gradient_clip: float = 0.5
    capacity: int = 10_000
    inner_steps: int = 100
    generated: int = 1000
    initial: BufferStart = "prior"
    initial_rows: int = 1024
    sde_steps: int = 1000
    noise_scale: float = 1.0
    climb_steps: int = 0
    control_steps: int = 100
    control_batch: int = 256
    control_gradient_clip: float = 1.0
    control_score_clip: float | None = 1e4
    dds_largest: float = 0.3


# Four Gaussians are in no paper; their noise is wide enough to cover them, and starts well below their width.
GMM4 = EnergyRecipe(
    sigma_min=0.01,
    sigma_max=3.0,
    samples=500,
    clip=20.0,
    clip_of="row",
    learning_rate=1e-3,
    weighting="variance",
    variance_offset=0.1,
    scaled=1.2,
    pis_sigma=1.0,
    pis_learning_rate=5e-3,
    dds_sigma=1.5,
    dds_learning_rate=5e-3,
    bootstrap=BootstrapRecipe(
        prior_std=1.5, step_size=0.3, layers=6, bridges=2, leapfrog_steps=3, batch=256, minimum=1024
    ),
)
# Akhound-Sadegh et al. 2024 train the forty Gaussians in units of 50: noise 1e-5 to 1, clip 70, weight h + 1e-3. Here
# the same numbers stand in the target's own lengths: scores are 1 / 50 as large, variances 2500 times as large. Their
# network sees plain coordinates; one that sees them in units of the noised rows' width finds the modes much sooner.
GMM40 = EnergyRecipe(
    sigma_min=5e-4,
    sigma_max=50.0,
    samples=500,
    clip=1.4,
    clip_of="row",
    learning_rate=5e-4,
    weighting="variance",
    variance_offset=2.5,
    network="sinusoidal",
    length=50.0,
    scaled=25.0,
    layers=3,
    initial="estimate",
    pis_sigma=30.0,
    pis_learning_rate=5e-4,
    dds_sigma=30.0,
    dds_learning_rate=5e-4,
    bootstrap=BootstrapRecipe(
        prior_std=23.0, step_size=1.0, layers=8, bins=16, bridges=2, leapfrog_steps=3, batch=256, minimum=4096
    ),
)
DW4 = EnergyRecipe(
    sigma_min=1e-5,
    sigma_max=3.0,
    samples=1000,
    clip=20.0,
    clip_of="particles",
    learning_rate=1e-3,
    pis_sigma=1.0,
    pis_learning_rate=5e-4,
    dds_sigma=1.0,
    dds_learning_rate=5e-4,
    bootstrap=BootstrapRecipe(prior_std=2.0, step_size=0.17, every=32, learning_rate=3e-3),
)
# Coupling flows know nothing of permutations and rotations: on clusters their settings are a start and no more.
LJ13 = replace(
    DW4,
    sigma_min=0.01,
    sigma_max=2.0,
    noise_scale=0.9,
    pis_learning_rate=1e-4,
    dds_learning_rate=5e-3,
    bootstrap=BootstrapRecipe(prior_std=1.0, step_size=0.01),
)
LJ55 = replace(
    LJ13,
    sigma_min=0.5,
    sigma_max=4.0,
    samples=100,
    noise_scale=0.5,
    climb_steps=10,
    batch=128,
    generated=128,
)
# Nobody has published these methods in the plain coordinates of a molecule: those of LJ55 in units of 0.1 nm (scores
# are then ten times as large), which are a start and no more.
AD2 = replace(
    LJ55,
    sigma_min=0.005,
    sigma_max=0.4,
    clip=200.0,
    scaled=0.17,
    pis_sigma=0.17,
    dds_sigma=0.17,
    bootstrap=BootstrapRecipe(prior_std=0.17, step_size=0.001),
)


def nearest_energy_recipe(space: Space) -> EnergyRecipe:
    """What suits a user's own target: the recipe of four particles, or of four Gaussians."""
    return GMM4 if space.particles is None else DW4
