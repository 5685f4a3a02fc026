# resnet50_8xb512-fast-16e_in1k.py over 88 epochs: what is said there holds here.
# Source: ffcv-imagenet, rn50_configs/rn50_88_epochs.yaml.
# Hardware: as there, SHM_SIZE=20gb for 8 ranks included; 77 minutes on 8 A100 at its source.
# Expected: less than its 78.4 % top-1, for what is left out (BlurPool, mirror images at test time, some decay).
# State: NOT verified: never trained with this library.
_base_ = ['./resnet50_8xb512-fast-16e_in1k.py']
lr_config = dict(pct_start=2 / 88)
runner = dict(max_epochs=88)
custom_hooks = [dict(type='ProgressiveSizeHook', start=160, end=192, begin=65, until=76)]
