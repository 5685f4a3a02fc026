"""Data sets, pipelines and the loader; importing this registers them all."""

from ..registry import DATASETS, PIPELINES, SAMPLERS
from . import colour, geometry  # noqa: F401  (register their steps)
from .base import BaseDataset
from .builder import build_dataloader, build_dataset
from .builtin import CIFAR10, CIFAR100, MNIST, FashionMNIST, MNIST5k
from .decode import DecodeError, decode
from .folder import CustomDataset, ImageNet
from .loader import Loader
from .pipeline import DeviceStage, Pipeline
from .transforms import ImageStep

__all__ = ['CIFAR10', 'CIFAR100', 'DATASETS', 'MNIST', 'PIPELINES', 'SAMPLERS', 'BaseDataset',
           'CustomDataset', 'DecodeError', 'DeviceStage', 'FashionMNIST', 'ImageNet', 'ImageStep', 'Loader',
           'MNIST5k', 'Pipeline', 'build_dataloader', 'build_dataset', 'decode']
