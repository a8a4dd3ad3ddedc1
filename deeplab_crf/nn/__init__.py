"""Fused convolution modules, and `fuse`, which puts them into a network. Needs torch."""

from deeplab_crf.nn.fuse import fuse
from deeplab_crf.nn.fusion_report import FusionReport
from deeplab_crf.nn.modules import ASPPSum, DilatedConv2d
from deeplab_crf.ops.conv.packed_weights import forget_weights

__all__ = ["ASPPSum", "DilatedConv2d", "FusionReport", "forget_weights", "fuse"]
