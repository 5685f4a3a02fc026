# A small network on CIFAR-10 in ten epochs: seconds on a GPU.
# Source: airbench94 (Jordan 2024, arXiv:2404.00498; github.com/KellerJordan/cifar10-airbench): its network, batch,
# label smoothing, and its learning rate, momentum and decay as torch's SGD counts them with the mean loss.
# Left out: whitening of the first layer by the data, the 64 times larger rate of BatchNorm's biases, Lookahead, flips
# that alternate between epochs (here by chance), and test-time augmentation; the paper finds that each of them counts.
# Hardware: one GPU, Ampere or newer.
# Expected: 85.6 %, far less than airbench94's 94.01 % (3.8 s on an A100), for what is left out. And more time: the
# loader crops and flips on the CPU, where airbench has all data on the GPU.
# State: trained whole once, on a CPU in float32, channels last, seed 0, from all of CIFAR-10 as JPEG files (lossy):
# after epochs 1 to 10 it named 48.3, 66.9, 68.7, 74.2, 76.5, 79.5, 78.2, 80.9, 84.0, 85.6 % of the 10,000 test images.
# So the mark of 94 % is MISSED. Never trained on a GPU.
_base_ = ['../_base_/datasets/cifar10_bs16.py', '../_base_/default_runtime.py']
model = dict(
    type='ImageClassifier',
    backbone=dict(type='Airbench'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=256, topk=(1, ),
              loss=dict(type='LabelSmoothLoss', label_smooth_val=0.2)))
img_norm_cfg = dict(mean=[125.307, 122.961, 113.8575], std=[51.5865, 50.847, 51.255], to_rgb=False)
train_pipeline = [
    dict(type='RandomCrop', size=32, padding=2, padding_mode='reflect'),
    dict(type='RandomFlip', flip_prob=0.5, direction='horizontal'),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='ImageToTensor', keys=['img']),
    dict(type='ToTensor', keys=['gt_label']),
    dict(type='Collect', keys=['img', 'gt_label']),
]
data = dict(samples_per_gpu=1024, workers_per_gpu=8, train=dict(pipeline=train_pipeline),
            train_dataloader=dict(drop_last=True))
optimizer = dict(type='SGD', lr=1.5, momentum=0.85, weight_decay=1.33e-3, nesterov=True)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='OneCycle', max_lr=1.5, pct_start=0.23, anneal_strategy='linear', div_factor=5,
                 final_div_factor=0.2 / 0.07)
runner = dict(type='EpochBasedRunner', max_epochs=10)
evaluation = dict(interval=10, metric='accuracy', metric_options=dict(topk=(1, )))
checkpoint_config = dict(interval=10)
log_config = dict(interval=48)  # an epoch
