_base_ = [
    '../_base_/models/seresnet50.py',
    '../_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/imagenet_bs256.py',
    '../_base_/default_runtime.py',
]
lr_config = dict(step=[40, 80, 120])
runner = dict(max_epochs=140)
