# ResNeSt-50 on ImageNet as people meet it when they first print a config: 8 x 32 images, SGD at 0.1, steps at
# 30/60/90 of 100 epochs. The published ResNeSt recipe (270 epochs, RandAugment) is a longer one.
_base_ = [
    '../_base_/models/resnest50.py',
    '../_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/imagenet_bs256.py',
    '../_base_/default_runtime.py',
]
model = dict(head=dict(loss=dict(_delete_=True, type='CrossEntropyLoss', loss_weight=1.0), cal_acc=False))
