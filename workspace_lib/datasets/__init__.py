"""Data sets, pipelines and the loader; importing this registers them all."""
# ruff: noqa: F401  (what is imported here is this package's table of contents)
from ..registry import DATASETS, PIPELINES, SAMPLERS
from . import auto_augment, colour, geometry, samplers  # register what they define
from .base import BaseDataset
from .builder import build_dataloader, build_dataset
from .builtin import CIFAR10, CIFAR100, MNIST, FashionMNIST, MNIST5k
from .decode import DecodeError, decode
from .fine_grained import CUB, StanfordCars
from .folder import CustomDataset, ImageNet, ImageNet21k
from .loader import Loader
from .mixing import BatchAugments
from .multi_label import COCO, VOC, MultiLabelDataset
from .pipeline import DeviceStage, Pipeline
from .transforms import ImageStep
from .wrappers import ClassBalancedDataset, ConcatDataset, KFoldDataset, RepeatDataset
