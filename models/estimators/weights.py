"""LogWeights: streaming sums of importance weights, merged exactly, and what follows from them.

log w = -energy - log q, unnormalised, always in log space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from models.estimators.estimate import (
    Array,
    BootstrapMeans,
    Estimate,
    centred_interval,
    mean_estimate,
    resampling_counts,
    undefined,
)


@dataclass(frozen=True, kw_only=True)
class LogWeights:
    """Sums over n importance weights w, held as logarithms; `+` merges the sums of two workers.

    Attributes:
        log_sum, log_sum_squares, log_sum_inverses: log of sum w, sum w^2, sum 1/w.
        log_max: the largest log w. sum_log: sum of log w.
    """

    n: int = 0
    log_sum: float = -np.inf
    log_sum_squares: float = -np.inf
    log_sum_inverses: float = -np.inf
    log_max: float = -np.inf
    sum_log: float = 0.0

    @staticmethod
    def from_samples(log_w_n: ArrayLike) -> LogWeights:
        """From individual log weights; minus infinity (a weight of zero) is allowed, NaN is not."""
        lw = np.asarray(log_w_n, dtype=np.float64)
        if np.isnan(lw).any():
            raise ValueError(f"log weights must be numbers, got {int(np.isnan(lw).sum())} NaN of {lw.size}; drop them")
        if not lw.size:
            return LogWeights()
        return LogWeights(
            n=lw.size,
            log_sum=float(logsumexp(lw)),
            log_sum_squares=float(logsumexp(2 * lw)),
            log_sum_inverses=float(logsumexp(-lw)),
            log_max=float(lw.max()),
            sum_log=float(lw.sum()),
        )

    def __add__(self, other: LogWeights) -> LogWeights:
        return LogWeights(
            n=self.n + other.n,
            log_sum=float(np.logaddexp(self.log_sum, other.log_sum)),
            log_sum_squares=float(np.logaddexp(self.log_sum_squares, other.log_sum_squares)),
            log_sum_inverses=float(np.logaddexp(self.log_sum_inverses, other.log_sum_inverses)),
            log_max=max(self.log_max, other.log_max),
            sum_log=self.sum_log + other.sum_log,
        )

    @property
    def ess_q(self) -> float:
        """Effective sample size per sample for draws from the model: (sum w)^2 / (n sum w^2) (Kish 1965)."""
        return float(np.exp(2 * self.log_sum - self.log_sum_squares) / self.n)

    @property
    def ess_p(self) -> float:
        """Effective sample size per sample for draws from the target: 1 / (mean w  mean 1/w).

        It cannot see mass of the model away from the target.
        """
        return float(np.exp(2 * np.log(self.n) - self.log_sum - self.log_sum_inverses))

    @property
    def log_z(self) -> float:
        """Importance-sampling estimate of log Z, for draws from the model."""
        return float(self.log_sum - np.log(self.n))

    @property
    def log_z_bound(self) -> float:
        """mean log w, a lower bound of log Z (the gap is the reverse KL divergence)."""
        return self.sum_log / self.n

    @property
    def largest_share(self) -> float:
        """Share of the largest weight in the sum: near 1 means that one sample carries the estimate."""
        return float(np.exp(self.log_max - self.log_sum))


def weight_estimates(log_w_n: ArrayLike, *, seed: int) -> dict[str, Estimate]:
    """ess_q, ess_p, log_z and log_z_bound with bootstrap intervals.

    All but ess_p are for draws from the model, ess_p is for draws from the target.
    """
    lw = np.asarray(log_w_n, dtype=np.float64)
    up, down = _shift(lw), _shift(-lw)
    with np.errstate(over="ignore", invalid="ignore"):
        w_n, inverse_n = np.exp(lw - up), np.exp(-lw - down)
    table = BootstrapMeans.of({"w": w_n, "w2": w_n**2, "inverse": inverse_n, "log": lw}, seed=seed)
    return {
        "ess_q": table.estimate(lambda m: m["w"] ** 2 / m["w2"]),
        "ess_p": table.estimate(lambda m: np.exp(-up - down) / (m["w"] * m["inverse"])),
        "log_z": table.estimate(lambda m: np.log(m["w"]) + up),
        "log_z_bound": table.mean("log"),
    }


def largest_share_estimate(log_w_n: ArrayLike, *, seed: int) -> Estimate:
    """Share of the largest weight. Its interval is the spread under resampling, without a promise of coverage."""
    lw = np.asarray(log_w_n, dtype=np.float64)
    if not np.isfinite(lw.max()):
        return undefined("the largest log weight is not finite", n=len(lw))
    w_n = np.exp(lw - _shift(lw))
    shares = [_shares(w_n, counts_Rn) for counts_Rn in resampling_counts(len(w_n), seed, 200)]
    value = float(w_n.max() / w_n.sum())
    lo, hi = centred_interval(value, np.concatenate(shares))
    return Estimate(value=value, lo=max(lo, 0.0), hi=min(hi, 1.0), n=len(w_n))


def block_ess_estimate(log_w_n: ArrayLike, *, block: int, seed: int) -> Estimate:
    """Mean ESS_q per sample of blocks of so many draws, bootstrapped over blocks; what is left over is not used.

    Small blocks seldom hold the rare large weights, so that their ESS lies above that of many draws: published figures
    of few draws compare with this one only.
    """
    lw_bn = np.asarray(log_w_n, dtype=np.float64)
    blocks = len(lw_bn) // block
    if blocks < 2:
        return undefined(f"fewer than two blocks of {block}", n=blocks)
    lw_bn = lw_bn[: blocks * block].reshape(blocks, block)
    with np.errstate(invalid="ignore"):
        return mean_estimate(np.exp(2 * logsumexp(lw_bn, axis=1) - logsumexp(2 * lw_bn, axis=1)) / block, seed=seed)


def _shares(w_n: Array, counts_Rn: Array) -> Array:
    return np.asarray((w_n * (counts_Rn > 0)).max(axis=1) / (counts_Rn @ w_n))


def _shift(lw_n: Array) -> float:
    """The largest finite log weight, so that the largest scaled weight is one."""
    finite = lw_n[np.isfinite(lw_n)]
    return float(finite.max()) if finite.size else 0.0
