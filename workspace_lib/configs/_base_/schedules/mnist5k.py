# LeNet-5 on 4,000 digits: 20 short epochs at ten times the rate that is usual for 60,000.
optimizer = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.002, nesterov=True)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='CosineAnnealing', by_epoch=False, min_lr=0, warmup='linear', warmup_iters=60, warmup_ratio=0.1)
runner = dict(type='EpochBasedRunner', max_epochs=20)
