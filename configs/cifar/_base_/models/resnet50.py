"""ResNet-50 of Tables 1 and 2, with CIFAR's stem."""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='CIFARBottleneckResNet', depth=50),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=2048, loss=dict(type='CrossEntropyLoss')),
)
