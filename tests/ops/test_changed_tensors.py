"""Lattice tensors that come back changed, or change while an operator works on them: an error or numbers, never a crash."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
import samples
import torch

from deeplab_crf.ops.lattice.operators import Lattice, build_lattice
from deeplab_crf.ops.mean_field.forward import PairwiseTerm, mean_field

POINTS = 9000  # several chunks, so ghosts, too


@pytest.fixture(scope="module")
def lattice() -> Lattice:
    return build_lattice(torch.from_numpy(samples.features(POINTS, 3))[None])


# Of a structure: header, tables of chunks, ghosts and chains. Its numbers, one after the other, are replaced by these.
WRONG = (-1, 2**31 - 1, -(2**31), 10**6)


def is_refused(call: Callable[[], object]) -> bool:
    """Whether the call raises the ValueError that it may raise."""
    with contextlib.suppress(ValueError):
        call()
        return False
    return True


@pytest.mark.parametrize("wrong", WRONG)
def test_every_number_of_a_structure_may_be_wrong(lattice: Lattice, wrong: int) -> None:
    """Behind the used part of a chain list nothing is read; everything else is refused."""
    rng = np.random.default_rng(0)
    places = {*range(60), *rng.integers(0, len(lattice.structure), 150).tolist(), len(lattice.structure) - 1}
    refused = 0
    for place in sorted(places):
        structure = lattice.structure.clone()
        structure[place] = wrong
        changed = lattice._replace(structure=structure)
        terms = [PairwiseTerm(changed, None, None, torch.ones(()))]
        refused += is_refused(lambda changed=changed: changed.filter(torch.ones(1, POINTS, 1)))
        refused += is_refused(lambda terms=terms: mean_field(torch.ones(1, POINTS, 2), terms, 1))
    assert refused >= 60


def test_rows_of_another_lattice_do_not_crash(lattice: Lattice) -> None:
    """They are in range, but chunks touch what is not theirs."""
    rows = lattice.rows.flip(1).contiguous()
    unary = torch.ones(1, POINTS, 2, requires_grad=True)
    terms = [PairwiseTerm(lattice._replace(rows=rows), None, None, torch.ones(()))]
    mean_field(unary, terms, 2).sum().backward()
    with pytest.raises(ValueError, match="rows must be those that lattice_build returned with the structure"):
        lattice._replace(rows=rows + 10**6).filter(torch.ones(1, POINTS, 1))


BACKWARD = torch.ops.deeplab_crf.mean_field_backward


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": torch.full((POINTS,), 10**6, dtype=torch.int32)}, "order must hold each of 0..8999"),
        ({"order": torch.arange(POINTS)}, "order must be int32 of shape"),
        ({"order": torch.arange(POINTS - 1, dtype=torch.int32)}, "order must be int32 of shape"),
        ({"iterations": -1}, "iterations must be a whole number >= 0; got -1"),
        ({"iterations": 2**31}, "iterations must be a whole number"),
        ({"needed": [True]}, "needed must hold 4 entries a kernel, 4; got 1"),
        ({"compatibility": torch.ones(7)}, "compatibilities must have shape"),
        ({"compatibility": torch.ones((), dtype=torch.float64)}, "compatibilities must have the dtype of out"),
        ({"norm": torch.ones(1, 7)}, "norms_in must have shape"),
        ({"long": True}, "rows must be contiguous int32"),
        ({"double": True}, "weights must have the dtype of out"),
    ],
)
def test_the_backward_operator_checks_what_it_is_given(lattice: Lattice, changes: dict, message: str) -> None:
    out = torch.full((1, POINTS, 2), 0.5)
    given = {"order": None, "iterations": 1, "needed": [False] * 4, "compatibility": torch.ones(()), "norm": out[0, :0]}
    given |= changes
    rows = lattice.rows.long() if "long" in changes else lattice.rows
    weights = lattice.weights.double() if "double" in changes else lattice.weights
    trace = torch.full((1, 1, POINTS, 2), 0.5)
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        BACKWARD(
            out, out, trace, [rows], [weights], [lattice.structure], [given["norm"]], [out[0, :0]],
            [given["compatibility"]], given["order"], given["iterations"], 0.0, False, False, False, given["needed"],
        )  # fmt: skip


# Another thread writes to rows, structure and order while operators read them.
RACE = """
import threading, time
import numpy as np
import torch
from deeplab_crf.ops.lattice.operators import build_lattice
from deeplab_crf.ops.mean_field.forward import PairwiseTerm, mean_field

N = 40000
features = np.random.default_rng(0).normal(size=(1, N, 3)).astype(np.float32)
lattice = build_lattice(torch.from_numpy(features))
order = torch.arange(N, dtype=torch.int32)
targets = [tensor.numpy().reshape(-1) for tensor in (lattice.rows, lattice.structure, order)]
goods = [target.copy() for target in targets]
stop = threading.Event()

def disturb():
    rng = np.random.default_rng(1)
    while not stop.is_set():
        for bad in (-1, 2**31 - 1, 10**7, -(2**31)):
            for target, good in zip(targets, goods):
                target[rng.integers(0, len(target), 200)] = bad
                target[:] = good

writer = threading.Thread(target=disturb)
writer.start()
values, unary = torch.ones(1, N, 1), torch.ones(1, N, 3)
out, trace = torch.full((1, N, 3), 1 / 3), torch.full((2, 1, N, 3), 1 / 3)
terms = [PairwiseTerm(lattice, None, None, torch.ones(()))]
empty = torch.empty(0)
calls = [
    lambda: lattice.filter(values),
    lambda: mean_field(unary, terms, 2, order=order),
    lambda: torch.ops.deeplab_crf.lattice_norm(*lattice, None, True),
    lambda: torch.ops.deeplab_crf.mean_field_backward(
        out, out, trace, [lattice.rows], [lattice.weights], [lattice.structure], [empty], [empty], [torch.ones(())], order, 2,
        0.0, False, False, False, [True, False, False, True]),
    lambda: torch.ops.deeplab_crf.lattice_filter_weights_backward(values, values, *lattice, False),
]
end = time.monotonic() + 5
done = refused = 0
while time.monotonic() < end:
    for call in calls:
        try:
            call()
            done += 1
        except ValueError as error:
            assert "must" in str(error), error
            refused += 1
stop.set()
writer.join()
assert done and refused, (done, refused)
print("end")
"""


def test_tensors_that_change_during_a_call_do_not_crash() -> None:
    done = samples.run_python(RACE)
    assert (done.returncode, done.stdout.strip()) == (0, "end"), done.stderr
