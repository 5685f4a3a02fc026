"""Importing this package registers every backbone, neck, head, loss and classifier."""
from .backbones import (
    LeNet5,
    ResNeSt,
    ResNet,
    ResNet_CIFAR,
    ResNetV1c,
    ResNetV1d,
    ResNeXt,
    TIMMBackbone,
    TorchvisionBackbone,
)
from .builder import (
    BACKBONES,
    CLASSIFIERS,
    HEADS,
    LOSSES,
    NECKS,
    build_backbone,
    build_classifier,
    build_head,
    build_loss,
    build_neck,
)
from .classifier import ImageClassifier
from .heads import ClsHead, LinearClsHead
from .init import BaseModule, initialize
from .losses import CrossEntropyLoss, LabelSmoothLoss
from .necks import GlobalAveragePooling

__all__ = [
    'BACKBONES', 'CLASSIFIERS', 'HEADS', 'LOSSES', 'NECKS', 'BaseModule', 'ClsHead', 'CrossEntropyLoss',
    'GlobalAveragePooling', 'ImageClassifier', 'LabelSmoothLoss', 'LeNet5', 'LinearClsHead', 'ResNeSt',
    'ResNeXt', 'ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNet_CIFAR', 'TIMMBackbone', 'TorchvisionBackbone',
    'build_backbone', 'build_classifier', 'build_head', 'build_loss', 'build_neck', 'initialize',
]
