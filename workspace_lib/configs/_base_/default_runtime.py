# What every recipe shares: a checkpoint per epoch, a line of log per 100 iterations.
checkpoint_config = dict(interval=1)
log_config = dict(
    interval=100,
    hooks=[
        dict(type='TextLoggerHook'),
        # dict(type='TensorboardLoggerHook'),
    ])
dist_params = dict(backend='nccl')  # between GPUs; processes on CPUs use gloo
log_level = 'INFO'
load_from = None
resume_from = None
workflow = [('train', 1)]
# custom_hooks = [dict(type='GPUMonitorHook')]  # load, memory, power and heat of the GPU in the log
