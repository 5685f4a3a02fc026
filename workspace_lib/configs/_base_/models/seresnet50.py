_base_ = './resnet50.py'
model = dict(backbone=dict(type='SEResNet'))
