"""Importing this package registers every backbone, neck, head, loss and classifier."""
from ..registry import BACKBONES, CLASSIFIERS, HEADS, LOSSES, NECKS
from .backbones.convnext import ConvNeXt
from .backbones.lenet import LeNet5
from .backbones.mobilenet_v2 import MobileNetV2
from .backbones.resnest import ResNeSt
from .backbones.resnet import ResNet, ResNet_CIFAR, ResNetV1c, ResNetV1d, ResNeXt
from .backbones.seresnet import SEResNet, SEResNeXt
from .backbones.timm_backbone import TIMMBackbone
from .backbones.torchvision_backbone import TorchvisionBackbone
from .backbones.vgg import VGG
from .backbones.vision_transformer import VisionTransformer
from .builder import build_backbone, build_classifier, build_head, build_loss, build_neck
from .classifier import ImageClassifier
from .distilled_heads import EfficientFormerClsHead as EfficientFormerClsHead
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
