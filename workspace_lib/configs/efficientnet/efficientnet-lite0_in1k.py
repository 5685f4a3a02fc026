# EfficientNet-Lite0 with the ImageNet weights that a package carries: `packaged://efficientnet-lite0`.
_base_ = [
    '../_base_/models/efficientnet-lite0.py',
    '../_base_/datasets/imagenet_bs32_lite0.py',
    '../_base_/schedules/imagenet_bs256.py',
    '../_base_/default_runtime.py',
]
