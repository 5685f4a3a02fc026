# Eight times the batch of imagenet_bs256.py, so eight times its rate, reached over the first 2,500 iterations.
optimizer = dict(type='SGD', lr=0.8, momentum=0.9, weight_decay=0.0001, nesterov=True)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='CosineAnnealing', min_lr=0, warmup='linear', warmup_iters=2500, warmup_ratio=0.25)
runner = dict(type='EpochBasedRunner', max_epochs=100)
