"""--amp on a CPU: bf16 autocast without a loss scaler."""

import pytest
import torch
from mmdet.models.detectors import SingleStageDetector
from mmengine.optim import build_optim_wrapper
from torch import nn

import mmscconv.models  # noqa: F401
from helpers.paths import ROOT
from helpers.running_tools import DIGITS
from mmscconv import SCConv, get_config
from mmscconv.engine.options import fit_amp_to_device, use_amp
from mmscconv.errors import UserError
from mmscconv.optim import multiplies_bf16


@pytest.fixture
def on_a_cpu(monkeypatch):
    """Whatever the machine has."""
    monkeypatch.setattr('mmscconv.engine.options.get_device', lambda: 'cpu')


def network():
    torch.manual_seed(0)
    conv, scconv = nn.Conv2d(3, 32, 3, padding=1), SCConv(32, 32, 3, padding=1)
    return nn.Sequential(conv, scconv, nn.Flatten(), nn.Linear(32 * 64, 2))


def wrapper_of(model, **settings):
    cfg = dict(type='CPUAmpOptimWrapper', optimizer=dict(type='SGD', lr=0.1), **settings)
    return build_optim_wrapper(model, cfg)


def test_the_step_is_that_of_plain_autocast():
    ours, truth, x = network(), network(), torch.randn(4, 3, 8, 8)
    wrapper = wrapper_of(ours)
    with wrapper.optim_context(ours):
        y = ours(x)
    wrapper.update_params(y.float().square().mean())
    optimizer = torch.optim.SGD(truth.parameters(), 0.1)
    with torch.autocast('cpu', torch.bfloat16):
        z = truth(x)
    z.float().square().mean().backward()
    optimizer.step()
    assert y.dtype == torch.bfloat16
    for a, b in zip(ours.parameters(), truth.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_gradients_accumulate():
    model, x = network(), torch.randn(4, 3, 8, 8)
    before = [p.clone() for p in model.parameters()]
    wrapper = wrapper_of(model, accumulative_counts=2)
    for step in range(2):
        with wrapper.optim_context(model):
            y = model(x)
        wrapper.update_params(y.float().square().mean())
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)) == (step == 0)


@pytest.mark.parametrize(
    'settings', [{}, {'loss_scale': 512.0}, {'dtype': 'bfloat16'}, {'dtype': torch.bfloat16}], ids=str
)
@pytest.mark.parametrize(
    'name', ['retinanet_scconv_r50_coco', 'cifar/scconv_resnet56_cifar10', 'scconv_resnet50_imagenet']
)
def test_every_kind_of_config_takes_it(name, settings, on_a_cpu):
    cfg = get_config(name)
    use_amp(cfg)
    cfg.optim_wrapper.update(settings)
    fit_amp_to_device(cfg)
    wrapper = build_optim_wrapper(network()[:2], cfg.optim_wrapper)
    assert type(wrapper).__name__ == 'CPUAmpOptimWrapper'


@pytest.mark.parametrize('dtype', ['float16', torch.float16, 'float64'])
def test_other_types_are_refused(dtype, on_a_cpu):
    cfg = get_config('retinanet_scconv_r50_coco')
    use_amp(cfg)
    cfg.optim_wrapper.dtype = dtype
    with pytest.raises(UserError, match='on a CPU is bfloat16'):
        fit_amp_to_device(cfg)


def test_fp32_stays_fp32():
    cfg = get_config('retinanet_scconv_r50_coco')
    before = cfg.optim_wrapper.to_dict()
    fit_amp_to_device(cfg)
    assert cfg.optim_wrapper.to_dict() == before


NARROW = [
    'model.backbone.base_channels=8', 'model.backbone.stem_channels=8', 'model.neck.in_channels=[8,16,32,64]',
    'model.neck.out_channels=16', 'model.bbox_head.in_channels=16', 'model.bbox_head.feat_channels=16',
    'train_dataloader.batch_size=2', 'train_dataloader.dataset.indices=2', 'train_cfg.val_begin=9',
]  # fmt: skip


def test_the_training_tool_runs_to_its_end(digits, tool, tmp_path, monkeypatch):
    """Two images in one step of a narrow network: without bf16 instructions, more would take long."""
    seen, loss = [], SingleStageDetector.loss

    def noted(*args):
        seen.append((torch.is_autocast_enabled('cpu'), torch.get_autocast_dtype('cpu')))
        return loss(*args)

    monkeypatch.setattr(SingleStageDetector, 'loss', noted)
    status, _, error = tool(
        'train', ROOT / 'configs' / 'retinanet_scconv_r18_digits.py', '--amp', '--data-root', digits,
        '--work-dir', tmp_path, '--cfg-options', *DIGITS, *NARROW,
    )  # fmt: skip
    assert status == 0, error[-2000:]
    assert seen == [(True, torch.bfloat16)]
    content = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    weights = [t for t in content['state_dict'].values() if t.is_floating_point()]
    assert {t.dtype for t in weights} == {torch.float32} and all(t.isfinite().all() for t in weights)
    steps = {int(state['step']) for state in content['optimizer']['state'].values()}
    assert steps == {1}


@pytest.mark.parametrize(
    ('avx512', 'amx', 'found'),
    [(False, False, False), (True, False, True), (False, True, True), (None, None, False), (None, True, True)],
)
def test_bf16_instructions_are_as_torch_tells_them(avx512, amx, found, monkeypatch):
    """None: an older torch, which has no such question."""
    for name, answer in (('_is_avx512_bf16_supported', avx512), ('_is_amx_tile_supported', amx)):
        if answer is None:
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    assert multiplies_bf16() is found
