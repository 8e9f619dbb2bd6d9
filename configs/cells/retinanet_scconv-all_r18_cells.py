"""SCConv also in FPN's 3x3 convolutions and in the towers of the head, on blood cells."""

_base_ = './retinanet_scconv_r18_cells.py'

model = dict(
    type='ReplaceConv',
    model='RetinaNet',
    conv_cfg=dict(type='SCConv'),
    match=['neck.fpn_convs.*', 'bbox_head.cls_convs.*', 'bbox_head.reg_convs.*'],
)
