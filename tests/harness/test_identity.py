"""Content hashes: one meaning, one name; another meaning, another name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pytest
import torch

from harness.identity import canonical, content_hash, derived_seed, plain


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, kw_only=True)
class Pair:
    left: int
    right: tuple[float, ...] = ()


def test_order_of_keys_and_kind_of_sequence_do_not_matter() -> None:
    assert content_hash({"a": 1, "b": [1, 2]}) == content_hash({"b": (1, 2), "a": 1})
    assert content_hash(Pair(left=1, right=(0.5,))) == content_hash({"right": [0.5], "left": 1})


def test_plain_forms() -> None:
    value = {"pair": Pair(left=1), "colour": Colour.RED, "none": None, "yes": True, "np": np.float64(0.5)}
    assert plain(value) == {"colour": "red", "none": None, "np": 0.5, "pair": {"left": 1, "right": []}, "yes": True}
    assert canonical({"b": 1, "a": 0.1}) == '{"a":0.1,"b":1}'


@pytest.mark.parametrize("other", [{"a": 1.5}, {"a": 2}, {"b": 1}, {"a": 1, "b": None}, {"a": "1"}, {"a": [1]}])
def test_another_meaning_has_another_name(other: object) -> None:
    assert content_hash({"a": 1}) != content_hash(other)


@pytest.mark.parametrize("value", [{1, 2}, torch.ones(2), len, object(), {"a": {3}}])
def test_what_has_no_stable_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="a setting must be a number, text, list or mapping"):
        content_hash(value)


def test_names_are_short_and_the_same_in_another_process() -> None:
    code = "from harness.identity import *; print(content_hash({'x': [1, 0.1]}), derived_seed('order', 3, 5))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    name, seed = done.stdout.split()
    assert name == content_hash({"x": [1, 0.1]})
    assert len(name) == 20
    assert int(seed) == derived_seed("order", 3, 5)


def test_derived_seeds_are_seeds_and_differ_with_every_part() -> None:
    seeds = {derived_seed(name, i, j) for name in ("noise", "order") for i in range(20) for j in range(20)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(1, 23) != derived_seed(12, 3)
    torch.Generator().manual_seed(max(seeds))
