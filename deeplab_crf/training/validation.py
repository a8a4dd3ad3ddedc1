"""How good a network is in the middle of its training: without CRF, at full resolution."""

from __future__ import annotations

from deeplab_crf.data.datasets import SegmentationFolder
from deeplab_crf.evaluation.metrics import ConfusionMatrix
from deeplab_crf.models.deeplab import DeepLab
from deeplab_crf.models.pipeline import SegmentationPipeline
from deeplab_crf.runtime.processes import World


def validate(network: DeepLab, photographs: SegmentationFolder, world: World) -> ConfusionMatrix:
    """The confusion matrix over all photographs, which the processes share out among them; the same in each of them."""
    pipeline = SegmentationPipeline(network, None, pad_to=1)
    own = ConfusionMatrix(len(photographs.classes))
    for i in range(world.rank, len(photographs), world.size):
        example = photographs[i]
        (found,) = pipeline.predict(example.image)
        own.add(found.labels.cpu().numpy(), example.labels)
    total = ConfusionMatrix(len(photographs.classes))
    for each in world.gather(own):
        total.merge(each)
    return total
