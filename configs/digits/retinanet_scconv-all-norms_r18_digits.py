"""SCConv in backbone, FPN and towers, with inner norms in all of them."""

_base_ = '../retinanet_scconv_all_r18_digits.py'

model = dict(
    conv_cfg=dict(type='SCConv', low_squeeze='output', inner_norm=True),
)
