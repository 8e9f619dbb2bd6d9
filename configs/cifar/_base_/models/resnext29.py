"""ResNeXt-29 of Table 2, 320 channels wide."""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='CIFARResNeXt'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=1024, loss=dict(type='CrossEntropyLoss')),
)
