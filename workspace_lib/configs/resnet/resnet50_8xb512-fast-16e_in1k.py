# ResNet-50 on ImageNet in 16 short epochs: images of 160, at the end 192 pixels, label smoothing, no decay on norms.
# Source: ffcv-imagenet (github.com/libffcv/ffcv-imagenet), rn50_configs/rn50_16_epochs.yaml and train_imagenet.py:
# SGD with 1.7 for 4,096 images, up for 2 epochs, then on a line to 0; no moving average of the weights.
# Left out: its BlurPool, and the mean over both mirror images at test time, which its figures include; and the decay of
# the norms in its shortcuts: its rule goes by 'bn' in a parameter's name, which those do not have. Here no norm decays.
# Hardware: 8 GPUs of 40 GB or more, Ampere or newer, and workers that feed them (a training copy of the images, resized
# or packed: datasets/README.md). On one GPU: optimizer_config.cumulative_iters=8.
# Shared memory (SHM_SIZE in .env): 20gb for 8 ranks on one machine. Training takes 27 batches (2 for each of 12 workers
# + 3) of 54 MiB a rank, 11.4 GiB in all; validation 11 of 48 MiB a rank, 4.1 GiB.
# Expected: less than its 73.8 % top-1 (15 minutes on 8 A100), for what is left out; by how much is not known.
# State: NOT verified: never trained with this library; a test takes a few steps of it on a CPU at toy size.
_base_ = ['../_base_/models/resnet50.py', '../_base_/datasets/imagenet_bs32.py', '../_base_/default_runtime.py']
model = dict(head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', size=192),
    dict(type='RandomFlip', flip_prob=0.5, direction='horizontal'),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='ImageToTensor', keys=['img']),
    dict(type='ToTensor', keys=['gt_label']),
    dict(type='Collect', keys=['img', 'gt_label']),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', size=(292, -1)),  # a crop of 7/8 of the short side, at 256 pixels
    dict(type='CenterCrop', crop_size=256),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='ImageToTensor', keys=['img']),
    dict(type='Collect', keys=['img']),
]
data = dict(
    samples_per_gpu=512,
    workers_per_gpu=12,
    train=dict(pipeline=train_pipeline),
    val=dict(pipeline=test_pipeline),
    test=dict(pipeline=test_pipeline),
    train_dataloader=dict(drop_last=True),
    val_dataloader=dict(samples_per_gpu=256, workers_per_gpu=4),
    test_dataloader=dict(samples_per_gpu=256, workers_per_gpu=4))
optimizer = dict(
    type='SGD', lr=1.7, momentum=0.9, weight_decay=1e-4, paramwise_cfg=dict(norm_decay_mult=0.))
optimizer_config = dict(grad_clip=None)
lr_config = dict(
    policy='OneCycle', max_lr=1.7, pct_start=2 / 16, anneal_strategy='linear', div_factor=1e4, final_div_factor=1e4)
runner = dict(type='EpochBasedRunner', max_epochs=16)
custom_hooks = [dict(type='ProgressiveSizeHook', start=160, end=192, begin=11, until=13)]
compile = dict(mode='default')
