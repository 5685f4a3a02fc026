"""Importing this package registers every backbone."""
from .lenet import LeNet5
from .resnest import ResNeSt
from .resnet import ResNet, ResNet_CIFAR, ResNetV1c, ResNetV1d, ResNeXt
from .timm_backbone import TIMMBackbone
from .torchvision_backbone import TorchvisionBackbone

__all__ = ['LeNet5', 'ResNeSt', 'ResNeXt', 'ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNet_CIFAR', 'TIMMBackbone',
           'TorchvisionBackbone']
