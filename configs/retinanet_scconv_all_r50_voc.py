"""SCConv also in FPN's 3x3 convolutions and in the towers of the head; the paper has it in backbones alone."""

_base_ = './retinanet_scconv_r50_voc.py'
model = dict(
    type='ReplaceConv',
    model='RetinaNet',
    conv_cfg=dict(type='SCConv'),
    # The prediction layers stay: the head initializes them by name.
    match=['neck.fpn_convs.*', 'bbox_head.cls_convs.*', 'bbox_head.reg_convs.*'],
)
