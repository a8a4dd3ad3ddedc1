"""The learning rate over a training. Needs no torch."""

from __future__ import annotations

from deeplab_crf.training.settings import TrainSettings

POWER = 0.9  # section 4.1.1 of arXiv 1606.00915
FACTOR = 0.1


def learning_rate(settings: TrainSettings, iteration: int) -> float:
    """Return the backbone's learning rate in iteration 0, 1, ...

    Policy "poly" (V2) is lr · (1 - iteration / iterations) ** 0.9. Policy "step" (V1) takes a tenth
    after every ``settings.step`` iterations. The first ``settings.warmup`` iterations are
    multiplied by (iteration + 1) / warmup.

    References:
        Chen et al., arXiv 1606.00915, section 4.1.1.
    """
    rate = settings.learning_rate * min((iteration + 1) / max(settings.warmup, 1), 1.0)
    if settings.policy == "poly":
        return float(rate * (1 - iteration / settings.iterations) ** POWER)
    return float(rate * FACTOR ** (iteration // settings.step))
