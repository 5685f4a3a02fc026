# ILSVRC2012, batches of 64
_base_ = './imagenet_bs32.py'
data = dict(samples_per_gpu=64)
