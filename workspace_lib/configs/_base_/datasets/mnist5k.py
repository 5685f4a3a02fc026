# 5,000 real MNIST digits that need no download, at LeNet's 32 x 32 pixels
dataset_type = 'MNIST5k'
img_norm_cfg = dict(mean=[33.46], std=[78.87], to_rgb=False)
train_pipeline = [
    dict(type='Resize', size=32),
    dict(type='RandomCrop', size=32, padding=2),  # moves the digit by up to 2 pixels
    dict(type='Normalize', **img_norm_cfg),
    dict(type='ImageToTensor', keys=['img']),
    dict(type='ToTensor', keys=['gt_label']),
    dict(type='Collect', keys=['img', 'gt_label']),
]
test_pipeline = [
    dict(type='Resize', size=32),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='ImageToTensor', keys=['img']),
    dict(type='Collect', keys=['img']),
]
data = dict(
    samples_per_gpu=64,
    workers_per_gpu=0,  # 5,000 digits in memory: starting a worker would take longer than its work
    train=dict(type=dataset_type, pipeline=train_pipeline),
    val=dict(type=dataset_type, pipeline=test_pipeline, test_mode=True),
    test=dict(type=dataset_type, pipeline=test_pipeline, test_mode=True))
evaluation = dict(interval=1, metric='accuracy', metric_options=dict(topk=(1, )))
