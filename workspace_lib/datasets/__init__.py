"""Data sets, pipelines and the loader; importing this registers them all."""

from workspace_lib.datasets.base import BaseDataset
from workspace_lib.datasets.builder import build_dataloader, build_dataset
from workspace_lib.datasets.builtin import CIFAR10, CIFAR100, MNIST, FashionMNIST, MNIST5k
from workspace_lib.datasets.decode import DecodeError, decode
from workspace_lib.datasets.folder import CustomDataset, ImageNet
from workspace_lib.datasets.loader import Loader
from workspace_lib.datasets.pipeline import DeviceStage, Pipeline
from workspace_lib.datasets.transforms import ImageStep
from workspace_lib.registry import DATASETS, PIPELINES, SAMPLERS

__all__ = ['CIFAR10', 'CIFAR100', 'DATASETS', 'MNIST', 'PIPELINES', 'SAMPLERS', 'BaseDataset',
           'CustomDataset', 'DecodeError', 'DeviceStage', 'FashionMNIST', 'ImageNet', 'ImageStep', 'Loader',
           'MNIST5k', 'Pipeline', 'build_dataloader', 'build_dataset', 'decode']
