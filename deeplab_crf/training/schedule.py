"""How the learning rate rises and falls during a training. No torch."""

from __future__ import annotations

from deeplab_crf.training.settings import TrainSettings

POWER = 0.9  # section 4.1.1 of arXiv 1606.00915
FACTOR = 0.1


def learning_rate(settings: TrainSettings, iteration: int) -> float:
    """The trunk's learning rate in iteration 0, 1, ... of ``settings.iterations``.

    poly: lr · (1 - iteration / iterations) ** 0.9, as V2. step: a tenth after every ``settings.step`` iterations, as V1. Over the
    first ``settings.warmup`` iterations times (iteration + 1) / warmup.
    """
    rate = settings.learning_rate * min((iteration + 1) / max(settings.warmup, 1), 1.0)
    if settings.policy == "poly":
        return float(rate * (1 - iteration / settings.iterations) ** POWER)
    return float(rate * FACTOR ** (iteration // settings.step))
