"""The store: whole files or none, damage found by hash, no code in checkpoints, nothing dropped that is still held."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import checkpoint
from harness.checkpoint import DamagedObject, Store, checksum, read_json, write_atomically, write_json
from harness.plan import Branch
from harness.trial import Event
from tests.harness.tiny import FM, PG

BRANCH = Branch(parent="root", phase=FM, seed=0)
OTHER = Branch(parent="root", phase=PG, seed=0)


def event(step: int, loss: float = 1.0) -> Event:
    return Event(kind="train", branch=BRANCH.hash, step=step, timestamp=float(step), values={"loss": loss})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def keep(store: Store, branch: Branch, steps: int, *, content: float | None = None, last: tuple[int, ...] = ()) -> str:
    """Finish a segment whose state is one number."""
    name = store.put_state({"x": torch.tensor(float(steps) if content is None else content)})
    store.finish_segment(branch.at(steps), state=name, checksum="c", events=[event(n) for n in last])
    return name


def damage(store: Store, name: str) -> None:
    path = store.folder / "objects" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


# files


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"old")

    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    for moment in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.os, moment, cut)
            with pytest.raises(KeyboardInterrupt):
                write_atomically(path, b"new and longer")
        assert path.read_bytes() == b"old"
        assert [p.name for p in path.parent.iterdir()] == ["file"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": ', b"\xff\xfe\xfa", b"\x00\x80\x81"])
def test_what_cannot_be_read_is_not_there(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path / "b.json") is None


def test_json_keeps_what_is_not_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"loss": float("inf"), "x": 0.1})
    assert read_json(tmp_path / "a.json") == {"loss": float("inf"), "x": 0.1}


# objects


def test_objects_are_named_by_their_content(store: Store) -> None:
    assert store.put(b"abc", ".bin") == store.put(b"abc", ".bin")
    assert store.put(b"abd", ".bin") != store.put(b"abc", ".bin")
    assert len(list((store.folder / "objects").iterdir())) == 2
    assert store.get(store.put(b"abc", ".bin")) == b"abc"


def test_a_damaged_object_is_found_removed_and_mended(store: Store) -> None:
    name = store.put(b"some bytes", ".bin")
    damage(store, name)
    with pytest.raises(DamagedObject, match="must hash to its name"):
        store.get(name)
    with pytest.raises(DamagedObject, match="it is gone"):
        store.get(name)
    store.put(b"some bytes", ".bin")
    damage(store, name)
    assert store.get(store.put(b"some bytes", ".bin")) == b"some bytes"


def test_a_shortened_object_is_damaged(store: Store) -> None:
    name = store.put_state({"x": torch.ones(100)})
    path = store.folder / "objects" / name
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DamagedObject):
        store.get_state(name)


def test_states_and_arrays_come_back_bit_by_bit(store: Store) -> None:
    state = {"weights": {"a": torch.randn(3, generator=torch.Generator().manual_seed(0))}, "step": 4, "average": None}
    found = store.get_state(store.put_state(state))
    assert torch.equal(found["weights"]["a"], state["weights"]["a"])  # type: ignore[index]
    assert (found["step"], found["average"]) == (4, None)
    arrays = {"b": np.arange(3), "a": np.array([0.1, np.nan])}
    again = store.get_arrays(store.put_arrays(arrays))
    assert all(np.array_equal(again[key], arrays[key], equal_nan=key == "a") for key in arrays)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


def test_a_checkpoint_runs_no_code(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"weights": Harmful()}, buffer)
    name = store.put(buffer.getvalue(), ".pt")
    with pytest.raises(DamagedObject, match=r"holds weights only, .* \(Weights only load failed"):
        store.get_state(name)
    archive = io.BytesIO()
    np.savez(archive, x=np.array([Harmful()], dtype=object))
    with pytest.raises(DamagedObject, match=r"plain arrays, .* allow_pickle=False"):
        store.get_arrays(store.put(archive.getvalue(), ".npz"))
    assert not (tmp_path / "harmed").exists()


# segments


def test_a_segment_is_found_only_when_it_is_finished(store: Store) -> None:
    assert store.segment(BRANCH.at(4).hash) is None
    assert store.finished_steps(BRANCH) == []
    name = keep(store, BRANCH, 4)
    keep(store, BRANCH, 16)
    known = store.segment(BRANCH.at(4).hash)
    assert known is not None
    assert (known["state"], known["steps"], known["branch"], known["parent"]) == (name, 4, BRANCH.hash, "root")
    assert store.finished_steps(BRANCH) == [4, 16]
    store.forget_segment(BRANCH.at(4).hash)
    assert store.finished_steps(BRANCH) == [16]
    assert store.finished_steps(OTHER) == []


def test_a_segment_that_is_there_can_be_found_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two files of a segment, the store must not hold a segment that resumption overlooks."""
    writes: list[Path] = []
    real = checkpoint.write_atomically

    def killed_at_the_second(path: Path, content: bytes) -> None:
        if len(writes) == 1:
            raise KeyboardInterrupt
        writes.append(path)
        real(path, content)

    monkeypatch.setattr(checkpoint, "write_atomically", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        store.finish_segment(BRANCH.at(4), state="s.pt", checksum="c", events=[])
    assert (store.segment(BRANCH.at(4).hash) is not None) == (store.finished_steps(BRANCH) == [4])


def test_events_come_once_and_in_order(store: Store) -> None:
    keep(store, BRANCH, 8, last=(4, 6, 8))
    keep(store, BRANCH, 2, last=(1, 2))
    keep(store, BRANCH, 16, last=(6, 8, 12, 16))
    assert [found.step for found in store.events(BRANCH, up_to=100)] == [1, 2, 4, 6, 8, 12, 16]
    assert [found.step for found in store.events(BRANCH, up_to=8)] == [1, 2, 4, 6, 8]
    assert store.events(OTHER, up_to=8) == []
    assert store.events(BRANCH, up_to=8)[0] == event(1)


def test_evaluations_belong_to_a_segment_and_its_settings(store: Store) -> None:
    store.finish_evaluation("s", "a", {"records": "r"})
    assert store.evaluation("s", "a") == {"records": "r"}
    assert store.evaluation("s", "b") is None
    assert store.evaluation("t", "a") is None
    store.forget_evaluation("s", "a")
    store.forget_evaluation("s", "a")
    assert store.evaluation("s", "a") is None


def test_prices_are_found_by_their_key(store: Store) -> None:
    store.save_price({"phase": "p", "workers": 2}, {"per_step": 3})
    assert (store.price({"workers": 2, "phase": "p"}) or {})["per_step"] == 3
    assert store.price({"workers": 1, "phase": "p"}) is None


# partial checkpoints


def objects(store: Store) -> set[str]:
    return {path.name for path in (store.folder / "objects").iterdir()}


def save(store: Store, steps: int) -> str:
    name = store.put_state({"x": torch.tensor(float(steps))})
    store.save_latest(BRANCH, steps=steps, state=name, events=[event(steps)])
    return name


def test_only_the_newest_partial_checkpoint_is_kept(store: Store) -> None:
    save(store, 1)
    second = save(store, 2)
    assert objects(store) == {second}
    known = store.latest(BRANCH)
    assert known is not None
    assert (known["steps"], known["state"], known["events"][0]["step"]) == (2, second, 2)
    assert store.latest(OTHER) is None
    store.drop_latest(BRANCH)
    store.drop_latest(BRANCH)
    assert (objects(store), store.latest(BRANCH)) == (set(), None)


def test_what_a_segment_holds_is_never_dropped(store: Store) -> None:
    first = save(store, 4)
    assert keep(store, BRANCH, 4) == first
    save(store, 6)
    assert first in objects(store)
    second = save(store, 8)
    assert keep(store, BRANCH, 8) == second
    store.drop_latest(BRANCH)
    assert objects(store) == {first, second}


def test_saving_the_same_state_twice_keeps_it(store: Store) -> None:
    name = save(store, 4)
    assert save(store, 4) == name
    assert objects(store) == {name}


def test_checksums_see_every_bit_and_every_name() -> None:
    x = torch.tensor([1.0, 2.0])
    base = checksum({"a": x, "b": x})
    assert checksum({"b": x.clone(), "a": x}) == base
    nudged = torch.nextafter(x, torch.tensor([2.0, 3.0]))
    assert len({base, checksum({"a": x, "c": x}), checksum({"a": x}), checksum({"a": x, "b": nudged})}) == 4
