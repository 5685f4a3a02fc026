"""Importing this package registers every backbone, neck, head, loss and classifier."""
# ruff: noqa: F401  (what is imported here is this package's table of contents)
from ..registry import BACKBONES, CLASSIFIERS, HEADS, LOSSES, NECKS
from .backbones.airbench import Airbench
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
from .heads import (
    ClsHead,
    CSRAClsHead,
    EfficientFormerClsHead,
    LinearClsHead,
    MultiLabelClsHead,
    MultiLabelLinearClsHead,
    VisionTransformerClsHead,
)
from .init import BaseModule, initialize
from .losses import AsymmetricLoss, CrossEntropyLoss, FocalLoss, LabelSmoothLoss
from .necks import GeneralizedMeanPooling, GlobalAveragePooling
