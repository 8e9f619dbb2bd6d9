"""DenseNet-121 of Table 2."""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='CIFARDenseNet', arch='121'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=1024, loss=dict(type='CrossEntropyLoss')),
)
