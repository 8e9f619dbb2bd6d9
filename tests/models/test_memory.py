"""Memory that training keeps for backward; recomputing changes nothing else."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.registry import MODELS
from torch import nn

import mmscconv.models  # noqa: F401, registers the backbone
from helpers import forks
from mmscconv import SCConv


def saved_bytes(function, *modules):
    """Bytes that autograd keeps for backward of ``function``, without parameters."""
    parameters = {p.untyped_storage().data_ptr() for m in modules for p in m.parameters()}
    kept = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = function()
    del output
    return sum(kept.values())


def backbone(kind, **kwargs):
    torch.manual_seed(0)
    return MODELS.build(dict(type=kind, depth=50, base_channels=16, norm_eval=False, frozen_stages=-1, **kwargs))


@pytest.mark.parametrize(
    ('layout', 'inner_norm', 'most'),
    [(torch.contiguous_format, False, 1.10), (torch.channels_last, False, 1.06), (torch.channels_last, True, 1.23)],
    ids=['nchw', 'channels-last', 'channels-last-norms'],
)
def test_backbone_keeps_little_more_than_resnet(layout, inner_norm, most):
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=layout)
    settings = dict(backend='native', inner_norm=inner_norm)
    models = {
        'conv': backbone('mmdet.ResNet'),
        'default': backbone('SCConvResNet', scconv=settings),
        'recompute': backbone('SCConvResNet', scconv=dict(settings, recompute=True)),
    }
    kept = {name: saved_bytes(lambda m=model: m(x), model) for name, model in models.items()}
    assert kept['default'] <= most * kept['conv']
    assert kept['recompute'] <= 1.0 * kept['conv']


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'channels-last'])
@pytest.mark.parametrize('settings', [{}, {'inner_norm': True}, {'arrangement': 'C&S', 'stride': 2}], ids=str)
def test_gradients_and_statistics_equal_the_plain_form(settings, layout):
    torch.manual_seed(0)
    plain = nn.Sequential(SCConv(16, 16, 3, padding=1, backend='plain', **settings), nn.BatchNorm2d(16))
    x, upstream = torch.randn(2, 16, 8, 6).contiguous(memory_format=layout), None
    results = []
    for backend, recompute, kept in (
        ('plain', False, False), ('native', False, False), ('native', False, True), ('native', True, True),
        ('plain', True, False),
    ):  # fmt: skip
        model = copy.deepcopy(plain)
        for m in model.modules():
            if hasattr(m, 'backend'):
                m.backend = backend
        model[0].recompute, model[0].cru.output_is_kept = recompute, kept
        inputs = x.clone().requires_grad_()
        out = model(inputs)
        upstream = torch.randn_like(out) if upstream is None else upstream
        out.backward(upstream)
        results.append([out, inputs.grad, *(p.grad for p in model.parameters()), *model.buffers()])
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            torch.testing.assert_close(
                got, want, rtol=1e-4, atol=1e-4
            )  # biases before a norm: gradient 0 but for rounding


def test_an_activation_in_place_behind_it():
    model = nn.Sequential(SCConv(8, 8, 3, padding=1, backend='native'), nn.ReLU(inplace=True))
    model(torch.randn(2, 8, 5, 5)).sum().backward()  # autograd raises where something kept was written over
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), SCConv(16, 16, 3, padding=1, backend='native'), nn.BatchNorm2d(16))
    exact = copy.deepcopy(model)
    x = torch.randn(2, 3, 9, 9)
    with torch.autocast('cpu', dtype=dtype):
        out = model(x)
        loss = out.float().square().mean()
    loss.backward()
    exact(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (out - exact(x)).norm() < 0.05 * exact(x).norm()


def test_with_cp():
    kwargs = dict(scconv=dict(backend='native', inner_norm=True))
    models = [backbone('SCConvResNet', with_cp=with_cp, **kwargs) for with_cp in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(4, 3, 96, 96)  # with less, BN's statistics of the last maps amplify rounding
    for model in models:
        sum(y.square().mean() for y in model(x.clone().requires_grad_())).backward()
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-3 * a.grad.norm() + 1e-4


def test_compiled_backbone_is_one_graph():
    # Both kinds of stages, without and with a stride, are there.
    stages = dict(num_stages=2, out_indices=(0, 1), strides=(1, 2), dilations=(1, 1))
    model = backbone('SCConvResNet', scconv=dict(backend='native'), **stages)
    model.train()
    x = torch.randn(2, 3, 32, 32)
    want = model(x)
    for got, expected in zip(torch.compile(model, backend='aot_eager', fullgraph=True)(x), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def _train_in_parallel(rank, store, results):
    dist.init_process_group('gloo', rank=rank, world_size=2, store=dist.FileStore(store, 2))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(SCConv(8, 8, 3, padding=1, backend='native'))
    x = torch.randn(4, 8, 6, 6)[2 * rank : 2 * rank + 2]
    model(x.requires_grad_()).square().mean().backward()
    if rank == 0:
        torch.save([p.grad for p in model.parameters()], results)
    dist.destroy_process_group()


def test_ddp_equals_the_joined_batch(tmp_path):
    arguments = os.fspath(tmp_path / 'store'), os.fspath(tmp_path / 'grads')
    mp.start_processes(_train_in_parallel, arguments, nprocs=2, start_method=forks.METHOD)
    torch.manual_seed(0)
    model = SCConv(8, 8, 3, padding=1, backend='native')
    model(torch.randn(4, 8, 6, 6).requires_grad_()).square().mean().backward()
    for got, p in zip(torch.load(tmp_path / 'grads', weights_only=True), model.parameters(), strict=True):
        torch.testing.assert_close(got, p.grad, rtol=1e-5, atol=1e-7)
