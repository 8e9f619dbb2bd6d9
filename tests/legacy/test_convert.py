"""Checkpoints of the unofficial ScConv load into the legacy layers and give the same numbers."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

import mmscconv.models  # noqa: F401, registers the layers
from helpers.unofficial_reference import ReferenceScConv, fill
from mmscconv import LegacySCConv, SCConv, convert_weights, replace_conv
from mmscconv.complexity.counting import count
from mmscconv.legacy.convert import NAMES, find_layers, settings_table
from mmscconv.legacy.layer import LegacyCRU, LegacySRU
from mmscconv.models import switch_to_deploy
from mmscconv.paper.measures import record_gate_shares


def converted(theirs, num_groups=4, threshold=0.5):
    """Build the layer that the state dict asks for, and load it strictly."""
    state = theirs.state_dict()
    (found,) = find_layers(state)
    settings = found.conv_cfg(num_groups)
    assert settings.pop('type') == 'LegacySCConv'
    k = found.kernel_size
    layer = LegacySCConv(found.channels, found.channels, k, padding=k // 2, threshold=threshold, **settings)
    layer.load_state_dict(convert_weights(state))
    return layer.to(state['CRU.GWC.bias'].dtype)


@pytest.mark.parametrize('torch_gn', [True, False], ids=['GroupNorm', 'own norm'])
@pytest.mark.parametrize('channels', [16, 48, 128])
@pytest.mark.parametrize(
    'settings',
    [
        {}, {'group_num': 16}, {'alpha': 1 / 4}, {'alpha': 3 / 4, 'kernel': 5}, {'kernel': 1, 'group_num': 16},
        {'squeeze': 4, 'groups': 1}, {'threshold': 0.47, 'groups': 4, 'squeeze': 1},
    ],
    ids=str,
)  # fmt: skip
def test_legacy_layer_gives_the_same_numbers(settings, channels, torch_gn):
    theirs = fill(ReferenceScConv(channels, torch_gn=torch_gn, **settings))
    layer = converted(theirs, settings.get('group_num', 4), settings.get('threshold', 0.5))
    x = torch.randn(2, channels, 6, 5) + 0.2
    want = theirs(x)
    torch.testing.assert_close(layer(x), want, rtol=1e-6, atol=1e-6 * want.abs().max().item())
    want = theirs.double()(x.double())
    torch.testing.assert_close(layer.double()(x.double()), want, rtol=1e-12, atol=1e-12 * want.abs().max().item())


def test_gate_sides_with_a_weight_that_fp32_rounds_to_the_threshold():
    # 512 channels and small gammas bring W so near to 0.5 that most of it is 0.5 in fp32.
    theirs = fill(ReferenceScConv(512))
    with torch.no_grad():
        theirs.SRU.gn.weight[:-1].mul_(1e-8)
    layer, x = converted(theirs), torch.randn(1, 512, 4, 4)
    rounded = ((layer.sru.logit(x) > 0) & (layer.sru.logit(x).sigmoid() == 0.5)).float().mean()
    assert rounded > 0.3
    torch.testing.assert_close(layer.sru(x), theirs.SRU(x))


def test_own_norm_takes_groups_that_do_not_divide_the_channels():
    theirs = fill(ReferenceScConv(24, group_num=16, torch_gn=False)).double()
    layer, x = converted(theirs, 16), torch.randn(2, 24, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match='24 x 3 x 3 values cannot be normalized in num_groups=16 groups'):
        layer(x[:, :, :3, :3])


class Net(nn.Module):
    """Two modules among other layers; ``make(channels)`` makes them."""

    def __init__(self, make):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.stage1 = nn.Sequential(make(16), nn.BatchNorm2d(16), nn.ReLU())
        self.widen = nn.Conv2d(16, 32, 1)
        self.stage2 = nn.ModuleDict({'conv': make(32), 'bn': nn.BatchNorm2d(32)})
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.widen(self.stage1(self.stem(x)))
        return self.head(self.stage2['bn'](self.stage2['conv'](x)).relu().mean((2, 3)))


def our_net(**settings):
    return Net(lambda c: LegacySCConv(c, c, 3, padding=1, **settings))


@pytest.fixture
def theirs():
    return fill(Net(ReferenceScConv)).eval()


def test_whole_network(theirs):
    state = theirs.state_dict()
    got = convert_weights(state)
    ours = our_net().eval()
    assert list(ours.load_state_dict(got)) == [[], []]
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    # Entries of other modules stay as they are, in their places.
    untouched = [key for key in state if 'RU.' not in key]
    assert [key for key in got if 'ru.' not in key] == untouched
    assert all(got[key] is state[key] for key in untouched)
    assert [layer.prefix for layer in find_layers(state)] == ['stage1.0.', 'stage2.conv.']


def test_prefix_narrows_it_down(theirs):
    got = convert_weights(theirs.state_dict(), prefix='stage2')
    assert 'stage2.conv.cru.gwc.bias' in got and 'stage1.0.CRU.GWC.bias' in got
    with pytest.raises(ValueError, match="no unofficial ScConv under 'stage3'"):
        convert_weights(theirs.state_dict(), prefix='stage3')


def test_paper_form_keeps_the_weights_and_never_loses_a_bias_unasked(theirs):
    state = theirs.state_dict()
    with pytest.raises(ValueError, match=r'stage1\.0\.CRU\.GWC\.bias is not zero and has no place in SCConv'):
        convert_weights(state, form='paper')
    settings = find_layers(state)[0].conv_cfg(form='paper')
    assert settings.pop('type') == 'SCConv'
    ours = Net(lambda c: SCConv(c, c, 3, padding=1, **settings))
    ours.load_state_dict(convert_weights(state, form='paper', drop_gwc_bias=True))
    assert torch.equal(ours.stage2['conv'].cru.gwc.weight, theirs.stage2['conv'].CRU.GWC.weight)
    for module in (theirs.stage2['conv'].CRU.GWC, theirs.stage1[0].CRU.GWC):
        nn.init.zeros_(module.bias)
    assert convert_weights(theirs.state_dict(), form='paper').keys() == ours.state_dict().keys()
    # The units' parts that both forms share give the same: the SRU and the convolutions.
    x = torch.randn(1, 16, 5, 5)
    torch.testing.assert_close(ours.stage1[0].sru(x), theirs.stage1[0].SRU(x))
    cru = theirs.stage1[0].CRU
    up, low = cru.squeeze1(x[:, :8]), cru.squeeze2(x[:, 8:])
    y1, y2 = cru.GWC(up) + cru.PWC1(up), torch.cat((cru.PWC2(low), low), 1)
    beta1 = (y1.mean((2, 3), True) - y2.mean((2, 3), True)).sigmoid()
    torch.testing.assert_close(ours.stage1[0].cru(x), beta1 * y1 + (1 - beta1) * y2)


def breakage(key, change):
    def apply(state):
        state[key] = change(state[key])

    return apply


BROKEN = {
    'incomplete': (lambda s: s.pop('CRU.PWC2.weight'), r"the layer '' is incomplete, missing: CRU.PWC2.weight"),
    'unbiased': (lambda s: s.pop('CRU.GWC.bias'), r'missing: CRU\.GWC\.bias'),
    'changed': (lambda s: s.update({'CRU.bn.weight': torch.ones(16)}), r'CRU\.bn\.weight is in no known version'),
    'channels': (breakage('SRU.gn.weight', lambda w: w[:8]), r'SRU\.gn\.weight has shape \(8,\) instead of \(16,\)'),
    'gn': (breakage('SRU.gn.bias', lambda w: w.view(-1, 1, 1)), r'SRU\.gn\.bias has shape \(16, 1, 1\)'),
    'bias': (breakage('CRU.GWC.bias', lambda w: w[:4]), r'CRU\.GWC\.bias has shape \(4,\) instead of \(16,\)'),
    'PWC1': (breakage('CRU.PWC1.weight', lambda w: w[:, :1]), r'CRU\.PWC1\.weight has shape \(16, 1, 1, 1\)'),
    'PWC2': (breakage('CRU.PWC2.weight', lambda w: w[:3]), r'PWC2\.weight has shape .* instead of \(12, 4, 1, 1\)'),
    'groups': (
        breakage('CRU.GWC.weight', lambda w: torch.zeros(16, 3, 3, 3)), r'GWC\.weight .* instead of \(16, 4, 3, 3\)',
    ),
    'even kernel': (breakage('CRU.GWC.weight', lambda w: w[..., :2, :2]), 'GWC.weight has a 2x2 kernel'),
    'no convolution': (breakage('CRU.squeeze1.weight', lambda w: w[0, 0]), 'which no convolution has'),
    'squeezes': (breakage('CRU.squeeze2.weight', lambda w: w[:1]), 'not one squeeze ratio'),
    'no tensor': (breakage('CRU.GWC.bias', lambda w: w.tolist()), r'CRU\.GWC\.bias is a list, not a tensor'),
    'taken': (
        lambda s: s.update({'sru.gn.weight': torch.ones(16)}), r'SRU\.gn\.weight would become sru\.gn\.weight, which',
    ),
    'none': (lambda s: [s.pop(key) for key in NAMES], r"none of the 0 keys is called '\.\.\.SRU\.gn\.weight'"),
}  # fmt: skip


@pytest.mark.parametrize('case', BROKEN)
def test_broken_groups_of_keys_are_named(case):
    breaks, message = BROKEN[case]
    state = dict(ReferenceScConv(16).state_dict())
    breaks(state)
    with pytest.raises(ValueError, match=message):
        convert_weights(state)


def test_already_converted_or_unrelated_names_are_no_layers():
    state = convert_weights(ReferenceScConv(16).state_dict())
    for other in (state, {'MySRU.gn.weight': torch.ones(4)}):
        with pytest.raises(ValueError, match='no unofficial ScConv'):
            convert_weights(other)
    with pytest.raises(ValueError, match="got form='mine'"):
        convert_weights(state, form='mine')


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'num_groups': 3}, 'num_groups=3 does not divide channels=16: give the group_num'),
        ({'alpha': 1}, 'alpha must lie between 0 and 1, got 1'),
        ({'groups': 2}, 'groups must be 1'),
        ({'gwc_groups': 3}, 'must both be multiples of groups = 3'),
    ],
    ids=str,
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LegacySCConv(16, 16, 3, **kwargs)


def test_bad_input():
    for layer in (LegacySCConv(8, 8, 3), LegacySRU(8), LegacyCRU(8, 8)):
        with pytest.raises(ValueError, match=rf'{type(layer).__name__} expects .* got shape \(2, 4, 6, 6\)'):
            layer(torch.zeros(2, 4, 6, 6))
    with pytest.raises(ValueError, match='groups of two or more'):
        LegacySRU(4, torch_gn=False)(torch.zeros(1, 4, 1, 1))


def test_what_goes_before_the_cru_is_applied():
    layer, x = LegacySCConv(8, 8, 3), torch.randn(2, 8, 6, 6)
    for images in (x, x[0]):
        assert torch.equal(layer.cru.after(layer.sru, images), layer.cru(layer.sru(images)))


def test_conv2d_contract():
    for args in ((8, 8, 3, 1, 1), (8, 16, 3, 2, 1), (16, 4, 5, 2, 2, 1), (8, 8, 3, 1, 'same', 2)):
        for bias in (False, True):
            layer, conv = LegacySCConv(*args, bias=bias), nn.Conv2d(*args, bias=bias)
            x = torch.randn(2, args[0], 9, 10)
            assert layer(x).shape == conv(x).shape
            torch.testing.assert_close(layer(x[0]), layer(x)[0])
            assert layer(x[:0]).shape == conv(x[:0]).shape
    torch.testing.assert_close(layer.sru(x[0]), layer.sru(x)[0])
    torch.testing.assert_close(layer.cru(x[0]), layer.cru(x)[0])


@pytest.mark.parametrize('torch_gn', [True, False])
def test_every_parameter_gets_a_gradient(torch_gn):
    layer = fill(LegacySCConv(8, 8, 3, padding=1, bias=True, torch_gn=torch_gn))
    layer(torch.randn(2, 8, 6, 6)).square().sum().backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name


def test_data_parallel_training_waits_for_no_parameter(tmp_path):
    dist.init_process_group('gloo', f'file://{tmp_path / "store"}', rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(our_net())
        for _ in range(2):  # a parameter without gradient raises in the second iteration
            model(torch.randn(2, 3, 16, 16)).sum().backward()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize('torch_gn', [True, False])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_follows_fp32(dtype, torch_gn):
    layer = fill(LegacySCConv(64, 64, 3, padding=1, torch_gn=torch_gn))
    x = torch.randn(2, 64, 8, 8)
    want, refined = layer(x), layer.sru(x)
    bound = 8 * torch.finfo(dtype).eps * want.abs().max()
    with torch.autocast('cpu', dtype=dtype):
        out = layer(x)
        assert torch.equal(layer.sru(x), refined)  # of fp32 input nothing is rounded
    assert (out.float() - want).abs().max() < bound
    out.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    half = copy.deepcopy(layer).to(dtype)
    assert half(x.to(dtype)).dtype == dtype
    x = x.to(dtype).float()
    assert ((half(x.to(dtype)).float() - layer(x)).abs() < 2 * bound).float().mean() > 0.999


def test_export_has_a_batch_of_any_size():
    model = our_net().eval()
    x = torch.randn(2, 3, 16, 16)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim('n', min=2)},))
    x = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(exported.module()(x), model(x))


@pytest.mark.parametrize('torch_gn', [True, False])
def test_deploy_form_is_exact(torch_gn):
    model = fill(our_net(torch_gn=torch_gn)).eval()
    x = torch.randn(2, 3, 16, 16)
    want = model(x)
    before = str(model)
    deployed = switch_to_deploy(model)
    assert torch.equal(deployed(x), want)
    assert str(deployed) == before
    # A neighbour that can be folded still is.
    both = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), *model.stage1).double()
    want = fill(both).eval()(x := x.double())
    assert isinstance(switch_to_deploy(both)[1], nn.Identity)
    torch.testing.assert_close(both(x), want)


def test_counting_sees_its_convolutions():
    class Image(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.stem, self.layer = nn.Conv2d(3, 16, 1, bias=False), layer

        def forward(self, x):
            return self.layer(self.stem(x))

    legacy, paper = (count(Image(layer(16, 16, 3, padding=1)), (8, 8)) for layer in (LegacySCConv, SCConv))
    assert legacy.macs == paper.macs
    assert legacy.params - paper.params == 16  # the GWC's bias
    assert legacy.group_norm_params == paper.group_norm_params == 32


def test_conv_cfg_and_replace_conv_know_it(theirs):
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1, bias=False))
    replace_conv(model, dict(type='LegacySCConv', num_groups=8), match='1')
    assert isinstance(model[1], LegacySCConv) and model[1].sru.num_groups == 8
    with record_gate_shares(model) as shares:
        model(torch.randn(2, 3, 8, 8))
    assert 0 < shares['1.sru'] < 1


def test_tool_converts_a_checkpoint_as_it_was_saved(tool, theirs, tmp_path):
    state = {f'module.{key}': value for key, value in theirs.state_dict().items()}
    torch.save({'model': state, 'optimizer': {'state': {}}, 'meta': {'epoch': 3}}, tmp_path / 'in.pth')
    status, out, err = tool('convert_weights', tmp_path / 'in.pth', tmp_path / 'out.pth')
    assert status == 0, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in.pth', 'out.pth']
    content = torch.load(tmp_path / 'out.pth', weights_only=True)
    assert set(content) == {'state_dict', 'meta'} and content['meta'] == {'epoch': 3}
    lines = out.splitlines()
    assert lines[1].split() == ['stage1.0', '16', '3', '0.5', '2', '2', 'GroupNorm']
    assert lines[2].split()[0] == 'stage2.conv'
    assert "the prefix 'module.'" in out and lines[-1] == f'wrote {tmp_path / "out.pth"}'
    (line,) = (line for line in lines if line.startswith('conv_cfg='))
    cfg = eval(line.removeprefix('conv_cfg='))
    assert cfg.pop('type') == 'LegacySCConv'
    ours = our_net(**cfg).eval()
    ours.load_state_dict(content['state_dict'])
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_tool_says_what_the_paper_form_is(tool, tmp_path):
    torch.save(fill(ReferenceScConv(16, torch_gn=False)).state_dict(), tmp_path / 'in.pth')
    args = ('convert_weights', tmp_path / 'in.pth', tmp_path / 'out.pth', '--form', 'paper')
    status, _, err = tool(*args)
    assert status == 2 and 'drop_gwc_bias=True, --drop-gwc-bias' in err
    assert not (tmp_path / 'out.pth').exists()
    status, out, err = tool(*args, '--drop-gwc-bias', '--group-num', '8')
    assert status == 0, err
    assert "conv_cfg=dict(type='SCConv', alpha=0.5, squeeze_ratio=2, gwc_groups=2, num_groups=8)" in out
    assert 'other numbers' in out and '(the whole)' in out
    SCConv(16, 16, 3).load_state_dict(torch.load(tmp_path / 'out.pth')['state_dict'])


def test_layers_that_differ_get_a_line_each():
    state = {f'{name}.{key}': value for name, k in (('a', 3), ('b', 3), ('c', 3)) for key, value in
             ReferenceScConv(16, alpha=0.5 if name != 'c' else 0.75, kernel=k).state_dict().items()}  # fmt: skip
    lines = [line for line in settings_table(find_layers(state)).splitlines() if line.startswith('conv_cfg')]
    assert [line.split('# ')[1] for line in lines] == ['a, b', 'c']
    assert 'alpha=0.75' in lines[1]


def save(content):
    return lambda folder: torch.save(content, folder / 'in.pth')


TOOL_ERRORS = {
    'not there': (lambda folder: None, 'out.pth', 'checkpoint is not there: '),
    'itself': (save(ReferenceScConv(16).state_dict()), 'in.pth', 'is the checkpoint itself: name another file'),
    'none': (save({'state_dict': {'conv.weight': torch.ones(1)}}), 'out.pth', 'no unofficial ScConv: none of the 1'),
    'no weights': (save({'state_dict': torch.ones(2)}), 'out.pth', 'holds a Tensor where its weights should be'),
    'no folder': (save(ReferenceScConv(16).state_dict()), 'no/out.pth', 'cannot write'),
    'groups': (save(ReferenceScConv(18, 2).state_dict()), 'out.pth', 'SRU.gn: 4 groups do not divide 18 channels'),
}


@pytest.mark.parametrize('case', TOOL_ERRORS)
def test_tool_s_errors_are_one_line_and_change_nothing(case, tool, tmp_path):
    make, out, message = TOOL_ERRORS[case]
    make(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    status, _, err = tool('convert_weights', tmp_path / 'in.pth', tmp_path / out)
    assert status == 2 and err.startswith('error: ') and message in err and err.count('\n') == 1
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
