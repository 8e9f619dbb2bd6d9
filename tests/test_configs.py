"""Every shipped config parses, builds and does loss and predict at small size."""

import functools
import re
from contextlib import nullcontext

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import PARAM_SCHEDULERS
from PIL import Image

from helpers.configs import build, load, load_all, shrink
from helpers.paths import ROOT
from mmscconv import list_configs
from mmscconv.checks.files import datasets
from mmscconv.configuration import innermost_dataset
from mmscconv.models import SCConvResNet

CONFIGS = sorted(p for p in (ROOT / 'configs').glob('*.py'))
SCHEDULED = sorted(p for p in (ROOT / 'configs').rglob('*.py') if 'param_scheduler' in p.read_text())
TWINS = [
    ('retinanet_scconv_r50_coco', 'retinanet_r50_coco'),
    ('retinanet_scconv_r101_coco', 'retinanet_r101_coco'),
    ('retinanet_scconv_r50_voc', 'retinanet_r50_voc'),
    ('retinanet_scconv_r101_voc', 'retinanet_r101_voc'),
    ('scconv_resnet50_imagenet', 'resnet50_imagenet'),
    ('scconv_resnet50_alpha3-4_imagenet', 'resnet50_imagenet'),
    ('scconv_resnet101_imagenet', 'resnet101_imagenet'),
    ('retinanet_scconv_r18_digits', 'retinanet_r18_digits'),
]
# Deeper network -> the one that is trained and tested below in its place.
DEEPER = {p.stem: p.stem.replace('101', '50') for p in CONFIGS if '101' in p.stem}
# Folder of an experiment -> the plain network that its contenders are compared with.
EXPERIMENTS = {
    'digits': 'retinanet_r18_digits',
    'cells': 'cells/retinanet_r18_cells',
    'cifar_short': 'cifar_short/resnet20_cifar10',
}
RELIABLE = {'ExactResume', 'SafeCheckpointHook', 'StopOnNonFinite', 'ChannelsLast'}
# In channels last on a CPU, convolutions of so few channels would be slower.
THIN = ('cifar_short/thin12-resnet20_cifar10', 'cifar_short/thin13-resnet20_cifar10')


@pytest.mark.parametrize('path', [p for p in CONFIGS if p.stem not in DEEPER], ids=lambda p: p.stem)
def test_loss_and_predict(path):
    cfg = shrink(load(path.stem))
    model = build(cfg)
    assert isinstance(model.backbone, SCConvResNet) == ('scconv' in path.stem)
    inputs = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    if cfg.default_scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        classes = cfg.model.bbox_head.num_classes
        data = demo_mm_inputs(2, [[3, 64, 64], [3, 64, 64]], num_items=[1, 2], num_classes=classes)
    else:
        from mmpretrain.structures import DataSample

        data = {'inputs': inputs, 'data_samples': [DataSample().set_gt_label(i) for i in range(2)]}
    model.train()
    data_train = model.data_preprocessor(data, True)
    losses, _ = model.parse_losses(model(**data_train, mode='loss'))
    losses.backward()
    assert losses.isfinite()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(data, False), mode='predict')
    assert len(results) == 2
    if cfg.default_scope == 'mmdet':
        assert results[0].pred_instances.bboxes.shape[1] == 4
    else:
        assert results[0].pred_score.sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize('name', DEEPER)
def test_deeper_networks_differ_in_depth_alone(name):
    deep, other = load(name).to_dict(), load(DEEPER[name]).to_dict()
    assert (deep['model']['backbone'].pop('depth'), other['model']['backbone'].pop('depth')) == (101, 50)
    assert deep == other


@pytest.mark.parametrize('folder', ['', *EXPERIMENTS, pytest.param('cifar', marks=pytest.mark.slow)])
def test_the_other_networks_can_be_built_and_run(folder, monkeypatch):
    """An image goes through each network at its full width; on meta, which has shapes alone, if they are large.

    Networks that differ in the number of classes alone count as one.
    """
    small = folder in ('cifar', *EXPERIMENTS)
    # mmpretrain reads rates of drop path from a tensor, which needs values.
    monkeypatch.setattr(torch, 'linspace', functools.partial(torch.linspace, device='cpu'))
    met = set()
    for name, cfg in load_all(list_configs(f'{folder}/*') if folder else DEEPER):
        settings = cfg.model.to_dict()
        classes = settings['bbox_head' if cfg.default_scope == 'mmdet' else 'head'].pop('num_classes')
        if repr(settings) in met:
            continue
        met.add(repr(settings))
        with nullcontext() if small else torch.device('meta'), torch.no_grad():
            model = build(cfg).eval()
            outputs = model(torch.rand(1, 3, *[32 if folder == 'cifar' else 64] * 2), mode='tensor')
        if cfg.default_scope == 'mmdet':
            (scores, *_), (boxes, *_) = outputs
            anchors = model.bbox_head.num_base_priors
            assert (scores.shape[1], boxes.shape[1]) == (anchors * classes, anchors * 4), name
        else:
            scores = outputs
            assert scores.shape == (1, classes), name
        assert scores.is_meta or scores.isfinite().all(), name
    assert len(met) >= 4


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_what_every_config_promises(path):
    cfg = load(path.stem)
    assert cfg.auto_scale_lr.base_batch_size == cfg.train_dataloader.batch_size
    assert cfg.data_root
    assert cfg.custom_imports.imports == ['mmscconv.models']
    assert not cfg.custom_imports.allow_failed_imports
    if path.stem.endswith(('_coco', '_voc')):
        assert 'tta_model' in cfg
        assert 'tta_pipeline' in cfg
    # Nothing may be fetched at run time, nor frozen before it was trained.
    assert 'init_cfg' not in cfg.model.backbone
    assert cfg.model.backbone.get('frozen_stages', -1) == -1


def test_every_config_has_the_hooks_of_a_reliable_training_and_fetches_nothing():
    fetching = 0
    for name, cfg in load_all(list_configs()):
        hooks = {hook.type: hook for hook in cfg.default_hooks.values()}
        assert hooks.keys() >= RELIABLE, name
        on_gpu = ['cuda'] if name.startswith('cifar') else []
        on_cpu = [] if name in THIN else ['cpu']
        assert list(hooks['ChannelsLast'].devices) == on_gpu + on_cpu, name
        for stage in ('train', 'val', 'test'):
            for dataset in datasets(cfg[f'{stage}_dataloader']):
                if dataset.type in ('CIFAR10', 'CIFAR100'):  # which would fetch, where nothing is said
                    assert dataset.download is False, name
                    fetching += 1
    assert fetching > 200  # both data sets of many networks, in three stages


@pytest.mark.parametrize('path', SCHEDULED, ids=lambda p: p.stem)
def test_schedules_can_be_built(path):
    """A schedule with a setting that its class does not know is found when the training starts, after the data."""
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    schedules = Config.fromfile(path).param_scheduler
    for schedule in schedules if isinstance(schedules, list) else [schedules]:
        by_epoch = schedule.pop('convert_to_iter_based', False)
        if by_epoch:
            assert schedule.pop('by_epoch')
            PARAM_SCHEDULERS.get(schedule.pop('type')).build_iter_from_epoch(optimizer, epoch_length=2, **schedule)
        else:
            PARAM_SCHEDULERS.build(schedule, default_args=dict(optimizer=optimizer))


@pytest.mark.parametrize(('ours', 'twin'), TWINS)
def test_twins_differ_in_the_backbone_alone(ours, twin):
    ours, twin = load(ours).to_dict(), load(twin).to_dict()
    for cfg in (ours, twin):
        cfg.pop('custom_imports', None)
        cfg['model']['backbone'] = {
            k: v for k, v in cfg['model']['backbone'].items() if k not in ('type', 'scconv', 'norm_eval')
        }
    assert ours == twin


@pytest.mark.parametrize('folder', EXPERIMENTS)
def test_the_contenders_of_an_experiment_differ_in_the_model_alone(folder):
    contenders = list_configs(f'{folder}/*')
    assert len(contenders) > 5
    trainings = {}
    for name, cfg in load_all({EXPERIMENTS[folder], *contenders}):
        settings = cfg.to_dict()
        for key in ('model', 'channels', 'width'):  # the last two are variables that a model was made from
            settings.pop(key, None)
        trainings[name] = settings
    plain = trainings[EXPERIMENTS[folder]]
    for name in contenders:
        if name in THIN:
            assert trainings[name]['default_hooks'].pop('layout') != plain['default_hooks']['layout']
            trainings[name]['default_hooks']['layout'] = plain['default_hooks']['layout']
        assert trainings[name] == plain, name


def test_the_paper_s_schedules():
    coco = load('retinanet_scconv_r50_coco')
    assert (coco.train_dataloader.batch_size, coco.train_cfg.max_iters) == (16, 180000)
    assert coco.param_scheduler[1].milestones == [120000, 160000]
    voc = load('retinanet_scconv_r50_voc')
    assert (voc.train_dataloader.batch_size, voc.train_cfg.max_iters) == (32, 20000)
    assert voc.param_scheduler[1].milestones == [10000, 18000]
    assert voc.param_scheduler[0].end == 500
    lists = {d.ann_file for d in voc.train_dataloader.dataset.dataset.datasets}
    assert lists == {'VOC2007/ImageSets/Main/trainval.txt', 'VOC2012/ImageSets/Main/trainval.txt'}
    assert voc.test_dataloader.dataset.ann_file == 'VOC2007/ImageSets/Main/test.txt'
    imagenet = load('scconv_resnet50_imagenet')
    assert imagenet.train_cfg.max_epochs == 100
    assert imagenet.param_scheduler.milestones == [30, 60, 90]
    sgd = imagenet.optim_wrapper.optimizer
    assert (sgd.type, sgd.lr, sgd.momentum, sgd.weight_decay) == ('SGD', 0.1, 0.9, 1e-4)


def test_no_config_names_this_machine():
    files = [path for path in (ROOT / 'configs').rglob('*') if path.suffix in ('.py', '.yml')]
    assert len(files) > 170
    for path in files:
        found = re.findall(r'/(?:home|root|work|tmp)/|https?://[^/\s]+', path.read_text())
        assert found == (['https://openaccess.thecvf.com'] if path.name == 'metafile.yml' else []), path


@pytest.mark.parametrize('name', sorted(p.stem for p in CONFIGS if 'retinanet' in p.stem))
def test_training_drops_boxes_without_size(name, tmp_path):
    path = tmp_path / 'a.png'
    Image.new('RGB', (64, 48)).save(path)
    dataset = innermost_dataset(load(name).train_dataloader.dataset)
    for part in dataset.get('datasets', [dataset]):
        pipeline = Compose(part.pipeline)
        for boxes, kept in (([[5, 5, 20, 20], [9, 9, 9, 30], [70, 5, 90, 20]], 1), ([[9, 9, 30, 9]], 0)):
            instances = [dict(bbox=box, bbox_label=0, ignore_flag=0) for box in boxes]
            info = dict(img_path=str(path), img_id=1, height=48, width=64, instances=instances)
            assert len(pipeline(info)['data_samples'].gt_instances.bboxes) == kept
