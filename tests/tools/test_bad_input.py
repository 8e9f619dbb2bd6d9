"""Bad input, as a user sees it: one line that names the thing, and no traceback."""

import shutil

import pytest
import torch

from helpers.paths import ROOT
from helpers.running_tools import DIGITS

CONFIGS = ROOT / 'configs'


@pytest.fixture
def fails(tool):
    """Run a tool that must fail; return the one line that the user sees."""

    def call(name, *args, options=()):
        status, _, stderr = tool(name, *args, *(['--cfg-options', *options] if options else []))
        assert status == 2, stderr[-3000:]
        assert 'Traceback' not in stderr
        line = stderr.strip().splitlines()[-1]
        assert line.startswith('error: ')
        return line

    return call


BAD_RUNS = {
    'no data': (['--data-root', '/no/such'], [], 'data folder for train is not there: /no/such'),
    'no annotations': (
        [], ['train_dataloader.dataset.ann_file=annotations/nothing.json'],
        'annotation file for train is not there',
    ),
    'no images': ([], ['val_dataloader.dataset.data_prefix.img=nothing/'], 'image folder for val is not there'),
    'no evaluation file': ([], ['val_evaluator.ann_file=nothing.json'], 'annotation file of the val evaluator'),
    'no checkpoint': ([], ['load_from=nothing.pth'], 'checkpoint is not there: nothing.pth'),
    'no pretrained': (
        [], ['model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint=nothing.pth'],
        'pretrained checkpoint (init_cfg) is not there: nothing.pth',
    ),
    'impossible channels': ([], ['model.backbone.scconv.gwc_groups=5'], 'must both be multiples of groups = 5'),
    'unknown setting': ([], ['model.backbone.scconv.alhpa=0.5'], "unexpected keyword argument 'alhpa'"),
    'unknown model': ([], ['model.type=RetinaNot'], 'RetinaNot is not in the'),
    'resumed before': ([], ['resume=True'], 'has resume=True, as a resumed run writes it: pass --resume'),
    'no optimizer': ([], ['optim_wrapper=None'], 'has no optim_wrapper: is it a part of a config'),
    'fp16 on cpu': (['--amp'], ['optim_wrapper.dtype=float16'], 'on a CPU is bfloat16'),
    'fp16 wrapper on cpu': (
        [],
        ['optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.dtype=float16'],
        'optim_wrapper.dtype is float16',
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', BAD_RUNS)
def test_bad_runs_end_in_one_line(case, digits, tmp_path, fails, monkeypatch):
    flags, options, message = BAD_RUNS[case]
    if case.endswith('on cpu'):
        monkeypatch.setattr('mmscconv.engine.options.get_device', lambda: 'cpu')  # also where there is a GPU
    line = fails(
        'train', CONFIGS / 'retinanet_scconv_r18_digits.py', '--data-root', digits, '--work-dir', tmp_path, *flags,
        options=options,
    )  # fmt: skip
    assert message in line


BROKEN = {
    'empty image': (lambda d: (d / 'train' / '000003.png').write_bytes(b''), r'train/000003.png'),
    'missing image': (lambda d: (d / 'train' / '000005.png').unlink(), r'train/000005.png'),
    'not an image': (lambda d: (d / 'train' / '000007.png').write_text('hello'), r'train/000007.png'),
}


@pytest.mark.parametrize('case', BROKEN)
def test_broken_files_are_named(case, digits, tmp_path, fails):
    data = tmp_path / 'data'
    shutil.copytree(digits, data)
    breaks, message = BROKEN[case]
    breaks(data)
    # One case through a worker process, whose errors arrive wrapped.
    workers = 1 if case == 'empty image' else 0
    options = [*DIGITS, f'train_dataloader.num_workers={workers}']
    line = fails(
        'train', CONFIGS / 'retinanet_scconv_r18_digits.py', '--data-root', data, '--work-dir', tmp_path / 'run',
        options=options,
    )  # fmt: skip
    assert message in line
    assert str(data) in line


@pytest.mark.parametrize('there', [False, True])
def test_a_run_that_cannot_start_leaves_no_empty_folder(there, tmp_path, fails):
    if there:
        (tmp_path / 'runs').mkdir()
    fails(
        'train', CONFIGS / 'retinanet_scconv_r18_digits.py', '--data-root', tmp_path / 'nowhere',
        '--work-dir', tmp_path / 'runs' / 'new',
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == ([tmp_path / 'runs'] if there else [])
    assert not list(tmp_path.glob('runs/*'))


def test_a_test_needs_no_pretrained_file(tool, digits, digits_run, tmp_path):
    status, _, error = tool(
        'test', CONFIGS / 'retinanet_scconv_r18_digits.py', digits_run / 'epoch_1.pth', '--data-root', digits,
        '--work-dir', tmp_path, '--cfg-options', *DIGITS, 'model.backbone.init_cfg.type=Pretrained',
        'model.backbone.init_cfg.checkpoint=moved.pth',
    )  # fmt: skip
    assert status == 0, error[-2000:]


def test_wrong_checkpoint_is_refused(digits, tmp_path, fails):
    torch.save({'state_dict': {'backbone.conv1.weight': torch.zeros(64, 3, 7, 7)}}, tmp_path / 'wrong.pth')
    line = fails(
        'test', CONFIGS / 'retinanet_scconv_r18_digits.py', tmp_path / 'wrong.pth', '--data-root', digits,
        '--work-dir', tmp_path,
    )  # fmt: skip
    assert 'the checkpoint is not of this model' in line
    assert '1 of another shape, first backbone.conv1.weight (64, 3, 7, 7) instead of (32, 3, 7, 7)' in line


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['train', 'configs/nothing.py'], 'config is not there: configs/nothing.py'),
        (['test', CONFIGS / 'retinanet_r18_digits.py', 'x.pth', '--out', 'x.txt'], '.pkl or .pickle: x.txt'),
        (['test', CONFIGS / 'retinanet_r18_digits.py', 'x.pth', '--tta'], '--tta needs tta_model'),
        (['plot', 'curves', 'nothing'], 'no log of a run'),
    ],
    ids=['config', 'out', 'tta', 'log'],
)
def test_bad_arguments_end_in_one_line(args, message, tmp_path, fails, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(*args)


def test_wrong_number_of_class_folders(tmp_path, fails):
    for split in ('train', 'val'):
        (tmp_path / split / 'n01440764').mkdir(parents=True)
        (tmp_path / split / 'n01440764' / 'a.JPEG').touch()
    line = fails(
        'train', CONFIGS / 'scconv_resnet50_imagenet.py', '--data-root', tmp_path, '--work-dir', tmp_path / 'run',
        options=['model.backbone.base_channels=16', 'model.backbone.stem_channels=8', 'model.head.in_channels=512'],
    )  # fmt: skip
    assert "number of subfolders (1) doesn't match the number of specified classes (1000)" in line
