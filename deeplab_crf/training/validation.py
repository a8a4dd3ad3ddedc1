"""Validation of a network during its training, without CRF and at full resolution."""

from __future__ import annotations

from deeplab_crf.data.datasets import SegmentationFolder
from deeplab_crf.evaluation.metrics import ConfusionMatrix
from deeplab_crf.models.deeplab import DeepLab
from deeplab_crf.models.pipeline import SegmentationPipeline
from deeplab_crf.runtime.processes import World


def validate(network: DeepLab, dataset: SegmentationFolder, world: World) -> ConfusionMatrix:
    """Return the confusion matrix over all images, the same in each process.

    Args:
        network: The network.
        dataset: The images and labels, shared out over the processes.
        world: The processes.
    """
    pipeline = SegmentationPipeline(network, None, pad_to=1)
    own = ConfusionMatrix(len(dataset.classes))
    for i in range(world.rank, len(dataset), world.size):
        example = dataset[i]
        (found,) = pipeline.predict(example.image)
        own.add(found.labels.cpu().numpy(), example.labels)
    total = ConfusionMatrix(len(dataset.classes))
    for each in world.gather(own):
        total.merge(each)
    return total
