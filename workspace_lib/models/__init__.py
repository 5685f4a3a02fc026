"""Importing this package registers every backbone, neck, head, loss and classifier."""
from ..registry import BACKBONES, CLASSIFIERS, HEADS, LOSSES, NECKS
from .backbones.lenet import LeNet5
from .backbones.resnest import ResNeSt
from .backbones.resnet import ResNet, ResNet_CIFAR, ResNetV1c, ResNetV1d, ResNeXt
from .backbones.timm_backbone import TIMMBackbone
from .backbones.torchvision_backbone import TorchvisionBackbone
from .builder import build_backbone, build_classifier, build_head, build_loss, build_neck
from .classifier import ImageClassifier
from .heads import ClsHead, LinearClsHead, MultiLabelClsHead, MultiLabelLinearClsHead
from .init import BaseModule, initialize
from .losses import CrossEntropyLoss, LabelSmoothLoss
from .necks import GlobalAveragePooling

__all__ = [
    'BACKBONES', 'CLASSIFIERS', 'HEADS', 'LOSSES', 'NECKS', 'BaseModule', 'ClsHead', 'CrossEntropyLoss',
    'GlobalAveragePooling', 'ImageClassifier', 'LabelSmoothLoss', 'LeNet5', 'LinearClsHead', 'MultiLabelClsHead',
    'MultiLabelLinearClsHead', 'ResNeSt', 'ResNeXt', 'ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNet_CIFAR',
    'TIMMBackbone', 'TorchvisionBackbone', 'build_backbone', 'build_classifier', 'build_head', 'build_loss',
    'build_neck', 'initialize',
]
