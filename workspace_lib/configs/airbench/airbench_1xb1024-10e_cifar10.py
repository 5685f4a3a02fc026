# A small network on CIFAR-10 in ten epochs: seconds on a GPU.
# Source: airbench94 (Jordan 2024, arXiv:2404.00498; github.com/KellerJordan/cifar10-airbench, legacy/airbench94.py):
# its network, batch, label smoothing, crops, Lookahead, and test-time augmentation; its first layer, which whitens
# patches and is not trained; its learning rate, momentum and decay as torch's SGD counts them with the mean loss, for
# BatchNorm's biases 64 times the rate.
# Left out: flips that alternate between epochs (here by chance). The paper then takes 10.8 epochs to 94 %, not 9.9.
# Other than there: filters are found from a batch of 1024 crops, not of 5,000 whole images; the first layer's bias does
# not begin at 0, and is trained to the end, not for three epochs; Lookahead also draws back at the end of an epoch, and
# the run ends with weights that it drew back once more, not with the slow ones; BatchNorm has torch's eps.
# Hardware: one GPU, Ampere or newer.
# Expected: towards airbench94's 94.01 % (3.8 s on an A100). And more time: the loader crops and flips on the CPU, where
# airbench has all data on the GPU.
# State: NOT verified at its full width. On a CPU in float32, seed 0, one run each, of CIFAR-10 as JPEG files (lossy):
# - a quarter as wide, 20,000 images, batches of 256, and a quarter of the rate, it named 80.8 % of 3,000 test images;
#   airbench94.py itself, changed to the same, 80.9 %; this recipe as it was before 79.1 %.
# - half as wide, 10,000 images, else the same: 79.0 %, and as it was before 77.6 %.
# Before: without whitening, the faster biases, Lookahead and the six views of a test image; the weights of BatchNorm
# and the head's bias were trained, and the head began smaller. So it was trained whole once, and named 85.6 % of the
# 10,000 test images: the mark of 94 % was MISSED. Never trained on a GPU.
_base_ = ['../_base_/datasets/cifar10_bs16.py', '../_base_/default_runtime.py']
model = dict(
    type='ImageClassifier',
    backbone=dict(type='Airbench', test_views=True),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=256, topk=(1, ),
              loss=dict(type='LabelSmoothLoss', label_smooth_val=0.2),
              init_cfg=dict(type='Kaiming', layer='Linear', a=5**0.5, mode='fan_in', nonlinearity='leaky_relu',
                            distribution='uniform')))  # torch's own for a linear layer
img_norm_cfg = dict(mean=[125.307, 122.961, 113.8575], std=[62.985, 62.0925, 66.708], to_rgb=False)
train_pipeline = [
    dict(type='RandomCrop', size=32, padding=2, padding_mode='reflect'),
    dict(type='RandomFlip', flip_prob=0.5, direction='horizontal'),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='ImageToTensor', keys=['img']),
    dict(type='ToTensor', keys=['gt_label']),
    dict(type='Collect', keys=['img', 'gt_label']),
]
test_pipeline = [
    dict(type='Normalize', **img_norm_cfg),
    dict(type='ImageToTensor', keys=['img']),
    dict(type='Collect', keys=['img']),
]
data = dict(samples_per_gpu=1024, workers_per_gpu=8, train=dict(pipeline=train_pipeline),
            val=dict(pipeline=test_pipeline), test=dict(pipeline=test_pipeline), train_dataloader=dict(drop_last=True))
optimizer = dict(
    type='SGD', lr=0.3, momentum=0.85, weight_decay=1.33e-3, nesterov=True,
    # BatchNorm's biases move 64 times as fast, and decay no faster for it; the head has no bias
    paramwise_cfg=dict(custom_keys={'norm': dict(lr_mult=64, decay_mult=1 / 64), 'fc.bias': dict(lr_mult=0)}))
optimizer_config = dict(grad_clip=None)
# from 0.3 to 1.5 in 23 % of the run, and on to 0.07 of that; unlike OneCycle, in proportion for each parameter
lr_config = dict(policy='Cyclic', target_ratio=(5, 5 * 0.07), cyclic_times=1, step_ratio_up=0.23,
                 anneal_strategy='linear')
custom_hooks = [dict(type='WhitenHook', layer='backbone.layers.0'), dict(type='LookaheadHook')]
runner = dict(type='EpochBasedRunner', max_epochs=10)
evaluation = dict(interval=10, metric='accuracy', metric_options=dict(topk=(1, )))
checkpoint_config = dict(interval=10)
log_config = dict(interval=48)  # an epoch
