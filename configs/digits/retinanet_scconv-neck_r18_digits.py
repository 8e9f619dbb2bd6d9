"""SCConv in backbone and FPN, to tell which part of SCConv everywhere costs accuracy."""

_base_ = '../retinanet_scconv_all_r18_digits.py'

model = dict(
    match=['neck.fpn_convs.*'],
)
