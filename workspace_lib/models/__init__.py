"""Importing this package registers every backbone, neck, head, loss and classifier."""
from ..registry import BACKBONES, CLASSIFIERS, HEADS, LOSSES, NECKS
from .backbones import (
    VGG,
    ConvNeXt,
    LeNet5,
    MobileNetV2,
    ResNeSt,
    ResNet,
    ResNet_CIFAR,
    ResNetV1c,
    ResNetV1d,
    ResNeXt,
    SEResNet,
    SEResNeXt,
    TIMMBackbone,
    TorchvisionBackbone,
    VisionTransformer,
)
from .builder import build_backbone, build_classifier, build_head, build_loss, build_neck
from .classifier import ImageClassifier
from .heads import (
    ClsHead,
    CSRAClsHead,
    LinearClsHead,
    MultiLabelClsHead,
    MultiLabelLinearClsHead,
    VisionTransformerClsHead,
)
from .init import BaseModule, initialize
from .losses import AsymmetricLoss, CrossEntropyLoss, FocalLoss, LabelSmoothLoss
from .necks import GeneralizedMeanPooling, GlobalAveragePooling

__all__ = [
    'BACKBONES', 'CLASSIFIERS', 'HEADS', 'LOSSES', 'NECKS', 'VGG', 'AsymmetricLoss', 'BaseModule', 'CSRAClsHead',
    'ClsHead', 'ConvNeXt', 'CrossEntropyLoss', 'FocalLoss', 'GeneralizedMeanPooling', 'GlobalAveragePooling',
    'ImageClassifier', 'LabelSmoothLoss', 'LeNet5', 'LinearClsHead', 'MobileNetV2', 'MultiLabelClsHead',
    'MultiLabelLinearClsHead', 'ResNeSt', 'ResNeXt', 'ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNet_CIFAR', 'SEResNeXt',
    'SEResNet', 'TIMMBackbone', 'TorchvisionBackbone', 'VisionTransformer', 'VisionTransformerClsHead',
    'build_backbone', 'build_classifier', 'build_head', 'build_loss', 'build_neck', 'initialize',
]
