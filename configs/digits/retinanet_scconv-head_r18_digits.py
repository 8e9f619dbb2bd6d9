"""SCConv in backbone and the head's towers, to tell which part of SCConv everywhere costs accuracy."""

_base_ = '../retinanet_scconv_all_r18_digits.py'

model = dict(
    match=['bbox_head.cls_convs.*', 'bbox_head.reg_convs.*'],
)
