"""How sure a result is, and what the iterations did: marginals, entropy, labels, energies, and a plot of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deeplab_crf.crf.dense_crf import DenseCRF
from deeplab_crf.crf.exact import compatible, updated
from deeplab_crf.crf.inputs import check_floats, check_tensor, check_two_labels
from deeplab_crf.crf.messages import exact_messages, lattice_messages, walked_unary
from deeplab_crf.runtime.checks import whole_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def marginals(logits: Tensor) -> Tensor:
    """The probabilities Q of a layer's refined logits ``(B, L, ...)``, or softmax of any logits; same shape.

    Raises TypeError for what is no tensor of floats and ValueError for a single label, as `entropy` and `map_labels` do, which
    takes integers too.
    """
    _check_logits(logits)
    check_floats(logits, "logits")
    return torch.softmax(logits, dim=1)


def entropy(logits: Tensor) -> Tensor:
    """How unsure each pixel is: ``-sum_l Q log Q`` of logits ``(B, L, ...)``, in nats from 0 to log L. Returns ``(B, ...)``.

    Mean field underestimates it: the marginals of a fully factorised approximation are too sure of themselves.
    """
    _check_logits(logits)
    check_floats(logits, "logits")
    log_q = torch.log_softmax(logits, dim=1)
    # A label that a pixel cannot have adds 0, not 0 * -inf.
    return -(log_q.exp() * log_q.clamp(min=torch.finfo(log_q.dtype).min)).sum(dim=1)


def map_labels(logits: Tensor) -> Tensor:
    """The most probable label of each pixel of logits ``(B, L, ...)``: int64 ``(B, ...)``."""
    _check_logits(logits)
    return logits.argmax(dim=1)


def _check_logits(logits: Tensor) -> None:
    check_tensor(logits, "logits")
    if logits.is_complex() or logits.dtype == torch.bool:
        raise TypeError(f"logits must hold real numbers; got {logits.dtype}")
    check_two_labels(logits)


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What mean field iterations did, image by image, for T iterations and B images. Masked pixels are not counted.

    logits: refined, as the layer returns them. num_pixels: ``(B,)`` that are not masked. The terms of the mean field objective at
    Q_0 ... Q_T, float64 ``(T + 1, B)``, summed over the pixels: entropy_term sum Q log Q, unary_term sum U Q, pairwise_term sum Q
    (C K Q), each pair counted twice and the self terms included. label_changes: share of the pixels whose label iteration t
    changed, float64 ``(T, B)``. largest_moves: of a probability in iteration t, ``(T, B)``.
    """

    logits: Tensor
    num_pixels: Tensor
    entropy_term: Tensor
    unary_term: Tensor
    pairwise_term: Tensor
    label_changes: Tensor
    largest_moves: Tensor

    @property
    def kl(self) -> Tensor:
        """pydensecrf's klDivergence ``(T + 1, B)``: the sum of the three terms, the pairwise one not halved."""
        return self.entropy_term + self.unary_term + self.pairwise_term

    @property
    def free_energy(self) -> Tensor:
        """What the updates are to descend ``(T + 1, B)``: KL(Q || P) up to the constant log Z, the pairwise term halved."""
        return self.entropy_term + self.unary_term + 0.5 * self.pairwise_term


@torch.no_grad()
def diagnose(
    crf: DenseCRF,
    logits: Tensor,
    image: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    iterations: int | None = None,
) -> Diagnosis:
    """Run a layer's iterations one at a time and keep their energies; without gradients.

    logits, image, mask: as in `DenseCRF.forward`. iterations: None takes the layer's; more of them show whether it has converged.
    The layer's tolerance is not heeded. Costs one filter a kernel and iteration, and one more for the energy of the result.
    """
    count = crf.iterations if iterations is None else whole_number(iterations, "iterations")
    problem = crf.problem(logits, image, mask)
    messages = exact_messages(problem) if crf.method == "exact" else lattice_messages(problem)
    unary = walked_unary(problem)
    inside = torch.ones_like(unary[..., 0], dtype=torch.bool) if problem.mask is None else problem.mask
    log_q, pairwise = torch.log_softmax(-unary, dim=-1), torch.zeros_like(unary)
    terms, changes, moves = [], [], []
    for iteration in range(count + 1):
        if iteration:
            before, log_q = log_q, updated(unary, pairwise, log_q, crf.damping)
            changes.append(_mean(before.argmax(-1) != log_q.argmax(-1), inside))
            moves.append((before.exp() - log_q.exp()).abs().amax(dim=(1, 2)))
        q = log_q.exp()
        pairwise = torch.zeros_like(unary)
        for message, compatibility in zip(messages, problem.compatibilities, strict=True):
            pairwise += compatible(message(q), compatibility)
        terms.append(torch.stack([_total(q * part, inside) for part in (log_q, unary, pairwise)]))
    entropy_term, unary_term, pairwise_term = torch.stack(terms, dim=1)
    none = unary.new_empty(0, len(unary))
    refined = log_q if problem.order is None else torch.empty_like(log_q).index_copy_(1, problem.order.long(), log_q)
    return Diagnosis(
        refined.transpose(1, 2).reshape(logits.shape).to(logits.dtype),
        inside.sum(dim=1),
        entropy_term,
        unary_term,
        pairwise_term,
        torch.stack(changes) if changes else none.double(),
        torch.stack(moves) if moves else none,
    )


def _total(values: Tensor, inside: Tensor) -> Tensor:
    """Sum of ``(B, N, L)`` over labels and the pixels inside, in double precision: ``(B,)``."""
    return (values.sum(dim=-1, dtype=torch.float64) * inside).sum(dim=-1)


def _mean(flags: Tensor, inside: Tensor) -> Tensor:
    """Share of the pixels inside whose flag ``(B, N)`` is set: ``(B,)``."""
    return (flags & inside).sum(dim=1).double() / inside.sum(dim=1).clamp(min=1)


def plot_convergence(diagnosis: Diagnosis) -> Figure:
    """A figure of the label changes and of the free energy a pixel over the iterations, a line for each image.

    Save it with ``.savefig(path)``. Raises ImportError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError('plots need matplotlib. Install it: pip install "deeplab-crf[bench]"') from error
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    energies, changes = figure.subplots(1, 2)
    per_pixel = (diagnosis.free_energy / diagnosis.num_pixels.clamp(min=1)).cpu()
    iterations = len(diagnosis.label_changes)
    for image in range(per_pixel.shape[1]):
        energies.plot(range(iterations + 1), per_pixel[:, image], marker="o", label=f"image {image}")
        shares = 100 * diagnosis.label_changes[:, image].cpu()
        changes.plot(range(1, iterations + 1), shares, marker="o", label=f"image {image}")
    energies.set_ylabel("free energy a pixel (nats)")
    changes.set_ylabel("labels changed (% of the pixels)")
    changes.set_ylim(bottom=0)
    for axes in (energies, changes):
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    if per_pixel.shape[1] > 1:
        energies.legend()
    return figure
