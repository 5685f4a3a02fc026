# ResNet-50 on ImageNet as mmclassification 0.25 has it: 100 epochs, a tenth of the rate every 30.
# Source: mmclassification 0.25.0, resnet50_8xb32_in1k.py, with published weights (torchvision-like recipe of He et al.
# 2015, arXiv:1512.03385).
# Hardware: 8 GPUs x 32 images, in float32 a few GB of memory each; on fewer, optimizer_config.cumulative_iters keeps
# the batch of 256.
# Expected: 76.55 % top-1, 93.06 % top-5 (mmclassification's table).
# State: NOT verified: no training of 100 epochs was run with this library. Model, optimizer, schedule and pipelines are
# those of mmclassification (tests compare them).
_base_ = [
    '../_base_/models/resnet50.py',
    '../_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/imagenet_bs256.py',
    '../_base_/default_runtime.py',
]
