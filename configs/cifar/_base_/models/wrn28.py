"""WideResNet-28-10 of Table 2."""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='CIFARWideResNet', depth=28, widen_factor=10),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=640, loss=dict(type='CrossEntropyLoss')),
)
