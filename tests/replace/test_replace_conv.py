import copy
import dataclasses

import pytest
import torch
from torch import nn

from helpers.configs import YOLOX
from mmscconv import SCConv, replace_conv
from mmscconv.layers.rivals import TiedConv

SCCONV = dict(type='SCConv')
PAPER = dict(type='SCConv', low_squeeze='output', inner_norm=True)


def check_trains(model, loss, result):
    """Backward through ``loss`` reaches every parameter of every new layer."""
    loss.backward()
    modules = dict(model.named_modules())
    for name in result.replaced:
        assert isinstance(modules[name], SCConv)
        for key, parameter in modules[name].named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), f'{name}.{key}'


def mmdet_model(config, options):
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.hub import get_config
    from mmengine.registry import MODELS

    register_all_modules()
    cfg = config if isinstance(config, Config) else get_config(config)
    cfg.merge_from_dict(options)
    return MODELS.build(cfg.model)


FASTER_RCNN = {
    'model.backbone.init_cfg': None,
    'model.backbone.base_channels': 8,
    'model.backbone.frozen_stages': -1,
    'model.neck.in_channels': [32, 64, 128, 256],
    'model.neck.out_channels': 16,
    'model.rpn_head.in_channels': 16,
    'model.rpn_head.feat_channels': 16,
    'model.roi_head.bbox_roi_extractor.out_channels': 16,
    'model.roi_head.bbox_head.in_channels': 16,
    'model.roi_head.bbox_head.fc_out_channels': 32,
    'model.roi_head.bbox_head.num_classes': 3,
}


def test_resnet50():
    torchvision = pytest.importorskip('torchvision')
    model = torchvision.models.resnet50(num_classes=4)
    result = replace_conv(model, PAPER)
    assert len(result.replaced) == 16 and set(result.skipped) == {'conv1'}
    assert 'channels=3' in result.skipped['conv1'] and '  layer4.2.conv2' in str(result).splitlines()
    # Table 3's 16.78 M, with its 1000 classes: what the replaced ResNet-50 must come to.
    assert sum(p.numel() for p in model.parameters()) + 996 * 2049 == 16_787_768
    check_trains(model, model(torch.randn(2, 3, 32, 32)).square().sum(), result)


def test_mobilenet_depthwise_is_skipped():
    torchvision = pytest.importorskip('torchvision')
    model = torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r'17 skipped, depthwise: features\.1\.conv\.0\.0'):
        replace_conv(model, SCCONV)
    assert list(model.state_dict()) == list(before)
    result = replace_conv(model, dict(type='SCConv', arrangement='C', squeeze_ratio=1, gwc_groups=1))
    assert result.replaced == ('features.0.0',)
    assert len(result.skipped) == 17 and set(result.skipped.values()) == {'depthwise'}
    check_trains(model, model(torch.randn(2, 3, 32, 32)).square().sum(), result)


def test_convnext():
    timm = pytest.importorskip('timm')
    model = timm.create_model('convnext_atto', num_classes=4)
    with pytest.raises(ValueError, match='12 skipped, depthwise'):
        replace_conv(model, SCCONV)
    with pytest.raises(
        ValueError, match=r"match='body\.\*'.*The model has 1 Conv2d 4x4 \(stem\.0\), 12 Conv2d 7x7 dep"
    ):
        replace_conv(model, SCCONV, 'body.*')
    stem = replace_conv(model, dict(type=SCConv, arrangement='C', squeeze_ratio=1, gwc_groups=1), 'stem.*')
    assert stem.replaced == ('stem.0',) and stem.skipped == {}
    down = replace_conv(model, SCConv, r're:stages\.\d\.downsample\.1', min_kernel=2)
    assert down.replaced == tuple(f'stages.{i}.downsample.1' for i in (1, 2, 3))
    both = dataclasses.replace(stem, replaced=stem.replaced + down.replaced)
    check_trains(model, model(torch.randn(2, 3, 64, 64)).square().sum(), both)


@pytest.mark.parametrize(
    ('config', 'options', 'match', 'count', 'channels'),
    [
        ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', FASTER_RCNN, ('backbone.*', 'neck.*'), 16 + 4, 8),
        ('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', YOLOX, None, 30, 1),
    ],
    ids=['faster-rcnn', 'yolox'],
)
def test_detectors(config, options, match, count, channels):
    pytest.importorskip('mmdet')
    from mmdet.testing import demo_mm_inputs

    model = mmdet_model(config, options)
    result = replace_conv(model, SCCONV, match, min_channels=channels)
    data = model.data_preprocessor(demo_mm_inputs(2, [[3, 64, 64]] * 2, num_classes=3), training=True)
    losses = model.train()(**data, mode='loss')
    assert len(result.replaced) == count
    check_trains(model, sum(v if torch.is_tensor(v) else sum(v) for k, v in losses.items() if 'loss' in k), result)


def test_keeps_settings():
    conv = nn.Conv2d(8, 12, (3, 5), stride=2, padding=(1, 4), dilation=(1, 2), dtype=torch.float64)
    model = nn.Sequential(conv, nn.Conv2d(12, 8, 3, padding='same', bias=False, device='meta')).eval()
    replace_conv(model, dict(type='SCConv', gwc_groups=1))
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    assert model[0](x).shape == conv(x).shape and model[0](x).dtype == torch.float64
    assert (model[0].stride, model[0].padding, model[0].dilation) == ((2, 2), (1, 4), (1, 2))
    assert model[0].bias is not None and not any(m.training for m in model.modules())
    assert model[1].padding == 'same' and model[1].bias is None and model[1].cru.gwc.weight.is_meta


class Padded(nn.Conv2d):
    def forward(self, x):
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


def test_skips():
    tied, frozen, hooked = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
    twin = nn.Conv2d(8, 8, 3, padding=1)
    twin.weight = tied.weight
    hooked.register_forward_hook(lambda *args: None)
    convs = {
        'plain': nn.Conv2d(8, 8, 3, padding=1),
        'grouped': nn.Conv2d(8, 8, 3, groups=4),
        'depthwise': nn.Conv2d(8, 8, 3, groups=8),
        'reflect': nn.Conv2d(8, 8, 3, padding_mode='reflect'),
        'transposed': nn.ConvTranspose2d(8, 8, 3),
        'subclass': Padded(8, 8, 3),
        'normed': nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)),
        'tied': tied,
        'twin': twin,
        'frozen': frozen.requires_grad_(False),
        'hooked': hooked,
        'odd': nn.Conv2d(7, 8, 3),
        'ours': SCConv(8, 8, 3, gwc_groups=1),
    }
    model = nn.ModuleDict({**convs, 'pointwise': nn.Conv2d(8, 8, 1), 'wide': nn.Conv2d(8, 8, (1, 7))})
    result = replace_conv(model, SCCONV)
    assert result.replaced == ('plain',)
    assert set(result.skipped) == convs.keys() - {'plain'}
    assert {name for name in convs if model[name] is convs[name]} == set(result.skipped)
    words = dict(grouped='groups=4', depthwise='depthwise', reflect="'reflect'", transposed='ConvTranspose2d')
    words |= dict(subclass='Padded', tied='shares', twin='shares', frozen='frozen', hooked='hooks', odd='channels=7')
    assert all(word in result.skipped[name] for name, word in words.items())


def test_deformable_and_conv_module():
    bricks = pytest.importorskip('mmcv.cnn')
    dcn = bricks.ConvModule(8, 8, 3, conv_cfg=dict(type='DCNv2'))
    model = nn.Sequential(bricks.ConvModule(8, 8, 3, norm_cfg=dict(type='BN')), dcn)
    result = replace_conv(model, SCCONV)
    assert result.replaced == ('0.conv',)
    # Its conv_offset is a plain 3x3 convolution, but part of the DCN.
    assert result.skipped == {'1.conv': 'ModulatedDeformConv2dPack is not a plain nn.Conv2d'}


def test_shared_module_is_replaced_once():
    conv, block = nn.Conv2d(8, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3))
    model = nn.ModuleDict(dict(a=conv, b=conv, c=block, d=block))
    result = replace_conv(model, SCCONV, ['b', 'd.*'])
    assert result.replaced == ('a', 'c.0')
    assert isinstance(model['a'], SCConv) and model['a'] is model['b']
    assert isinstance(model['c'][0], SCConv) and model['c'] is model['d']


def test_match_function():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3))
    assert replace_conv(model, SCCONV, lambda name, conv: conv.out_channels == 16, min_channels=16).replaced == ('2',)


@pytest.mark.parametrize(
    ('conv_cfg', 'match', 'error', 'message'),
    [
        (dict(type='SConv'), None, ValueError, "unknown conv type 'SConv'"),
        (dict(alpha=0.5), None, TypeError, 'needs a type'),
        ('SCConv', None, TypeError, 'must be a dict'),
        (dict(type='SCConv', alhpa=0.5), None, TypeError, "cannot be made with these settings.*'alhpa'"),
        (dict(type='SCConv', alpha=2), None, ValueError, r'1 skipped, SCConv refuses it: alpha must lie in \[0, 1\]'),
        (dict(type='SCConv', gwc_groups=64), None, ValueError, 'multiples of groups = 64.*Nearest settings'),
        (lambda *args, **kwargs: 'no module', None, TypeError, 'made a str'),
        (SCCONV, 're:(', ValueError, 'not a regular expression'),
        (SCCONV, 5, TypeError, 'match must be'),
        (SCCONV, 'nothing', ValueError, r'The model has 2 Conv2d 3x3 \(0, \.\.\.\), 1 Conv2d 3x3 depthwise \(2\)\.'),
    ],
)
def test_bad_input_leaves_the_model(conv_cfg, match, error, message):
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(9, 9, 3), nn.Conv2d(4, 4, 3, groups=4))
    before = list(model)
    with pytest.raises(error, match=f'(?s){message}'):
        replace_conv(model, conv_cfg, match)
    assert list(model) == before


def test_error_after_first_success_replaces_nothing():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 3))
    before = list(model)

    def fails_later(in_channels, out_channels, *args, **kwargs):
        return SCConv(in_channels, out_channels, *args, **kwargs) if out_channels == 8 else None

    with pytest.raises(TypeError, match='made a NoneType'):
        replace_conv(model, fails_later)
    assert list(model) == before


def test_root_and_empty_model():
    with pytest.raises(ValueError, match=r'itself a Conv2d.*pass the module that holds it'):
        replace_conv(nn.Conv2d(8, 8, 3), SCCONV)
    with pytest.raises(ValueError, match='no convolution at all'):
        replace_conv(nn.Sequential(nn.Linear(2, 2)), SCCONV)


def test_another_number_of_channels_is_a_reason():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3))
    found = replace_conv(model, lambda *args, **settings: nn.Conv2d(args[0], 4, args[2]))
    assert found.replaced == ('1',) and 'it returns 4 channels instead of 8' in found.skipped['0']


def test_a_forward_of_the_instance_is_an_obstacle():
    model = nn.Sequential(nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3))
    model[0].forward = model[0].forward
    found = replace_conv(model, SCCONV)
    assert found.replaced == ('1',) and found.skipped == {'0': 'its forward was replaced, which would be lost'}


def test_tied_blocks_are_no_plain_convolution():
    model = nn.Sequential(TiedConv(32, 32, 3), nn.Conv2d(32, 32, 3))
    found = replace_conv(model, SCCONV, match='*')
    assert found.replaced == ('1',) and found.skipped == {'0': 'TiedConv is not a plain nn.Conv2d'}
    assert isinstance(model[0], TiedConv)  # nor is what it has inside


class Net(nn.Module):
    """Holds its layers a second time, as ``keep`` says, and calls them there."""

    def __init__(self, keep):
        super().__init__()
        self.first, self.second, self.free = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.__dict__['steps'] = keep(self)


@pytest.mark.parametrize(
    'keep',
    [
        lambda net: [net.first, net.second],
        lambda net: (net.second, 1, net.first),
        lambda net: {'a': net.first, 'b': net.second},
        lambda net: {net.first, net.second},
    ],
    ids=['list', 'tuple', 'dict', 'set'],
)
def test_a_convolution_that_is_held_outside_of_the_modules_stays(keep):
    model = nn.Sequential(Net(keep))
    found = replace_conv(model, SCCONV)
    assert found.replaced == ('0.free',)
    reason = 'the model also holds it in Net.steps, where the old one would run on'
    assert found.skipped == {'0.first': reason, '0.second': reason}


def test_a_convolution_that_is_held_directly_stays():
    model = Net(lambda net: net.first)
    found = replace_conv(model, SCCONV)
    assert found.replaced == ('second', 'free') and 'also holds it in Net.steps' in found.skipped['first']


def test_a_block_that_is_held_elsewhere_gets_new_convolutions():
    block = nn.Sequential(nn.Conv2d(8, 8, 3))
    model = nn.ModuleDict(dict(block=block))
    model.__dict__['blocks'] = [block]
    assert replace_conv(model, SCCONV).replaced == ('block.0',)


def wrapped_by_ddp(model):
    import torch.distributed as dist

    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        return nn.parallel.DistributedDataParallel(model)
    finally:
        dist.destroy_process_group()


def wrapped_by_fsdp(model):
    from torch.distributed.fsdp import FullyShardedDataParallel

    fsdp = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(fsdp)
    fsdp.inner = model
    return fsdp


@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.parametrize('wrap', [wrapped_by_ddp, wrapped_by_fsdp])
def test_a_wrapped_model_is_refused(wrap, inside):
    model = wrap(nn.Sequential(nn.Conv2d(8, 8, 3)))
    words = r'is wrapped in \w+DataParallel, .* call replace_conv first, and wrap the model afterwards'
    with pytest.raises(ValueError, match=words):
        replace_conv(nn.ModuleDict(dict(inner=model)) if inside else model, SCCONV)
    assert any(type(m) is nn.Conv2d for m in model.modules())
