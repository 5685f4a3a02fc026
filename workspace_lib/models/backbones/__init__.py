"""Importing this package registers every backbone."""
from .convnext import ConvNeXt
from .lenet import LeNet5
from .mobilenet_v2 import MobileNetV2
from .resnest import ResNeSt
from .resnet import ResNet, ResNet_CIFAR, ResNetV1c, ResNetV1d, ResNeXt
from .seresnet import SEResNet, SEResNeXt
from .timm_backbone import TIMMBackbone
from .torchvision_backbone import TorchvisionBackbone
from .vgg import VGG
from .vision_transformer import VisionTransformer

__all__ = ['VGG', 'ConvNeXt', 'LeNet5', 'MobileNetV2', 'ResNeSt', 'ResNeXt', 'ResNet', 'ResNetV1c', 'ResNetV1d',
           'ResNet_CIFAR', 'SEResNeXt', 'SEResNet', 'TIMMBackbone', 'TorchvisionBackbone', 'VisionTransformer']
