# LeNet-5 on 4,000 of the 5,000 built-in MNIST digits; the other 1,000 are held out. No network, two CPU cores, under
# a minute. mmclassification's lenet5_mnist.py (SGD at 0.01, a step at epoch 15, 5 epochs) is made for 60,000 digits
# and ends near 90 % on so few.
_base_ = [
    '../_base_/models/lenet5.py',
    '../_base_/datasets/mnist5k.py',
    '../_base_/schedules/mnist5k.py',
    '../_base_/default_runtime.py',
]
evaluation = dict(interval=1, metric='accuracy', metric_options={'topk': (1, )})
checkpoint_config = dict(interval=5)
