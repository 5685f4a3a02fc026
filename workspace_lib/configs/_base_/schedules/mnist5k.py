# LeNet-5 on 4,000 digits, 25 short epochs at ten times the rate that is usual for 60,000.
optimizer = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.001, nesterov=True)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='CosineAnnealing', by_epoch=False, min_lr=0)
runner = dict(type='EpochBasedRunner', max_epochs=25)
