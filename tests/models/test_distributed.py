"""Two processes give what one gives on the joined batch: a detector's losses and gradients, through DDP on gloo."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel, convert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from helpers import forks
from helpers.paths import ROOT
from mmscconv.models import switch_to_deploy

IMAGES = 4


def detector():
    import mmscconv.models  # noqa: F401, registers the layers in a process of its own

    cfg = Config.fromfile(ROOT / 'configs' / 'retinanet_scconv_r18_digits.py')
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.base_channels = 8
    cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    cfg.model.bbox_head.update(in_channels=16, feat_channels=16)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.train()
    # BN's batch statistics are each process's own (SyncBN needs a GPU); everything else has to agree.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def batch():
    """Images that differ, with the same boxes: mmdet divides each process's losses by its own number of positives."""
    data = demo_mm_inputs(1, [[3, 64, 64]], num_classes=10, num_items=[3])
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8) for _ in range(IMAGES)]
    return dict(inputs=inputs, data_samples=data['data_samples'] * IMAGES)


def losses_and_gradients(model, data):
    inner = getattr(model, 'module', model)
    losses = model(**inner.data_preprocessor(data, training=True), mode='loss')
    total, parsed = inner.parse_losses(losses)
    total.backward()
    return {name: value.detach() for name, value in parsed.items()}, [p.grad for p in inner.parameters()]


def _process(rank, folder):
    dist.init_process_group('gloo', rank=rank, world_size=2, store=dist.FileStore(f'{folder}/store', 2))
    torch.set_num_threads(1)
    model = MMDistributedDataParallel(detector(), device_ids=None)
    share = slice(rank * IMAGES // 2, (rank + 1) * IMAGES // 2)
    result = losses_and_gradients(model, {key: values[share] for key, values in batch().items()})
    torch.save(result, f'{folder}/{rank}')
    dist.destroy_process_group()


def test_losses_and_gradients_equal_those_of_the_joined_batch(tmp_path):
    mp.start_processes(_process, (os.fspath(tmp_path),), nprocs=2, start_method=forks.METHOD)
    results = [torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2)]
    losses, gradients = losses_and_gradients(detector(), batch())
    assert losses.keys() == {'loss', 'loss_cls', 'loss_bbox'} and losses['loss_bbox'] > 0
    for name, loss in losses.items():
        shares = torch.stack([of_process[name] for of_process, _ in results])
        assert (shares[0] - shares[1]).abs() > 1e-3 * loss  # each has seen other images
        torch.testing.assert_close(shares.mean(), loss, rtol=1e-5, atol=0)
    for _, reduced in results:
        for got, wanted in zip(reduced, gradients, strict=True):
            assert (got - wanted).norm() <= 1e-4 * wanted.norm() + 1e-7


def test_sync_bn_reaches_the_inner_norms_and_folds():
    """``sync_bn='torch'`` in a config converts by this function; norm_cfg would not reach SCConv's inner norms."""
    model = convert_sync_batchnorm(detector().backbone, 'torch')
    assert not any(type(module) is nn.BatchNorm2d for module in model.modules())
    assert isinstance(model.layer1[0].conv2.cru.norm1, nn.SyncBatchNorm)
    assert model.state_dict().keys() == detector().backbone.state_dict().keys()
    model.eval()
    x = torch.randn(2, 3, 64, 64)
    want = model(x)
    switch_to_deploy(model)
    for got, expected in zip(model(x), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
