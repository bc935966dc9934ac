"""Forces at training data, kept on disk where they are dear.

Shape suffixes: B rows, D coordinates.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from models.contracts import Target
from models.reference import cache
from models.reference.fingerprint import fingerprint
from models.reference.progress import Bar

DEAR_FLOPS = 1_000_000
"""Of an energy, from which on forces are kept: seconds for some ten thousand rows."""
ROWS_AT_ONCE = 1024
"""That are lost at most where a run is killed."""


def forces_at(target: Target, x_BD: Tensor, *, cache_dir: Path) -> Tensor:
    """The target's score at every row, (B, D) in the dtype of x, computed in double precision.

    Where energies are dear, parts that are done are read: each is a file of its own, named by its rows and the target.
    """
    if target.energy_flops < DEAR_FLOPS:
        return target.score(x_BD.double()).to(x_BD.dtype)
    name, known = re.sub(r"\W+", "_", target.name), fingerprint(target)
    bar, parts = Bar(target.name), []
    for part_BD in x_BD.split(ROWS_AT_ONCE):
        rows = cache.content_hash({"target": known, "rows": part_BD.double().tolist()})[:20]
        path = cache_dir / f"{name}-forces-{rows}.npz"
        found = cache.load(path)
        if found is None:
            score_BD = target.score(part_BD.double()).detach().cpu()
            cache.save(path, {"score_BD": score_BD.numpy()}, {"target": target.name})
        else:
            score_BD = torch.from_numpy(found[0]["score_BD"])
        parts.append(score_BD.to(x_BD))
        bar("forces", sum(map(len, parts)), len(x_BD))
    bar.close()
    return torch.cat(parts)
