import csv
import functools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.paths import ROOT
from helpers.running_tools import run_tool

pytest.importorskip('mmpretrain')
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from mmscconv import SCConv
from mmscconv.complexity import count, detector_parts
from mmscconv.complexity.configs import count_config, counted_shape
from mmscconv.errors import UserError
from mmscconv.layers.rivals import GhostConv, SPConv, TiedConv
from mmscconv.paper.comparison import compare
from mmscconv.paper.report import paper_table
from mmscconv.paper.tables import paper_rows

CONFIGS = ROOT / 'configs'
# Every row of Tables 1-5 that has a network here, counted independently of this package (another
# counter, from the definitions): parameters and FLOPs in millions, by the row's own rule.
COUNTS = {
    'Table 1: ResNet50': (23.7053, 1304.9),
    'Table 1: ResNet50 + S': (23.5284, 1304.7),
    'Table 1: ResNet50 + C (alpha = 1/2)': (14.7440, 843.81),
    'Table 1: ResNet50 + C & S (alpha = 1/2)': (14.7440, 843.81),
    'Table 1: ResNet50 + C + S (alpha = 1/2)': (14.7440, 843.81),
    'Table 1: ResNet50 + S + C (alpha = 1/2)': (14.7440, 843.81),
    'Table 2: ResNet56 (R56)': (0.8558, 126.84),
    'Table 2: SPConv-R56 (alpha = 1/2)': (0.5826, 87.95),
    'Table 2: GhostNet-R56 (s = 2)': (0.451, 68.35),
    'Table 2: SlimConv-R56 (k = 1)': (0.599, 88.82),
    'Table 2: TiedConv-R56 (B = 2)': (0.529, 94.99),
    'Table 2: SCConv-R56 (alpha = 1/2)': (0.5239, 79.55),
    'Table 2: ResNet50 (R50)': (23.5208, 1304.7),
    'Table 2: OctConv-R50 (alpha = 1/2)': (23.5208, 740.5),
    'Table 2: GhostNet-R50 (s = 2)': (12.86, 737),
    'Table 2: SlimConv-R50 (k = 4/3)': (14.73, 837.0),
    'Table 2: SPConv-R50 (alpha = 1/2)': (16.309, 922.07),
    'Table 2: SlimConv-R50 (k = 1)': (16.776, 942.3),
    'Table 2: TiedConv-R50 (B = 2)': (15.033, 1002.7),
    'Table 2: SCConv-R50 (alpha = 1/2)': (14.6908, 831.18),
    'Table 2: ResNeXt-29 (RX29)': (21.78, 3410),
    'Table 2: GhostNet-RX29 (s = 2)': (13.44, 2196),
    'Table 2: SPConv-RX29 (alpha = 1/2)': (31.166, 4792),
    'Table 2: SlimConv-RX29 (k = 4/3)': (28.24, 4380),
    'Table 2: TiedConv-RX29 (B = 2)': (24.68, 5959),
    'Table 2: WideResNet-28 (WRN28)': (36.5470, 5959.5),
    'Table 2: GhostNet-WRN28 (s = 2)': (18.29, 3292),
    'Table 2: SPConv-WRN28 (alpha = 1/2)': (24.200, 4158),
    'Table 2: SlimConv-WRN28 (k = 1)': (25.000, 4253),
    'Table 2: TiedConv-WRN28 (B = 2)': (22.03, 4544),
    'Table 2: SCConv-WRN28 (alpha = 1/2)': (21.1145, 3727),
    'Table 2: DenseNet-121 (D121)': (7.0485, 898.23),
    'Table 2: GhostNet-D121 (s = 2)': (5.041, 517.3),
    'Table 2: SPConv-D121 (alpha = 1/2)': (5.692, 641.4),
    'Table 2: SlimConv-D121 (k = 1)': (5.966, 670.1),
    'Table 2: TiedConv-D121 (B = 2)': (5.446, 695.68),
    'Table 2: SCConv-D121 (alpha = 1/2)': (5.4468, 594.94),
    'Table 3: ResNet50 (R50) (Baseline)': (25.557, 4089.2),
    'Table 3: SPConv-R50 (alpha = 1/2)': (18.345, 2940),
    'Table 3: SlimConv-R50 (k = 4/3)': (16.76, 2652),
    'Table 3: SlimConv-R50 (k = 1)': (18.812, 3001),
    'Table 3: TiedConv-R50 (B = 2)': (17.069, 3187),
    'Table 3: SCConv-R50 (alpha = 1/2)': (16.7802, 2699.9),
    'Table 3: SCConv-R50 (alpha = 3/4)': (17.6854, 2866.4),
    'Table 3: ResNet_101(R101)(Baseline)': (44.549, 7834),
    'Table 3: SCConv-R101 (alpha = 1/2)': (28.0029, 4901.3),
    'Table 4: ResNet50(R50)': (25.557, 64060),
    'Table 4: SPConv-R50 (alpha = 3/4)': (19.7601, 49160),
    'Table 4: SlimConv-R50 (k = 1)': (18.812, 46570),
    'Table 4: SCConv-R50 (alpha = 1/2)': (16.7802, 41740),
    'Table 4: ResNet101(R101)': (44.549, 122240),
    'Table 4: SCConv-R101 (alpha = 1/2)': (28.0029, 75960),
}
PUBLISHED = (ROOT / 'docs' / 'results' / 'complexity.md').read_text()
FIGURE_4 = {
    1: (13.64, 770.8),
    2: (13.96, 788.7),
    3: (14.31, 808.9),
    5: (15.10, 855.7),
    6: (15.54, 882.3),
    7: (16.00, 911.1),
}


@pytest.fixture(scope='module', autouse=True)
def _fast_building():
    """Leave weights uninitialised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.init, 'kaiming_uniform_', lambda tensor, **_: tensor)
        yield


@functools.cache
def rows():
    return {row.name: row for row in paper_rows()}


def is_published(row, ours):
    return paper_table([(row, ours)]).markdown().splitlines()[-1] in PUBLISHED.splitlines()


@pytest.mark.parametrize('name', COUNTS)
def test_counts(name):
    row = rows()[name]
    ours = compare(row)
    params, flops = COUNTS[name]
    assert ours.params / 1e6 == pytest.approx(params, rel=1e-3)
    assert ours.flops / 1e6 == pytest.approx(flops, rel=1e-3)
    if row.status == 'explained':
        assert abs(ours.params_error) < 1
        assert abs(ours.flops_error) < (1.6 if row.table > 3 else 1)
    assert is_published(row, ours)


@pytest.mark.parametrize('name', [row.name for row in paper_rows() if row.name not in COUNTS])
def test_rows_that_nobody_else_counted_are_published_too(name):
    assert is_published(rows()[name], compare(rows()[name]))


def test_the_published_page_is_what_the_tool_prints(tool, monkeypatch):
    """Apart from the counts, which are compared above."""
    monkeypatch.setattr('mmscconv.paper.comparison.compare', lambda row: None)
    status, out, error = tool('complexity', '--paper')
    assert status == 0, error
    command = 'python tools/complexity.py --paper --out docs/results/complexity.md'
    page = [f'# Complexity\n\n    {command}\n\n{out}', PUBLISHED]
    counted = (2, 3, 4, 5, 7, 9)  # columns
    rest = [
        [
            [cell for i, cell in enumerate(line.split(' | ')) if not line.startswith('| Table') or i not in counted]
            for line in text.splitlines()
        ]
        for text in page
    ]
    assert rest[0] == rest[1]


def test_unexplained_rows_say_why():
    for row in paper_rows():
        assert row.status in ('explained', 'unexplained')
        assert bool(row.reason) == (row.status == 'unexplained'), row.name
        assert row.config or row.status == 'unexplained', row.name


def test_table_5_repeats_table_4():
    there = {row.method: row for row in paper_rows() if row.table == 4}
    for row in (row for row in paper_rows() if row.table == 5):
        assert (row.params, row.flops) == (there[row.method].params, there[row.method].flops)
        ours, theirs = (Config.fromfile(CONFIGS / r.config).model.backbone for r in (row, there[row.method]))
        assert ours == theirs


@pytest.mark.parametrize('eighths', FIGURE_4)
def test_figure_4(eighths):
    # The paper plots these without printing them; the numbers are of the independent counter.
    cfg = Config.fromfile(CONFIGS / f'cifar/scconv_alpha{eighths}-8_resnet50_cifar100.py')
    ours = count_config(cfg)
    assert ours.paper_params / 1e6 == pytest.approx(FIGURE_4[eighths][0], abs=0.006)
    assert ours.paper_ops / 1e6 == pytest.approx(FIGURE_4[eighths][1], abs=0.06)


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.GroupNorm(2, 8)
        )
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False)
        self.same = nn.Conv2d(4, 4, 3, padding='same', groups=2, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.pool(self.same(self.up(self.backbone(x)))).flatten(1))


def test_counts_by_hand():
    model = Everything()
    ours = count(model, (6, 8))
    conv, up, same = 48 * 3 * 8 * 9, 12 * 8 * 4 * 4, 48 * 4 * 2 * 9
    assert ours.macs == conv + up + same + 4 * 5
    assert ours.paper_ops == ours.macs + 48 * 8 + 2 * 48 * 8 + 12 * 8 + (48 + 1) * 4
    assert ours.params == sum(p.numel() for p in model.parameters())
    assert (ours.group_norm_params, ours.paper_params) == (16, ours.params - 16)
    assert ours.stages['backbone.0'].macs == conv and ours.stages['backbone.0'].paper_ops == conv + 48 * 8
    assert sum(stage.paper_ops for stage in ours.stages.values()) == ours.paper_ops
    assert sum(stage.params for stage in ours.stages.values()) == ours.params
    assert model.training and not model.fc._forward_hooks and next(model.parameters()).device.type == 'cpu'


@pytest.mark.parametrize(
    ('layer', 'macs_per_place'),
    [
        (nn.Conv2d(32, 32, 3, padding=1, bias=False), 9 * 32**2),
        (SCConv(32, 32, 3, padding=1), 1.8125 * 32**2),  # Eq. 11
        (SPConv(32, 32, 3, padding=1), 3.25 * 32**2),
        (TiedConv(32, 32, 3, padding=1), 9 / 2 * 32**2),
        (GhostConv(32, 32, 3, padding=1), 0.5 * 32**2 + 9 * 16),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_by_formula(layer, macs_per_place):
    model = nn.Sequential(nn.Conv2d(3, 32, 1, bias=False), layer)
    assert count(model, (10, 12)).stages['1'].macs == 120 * macs_per_place


def test_tool_prints_and_writes(tmp_path):
    out = tmp_path / 'new' / 'table.csv'
    config = CONFIGS / 'cifar' / 'scconv_resnet56_cifar100.py'
    done = run_tool('complexity.py', config, '--classes', 10, '--per-stage', '--out', out)
    table = list(csv.reader(out.open()))
    assert table[1] == [str(config), '0.5259M', '0.5239M', '76.2026M', '79.5563M', '32 x 32']
    stages = {line[0].removeprefix(f'{config}: '): line[3] for line in table[2:]}
    assert stages.keys() >= {'backbone.conv1', 'backbone.layer1', 'backbone.layer3', 'head'}
    assert stages['head'] == '0.0006M'
    assert '| 0.5259M | 0.5239M | 76.2026M | 79.5563M | 32 x 32 |' in done.stdout


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['nowhere.py'], 'config is not there: nowhere.py'),
        (['x.py', '--out', 'x.txt'], '--out must end in .md or .csv'),
        (['x.py', '--shape', 0, 8], '--shape must be positive'),
        (['x.py', '--classes', 0], '--classes must be positive'),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_user_errors_are_one_line(args, message):
    done = run_tool('complexity.py', *args, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert done.returncode == 2 and len(lines) == 1 and message in lines[0]
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    ('config', 'options', 'message'),
    [
        ('retinanet_r18_digits.py', {'classes': 3}, '--classes needs a classifier'),
        ('cifar/_base_/cifar10.py', {}, 'config has no model with a backbone'),
        ('resnet50_imagenet.py', {'cfg': {'model.backbone.depth': 51}}, 'cannot build the model of .*51'),
    ],
)
def test_configs_that_cannot_be_counted(config, options, message):
    cfg = Config.fromfile(CONFIGS / config)
    cfg.merge_from_dict(options.pop('cfg', {}))
    with pytest.raises(UserError, match=message):
        count_config(cfg, **options)


def test_a_detector_has_rows_for_its_parts(tmp_path):
    """RetinaNet by hand: FPN of 32 channels on maps of 8 and 4 squares, two towers of convolutions over all levels."""
    cfg = Config.fromfile(CONFIGS / 'retinanet_r18_digits.py')
    out = tmp_path / 'table.csv'
    run_tool('complexity.py', CONFIGS / 'retinanet_r18_digits.py', '--shape', 64, 64, '--out', out)
    rows = {line[0].partition(': ')[2]: line[1:] for line in list(csv.reader(out.open()))[1:]}
    assert list(rows) == ['', 'backbone', 'neck', 'head']
    run_tool('complexity.py', CONFIGS / 'retinanet_r18_digits.py', '--shape', 64, 64, '--per-stage', '--out', out)
    staged = [line[0].partition(': ')[2] for line in list(csv.reader(out.open()))[1:]]
    assert staged[:4] == list(rows) and 'backbone.layer4' in staged
    assert not any('bbox_head' in name for name in staged)  # torch counts nothing there
    for column in range(4):
        parts = [float(rows[name][column].removesuffix('M')) for name in ('backbone', 'neck', 'head')]
        assert sum(parts) == pytest.approx(float(rows[''][column].removesuffix('M')), abs=3e-4)
    head, whole = cfg.model.bbox_head, count_config(cfg, shape=(64, 64))
    places = sum((64 // s) ** 2 for s in head.anchor_generator.strides)
    c, anchors = head.feat_channels, 3 * len(head.anchor_generator.ratios)
    tower = 9 * (head.in_channels * c + (head.stacked_convs - 1) * c * c)
    by_hand = places * (2 * tower + 9 * c * anchors * (head.num_classes + 4))
    assert detector_parts(whole)['head'].macs == by_hand
    alone = count_config(cfg, shape=(64, 64), backbone_alone=True)
    assert detector_parts(whole)['backbone'].macs == alone.macs
    assert detector_parts(whole)['backbone'].params == alone.params


def test_a_backbone_alone_has_the_replacements_of_its_detector(tmp_path):
    plain, config = CONFIGS / 'retinanet_r18_digits.py', tmp_path / 'replaced.py'
    settings = "type='ReplaceConv', model='RetinaNet', conv_cfg=dict(type='SCConv'), match='backbone.*'"
    config.write_text(
        f"_base_ = '{plain}'\ncustom_imports = dict(imports=['mmscconv.models'])\nmodel = dict({settings})\n"
    )
    cfg = Config.fromfile(config)
    alone = count_config(cfg, shape=(64, 64), backbone_alone=True)
    inside = detector_parts(count_config(cfg, shape=(64, 64)))['backbone']
    assert (alone.params, alone.macs) == (inside.params, inside.macs)
    assert alone.macs < count_config(Config.fromfile(plain), shape=(64, 64), backbone_alone=True).macs


class OwnWork(nn.Module):
    """A stem without a module of its own, and one layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Parameter(torch.zeros(8, 3, 3, 3))
        self.layer1 = nn.Conv2d(8, 4, 1, bias=False)

    def forward(self, x):
        return self.layer1(F.conv2d(x, self.stem, padding=1))


class Detector(nn.Module):
    """Its head is called without hooks, as mmdet does."""

    def __init__(self):
        super().__init__()
        self.backbone = OwnWork()
        self.neck = nn.ModuleList([nn.Conv2d(4, 2, 1, bias=False)])
        self.bbox_head = nn.Conv2d(2, 5, 1, bias=False)

    def forward(self, x):
        return self.bbox_head.forward(self.neck[0](self.backbone(x)))


def test_parts_of_a_detector_add_up_if_its_backbone_has_work_of_its_own():
    whole = count(Detector(), (6, 8))
    stem, layer, neck, head = 48 * 8 * 3 * 9, 48 * 8 * 4, 48 * 4 * 2, 48 * 2 * 5
    parts = detector_parts(whole)
    assert {name: part.macs for name, part in parts.items()} == {'backbone': stem + layer, 'neck': neck, 'head': head}
    assert sum(part.macs for part in parts.values()) == whole.macs
    assert sum(part.params for part in parts.values()) == whole.params
    assert whole.stages['backbone.layer1'].macs == layer


@pytest.mark.parametrize(
    ('steps', 'shape'),
    [
        ([dict(type='RandomCrop', crop_size=32)], (32, 32)),
        ([dict(type='mmpretrain.RandomCrop', crop_size=32)], (32, 32)),
        ([dict(type='torchvision/RandomCrop', size=48)], (48, 48)),
        ([dict(type='RandomResizedCrop', scale=(96, 64)), dict(type='PackInputs')], (96, 64)),
        # torchvision's scale is a range of areas.
        ([dict(type='torchvision/RandomResizedCrop', size=160, scale=(0.2, 1.0))], (160, 160)),
        ([dict(type='torchvision/RandomResizedCrop', size=[64, 48], scale=(1, 1))], (64, 48)),
        ([dict(type='torchvision/CenterCrop', size=[96])], (96, 96)),
        # mmcv's own steps take width and height.
        ([dict(type='ResizeEdge', scale=256), dict(type='CenterCrop', crop_size=(64, 96))], (96, 64)),
        ([dict(type='Resize', scale=(64, 96)), dict(type='RandomFlip')], (96, 64)),
        ([dict(type='CenterCrop', crop_size=96), dict(type='Resize', scale=64)], (64, 64)),
        ([dict(type='Resize', scale=(64, 96), keep_ratio=True), dict(type='Pad', size=(64, 96))], (96, 64)),
        ([dict(type='torchvision/Resize', size=[64, 48])], (64, 48)),
        ([dict(type='torchvision/Resize', size=64), dict(type='torchvision/CenterCrop', size=48)], (48, 48)),
        # The size depends on the image.
        ([dict(type='torchvision/Resize', size=64)], None),
        ([dict(type='Resize', scale=(64, 96), keep_ratio=True)], None),
        ([dict(type='CenterCrop', crop_size=96), dict(type='ResizeEdge', scale=64)], None),
        ([dict(type='RandomCrop', crop_size=32), dict(type='RandomApply', transforms=[dict(type='Resize')])], None),
        ([dict(type='RandomCrop', crop_size=(0.5, 0.5))], None),
        ([dict(type='FiveCrops')], None),
        ([], None),
    ],
)
def test_classifiers_are_counted_at_the_size_of_their_pipelines(steps, shape):
    dataset = dict(type='RepeatDataset', times=2, dataset=dict(pipeline=steps))
    config = Config(dict(model=dict(head={}), train_dataloader=dict(dataset=dataset)))
    tested = Config(dict(model=dict(head={}), test_dataloader=dict(dataset=dict(pipeline=steps))))
    if shape is None:
        for cfg in (config, tested):
            with pytest.raises(UserError, match='set input_shape or pass --shape'):
                counted_shape(cfg)
        return
    assert counted_shape(config) == counted_shape(tested) == shape


def test_the_size_of_the_test_comes_before_the_training_s():
    def loader(side):
        return dict(dataset=dict(pipeline=[dict(type='RandomCrop', crop_size=side)]))

    cfg = dict(model=dict(head={}), train_dataloader=loader(176), val_dataloader=loader(208))
    assert counted_shape(Config(cfg)) == (208, 208)
    assert counted_shape(Config({**cfg, 'test_dataloader': loader(224)})) == (224, 224)
    assert counted_shape(Config({**cfg, 'input_shape': (32, 64)})) == (32, 64)
    assert counted_shape(Config(dict(model=dict(bbox_head={})))) == (768, 1024)


def test_a_classifier_of_unknown_size_is_refused(tmp_path):
    config = tmp_path / 'no_crop.py'
    config.write_text(f"_base_ = '{CONFIGS / 'cifar' / 'resnet56_cifar10.py'}'\ninput_shape = None\n")
    cfg = Config.fromfile(config)
    for stage in ('train', 'val', 'test'):
        cfg[f'{stage}_dataloader'] = None
    with pytest.raises(UserError, match=r'no_crop\.py sets no size .* set input_shape or pass --shape'):
        count_config(cfg)
    assert count_config(cfg, shape=(32, 32)).macs > 0


def test_two_stages_are_counted_by_their_backbone():
    cfg = Config.fromfile(CONFIGS / 'retinanet_r50_coco.py')
    theirs = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    with pytest.raises(UserError, match='pass --backbone'):
        count_config(theirs, shape=(64, 64))
    ours = count_config(cfg, shape=(64, 64), backbone_alone=True)
    assert count_config(theirs, shape=(64, 64), backbone_alone=True).macs == ours.macs


def test_detectors_that_assert_data_samples_are_counted_by_their_backbone():
    cfg = get_config('mmdet::detr/detr_r50_8xb2-150e_coco.py')
    cfg.merge_from_dict(
        {
            'model.backbone.depth': 18,
            'model.neck.in_channels': [512],
            'model.encoder.num_layers': 1,
            'model.decoder.num_layers': 1,
        }
    )
    with pytest.raises(UserError, match='DETR needs data samples to run: pass --backbone'):
        count_config(cfg, shape=(64, 64))
    assert count_config(cfg, shape=(64, 64), backbone_alone=True).macs > 0


class Offsets(nn.Module):
    """torchvision's deformable convolution with the offsets that it needs, as mmcv's layers have them."""

    def __init__(self):
        super().__init__()
        from torchvision.ops import DeformConv2d

        self.conv_offset = nn.Conv2d(4, 18, 3, padding=1)
        self.conv = DeformConv2d(4, 8, 3, padding=1, groups=2)

    def forward(self, x):
        return self.conv(x, self.conv_offset(x))


class SelfAttention(nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        self.need_weights = need_weights
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        return self.attention(x, x, x, need_weights=self.need_weights)


def unseen_by_torch(kind):
    """Return a layer that torch's counter alone counts with 0, or in part, and the multiply-adds on a map of 5 x 6."""
    from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack

    return {
        'DCN': lambda: (DeformConv2dPack(4, 8, 3, padding=1, groups=2), 30 * 9 * (4 * 18 + 4 * 8 // 2)),
        'DCNv2': lambda: (ModulatedDeformConv2dPack(4, 8, 3, padding=1, groups=2), 30 * 9 * (4 * 27 + 4 * 8 // 2)),
        'torchvision': lambda: (Offsets(), 30 * 9 * (4 * 18 + 4 * 8 // 2)),
        # Four projections of 4 channels; 30 places with 30 places, for the weights and for the sum.
        'attention': lambda: (SelfAttention(True), 30 * 4 * 16 + 2 * 30 * 30 * 4),
        'fused attention': lambda: (SelfAttention(False), 30 * 4 * 16 + 2 * 30 * 30 * 4),
    }[kind]()


@pytest.mark.parametrize('pixels', [224 * 224, 0], ids=['computed', 'fake'])
@pytest.mark.parametrize('kind', ['DCN', 'DCNv2', 'torchvision', 'attention', 'fused attention'])
def test_layers_that_torch_does_not_count(kind, pixels, monkeypatch):
    layer, macs = unseen_by_torch(kind)
    monkeypatch.setattr('mmscconv.complexity.counting.LARGEST_COMPUTED', pixels)
    ours = count(nn.Sequential(nn.Conv2d(3, 4, 1), layer), (5, 6))
    assert ours.macs == 30 * 3 * 4 + macs


def test_deformable_convolutions_deform_after_counting():
    layer, _ = unseen_by_torch('DCN')
    nn.init.normal_(layer.weight)
    nn.init.constant_(layer.conv_offset.bias, 0.5)
    x = torch.rand(1, 4, 5, 6)
    before = layer(x)
    count(nn.Sequential(nn.Conv2d(3, 4, 1), layer), (5, 6))
    assert torch.equal(layer(x), before)
    assert not torch.allclose(before, F.conv2d(x, layer.weight, padding=1, groups=2))
    assert torch.backends.mha.get_fastpath_enabled()


class Hidden(nn.Module):
    """A 1 x 1 convolution by products that no counter knows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 4, 1, 1))

    def forward(self, x):
        return (x.unsqueeze(1) * self.weight).sum(2)


def test_a_layer_that_the_counter_does_not_see_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Hidden(), nn.Conv2d(8, 8, 1))
    with pytest.raises(UserError, match=r'cannot be counted: .* operations of the Hidden 1$'):
        count(model, (5, 6))


def test_tables_norms_and_layers_that_did_not_run_are_no_unseen_layers():
    class Harmless(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.unused = nn.Conv2d(3, 4, 1), Hidden()
            self.table, self.norm = nn.Embedding(2, 4), nn.LayerNorm([4, 5, 6])

        def forward(self, x):
            return self.norm(self.conv(x)) + self.table(torch.zeros(1, dtype=torch.long)).view(1, 4, 1, 1)

    assert count(Harmless(), (5, 6)).macs == 30 * 3 * 4


def test_a_network_that_asks_for_values_is_computed(monkeypatch):
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * float(x.sum())

    monkeypatch.setattr('mmscconv.complexity.counting.LARGEST_COMPUTED', 0)
    assert count(nn.Sequential(Scaled(3, 4, 1)), (5, 6)).macs == 30 * 3 * 4


def test_fake_tensors_count_the_same(monkeypatch):
    cfg = Config.fromfile(CONFIGS / 'cifar/scconv_resnet56_cifar10.py')
    computed = count_config(cfg)
    monkeypatch.setattr('mmscconv.complexity.counting.LARGEST_COMPUTED', 0)
    assert count_config(cfg) == computed


def test_cifar_tree_is_what_the_generator_makes(tmp_path):
    run_tool('make_cifar_configs.py', '--check')
    (tmp_path / 'stray.py').touch()
    wrong = run_tool('make_cifar_configs.py', '--check', '--out', tmp_path, check=False)
    assert wrong.returncode == 2 and 'stray.py' in wrong.stderr


def new_configs():
    flat = [p for p in CONFIGS.glob('*.py') if any(name in p.name for name in ('conv_', 'conv_k', 'slimconv'))]
    return sorted([*(CONFIGS / 'cifar').glob('*.py'), *(p for p in flat if not p.name.startswith('scconv'))])


def test_every_config_parses_and_builds():
    backbones = {}
    for path in new_configs():
        cfg = Config.fromfile(path)
        assert cfg.auto_scale_lr.base_batch_size, path
        if path.parent.name == 'cifar':
            assert cfg.data_root == cfg.train_dataloader.dataset.dataset.data_root, path
            assert cfg.data_root == cfg.test_dataloader.dataset.dataset.data_root, path
            assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 128
            assert cfg.train_cfg.max_epochs == 200 and cfg.param_scheduler.milestones == [100, 150]
            optimizer = cfg.optim_wrapper.optimizer
            assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (
                'SGD',
                0.05,
                0.9,
                5e-4,
            )
            classes = 100 if 'cifar100' in path.name else 10
            assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == classes, path
        backbones[str(path.relative_to(CONFIGS))] = (repr(cfg.model.backbone), cfg)
    # Building is slow: what the other tests count need not be built again, nor once per data set.
    counted = {row.config for row in paper_rows()} | {f'cifar/scconv_alpha{n}-8_resnet50_cifar100.py' for n in FIGURE_4}
    built = {backbones[name][0] for name in counted & backbones.keys()}
    for key, cfg in backbones.values():
        if key not in built:
            init_default_scope(cfg.default_scope)
            MODELS.build(cfg.model.backbone)
            built.add(key)
    assert len(built) > 40


def test_image_folder_variant(tmp_path):
    from mmengine.registry import DATASETS
    from PIL import Image

    for split in ('train', 'test'):
        for name in ('cat', 'dog'):
            folder = Path(tmp_path, split, name)
            folder.mkdir(parents=True)
            Image.new('RGB', (32, 32), (255, 0, 0)).save(folder / '0.png')
    cfg = Config.fromfile(CONFIGS / 'cifar/resnet56_cifar10_folder.py')
    init_default_scope('mmpretrain')
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.dataset.dataset.data_root = str(tmp_path)
        dataset = DATASETS.build(loader.dataset)
        assert len(dataset) == 2
        assert dataset.metainfo['classes'] == ('cat', 'dog')
        image = dataset[0]['inputs']
        assert image.shape == (3, 32, 32)
        assert image[2].max() == 255  # BGR
    processed = MODELS.build({'type': 'mmpretrain.ClsDataPreprocessor', **cfg.data_preprocessor})({'inputs': [image]})
    assert torch.argmax(processed['inputs'].mean((0, 2, 3))) == 0  # red first, as in CIFAR's arrays
