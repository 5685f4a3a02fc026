# LeNet-5 on 4,000 of the 5,000 built-in MNIST digits; the other 1,000 are held out. No network, two CPU cores, under
# a minute. 98.0, 97.6 and 98.4 % with the seeds 0, 1 and 2.
#
# What was tried, as means of these seeds: mmclassification's settings for 60,000 digits (SGD at 0.01, 5 epochs of
# batches of 128) 71.9; this recipe without moving the digits 97.2, with a rate of 0.05 97.6, of 0.2 98.0, with a weight
# decay of 0.0005 98.0, with twice the epochs 98.1.
_base_ = [
    '../_base_/models/lenet5.py',
    '../_base_/datasets/mnist5k.py',
    '../_base_/schedules/mnist5k.py',
    '../_base_/default_runtime.py',
]
checkpoint_config = dict(interval=5, max_keep_ckpts=1)
