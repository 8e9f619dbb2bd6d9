"""Checkpoints cannot run code, do not pass for another model's, and nothing is fetched or written elsewhere."""

import os
import pickle
import re
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hooks import EMAHook
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader

import mmscconv
from helpers.paths import ROOT
from helpers.running_tools import DIGITS
from mmscconv.engine.detecting import load_detector
from mmscconv.errors import UserError
from mmscconv.hooks.matching_checkpoint import RequireMatchingCheckpoint
from mmscconv.storage.checkpoint_match import differing_settings, value_in
from mmscconv.storage.checkpoints import ONLY_WEIGHTS, checkpoint_to_resume, load_checkpoint, load_safely

CONFIG = ROOT / 'configs' / 'retinanet_scconv_r18_digits.py'


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test here may reach the network."""

    def refuse(*args):
        raise AssertionError(f'a connection was tried: {args[1:]}')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """The settings that load_safely makes for a process."""
    from mmengine.runner import CheckpointLoader

    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())
    monkeypatch.setenv(ONLY_WEIGHTS, '0')


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def evil(tmp_path, digits_run):
    """A sound checkpoint with a payload."""
    content = load_checkpoint(digits_run / 'epoch_1.pth')
    torch.save({**content, 'extra': Payload(tmp_path / 'ran')}, tmp_path / 'evil.pth')
    return tmp_path / 'evil.pth'


def run_of(path):
    """Make the checkpoint's folder the work dir of a run."""
    (path.parent / 'config.py').write_text(f'_base_ = {str(CONFIG)!r}\n')
    return path.parent


INIT = 'model.backbone.init_cfg.{}={}'.format
TOOLS = {
    'test': lambda path: ('test', CONFIG, path),
    'resume': lambda path: ('train', CONFIG, '--resume', path),
    'pretrained': lambda path: (
        'train', CONFIG, '--cfg-options', INIT('type', 'Pretrained'), INIT('checkpoint', path),
    ),
    'publish': lambda path: ('publish_model', path, path.with_name('out.pth')),
    'visualize': lambda path: (
        'visualize_features', ROOT / 'docs' / 'images' / 'digits.png', CONFIG, CONFIG, '--checkpoints', path, 'random',
    ),
    'detect': lambda path: (
        'detect', ROOT / 'docs' / 'images' / 'digits.png', '--config', CONFIG, '--checkpoint', path,
    ),
    'export': lambda path: ('export', CONFIG, path, '--out', path.with_name('out.onnx')),
    'report': lambda path: ('report', run_of(path)),
    'convert': lambda path: ('convert_weights', path, path.with_name('out.pth')),
}  # fmt: skip


def call(tool, args, digits, tmp_path, options=()):
    args, given = [*args], [*DIGITS, *options]
    if '--cfg-options' in args:
        given += args[args.index('--cfg-options') + 1 :]
        args = args[: args.index('--cfg-options')]
    if args[0] in ('train', 'test'):
        args += ['--work-dir', tmp_path / 'run']
    if args[0] in ('train', 'test', 'report'):
        args += ['--data-root', digits, '--cfg-options', *given]
    status, out, stderr = tool(*args)
    assert 'Traceback' not in stderr
    return status, out, stderr.strip().splitlines()[-1] if stderr.strip() else ''


@pytest.mark.parametrize('case', TOOLS)
def test_a_checkpoint_cannot_run_code(case, tool, evil, digits, tmp_path):
    status, _, line = call(tool, TOOLS[case](evil), digits, tmp_path)
    assert status == 2
    assert 'error: checkpoint holds a ' in line and 'mkdir, which may run code when loaded' in line
    assert str(evil) in line and 'pass --trusted' in line
    assert not (tmp_path / 'ran').exists()


def test_trusted_is_a_choice(tool, evil, digits, tmp_path):
    args = ('test', CONFIG, evil, '--trusted', '--out', tmp_path / 'out.pkl')
    status, _, line = call(tool, args, digits, tmp_path)
    assert status == 0, line
    assert (tmp_path / 'ran').exists()
    assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == 4
    assert {p.name for p in tmp_path.iterdir()} == {'evil.pth', 'out.pkl', 'ran', 'run'}


def test_a_fetched_checkpoint_cannot_run_code_either(tool, evil, digits, tmp_path, monkeypatch):
    """It lies where torch keeps what it has fetched."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    evil.rename(tmp_path / 'hub' / 'checkpoints' / 'evil.pth')
    status, _, line = call(tool, ('test', CONFIG, 'https://nowhere.invalid/evil.pth'), digits, tmp_path)
    assert status == 2 and 'error: a fetched checkpoint may run code when loaded' in line
    assert not (tmp_path / 'ran').exists()


class Reach:
    """Reads an attribute by the builtin getattr when it is unpickled."""

    def __init__(self, owner, name):
        self.pair = owner, name

    def __reduce__(self):
        return getattr, self.pair


@pytest.mark.parametrize('pair', [(getattr, '__self__'), (dict, 'update')], ids=['builtins', 'dict'])
def test_getattr_leads_nowhere(pair, tmp_path):
    torch.save({'state_dict': {}, 'x': Reach(*pair)}, tmp_path / 'reach.pth')
    with pytest.raises(UserError, match='may run code'):
        load_checkpoint(tmp_path / 'reach.pth')
    assert load_checkpoint(tmp_path / 'reach.pth', trusted=True)


def test_history_of_losses_is_kept(digits_run):
    scalars = load_checkpoint(digits_run / 'epoch_1.pth')['message_hub']['log_scalars']
    assert scalars['train/loss'].mean() > 0 and scalars['train/loss'].statistics('max') > 0


@pytest.mark.parametrize('written', ['numpy.core', 'numpy._core'])
def test_history_may_be_written_under_numpy_1_or_2(written, digits_run, tmp_path):
    with zipfile.ZipFile(digits_run / 'epoch_1.pth') as ours, zipfile.ZipFile(tmp_path / 'a.pth', 'w') as other:
        for name in ours.namelist():
            content = ours.read(name)
            assert not name.endswith('data.pkl') or re.search(rb'cnumpy\._?core\.', content)
            other.writestr(name, re.sub(rb'cnumpy\._?core\.', f'c{written}.'.encode(), content))
    code = 'import sys; from mmscconv.storage.checkpoints import load_checkpoint; load_checkpoint(sys.argv[1])'
    # In a process of its own: what is once allowed stays so.
    subprocess.run([sys.executable, '-W', 'error', '-c', code, tmp_path / 'a.pth'], check=True, cwd=ROOT)


def test_a_checkpoint_s_config_is_not_run(digits_run, tmp_path):
    from mmengine.runner import CheckpointLoader

    content = load_checkpoint(digits_run / 'epoch_1.pth')
    content['meta']['config'] = f'import os; os.mkdir({str(tmp_path / "ran")!r})'
    torch.save(content, tmp_path / 'a.pth')
    load_safely()
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'), 'cpu')
    assert 'config' not in loaded['meta'] and loaded['meta']['epoch'] == 1
    assert value_in({'meta': {'cfg': content['meta']['config']}}, 'model') is None
    assert value_in({'meta': {'cfg': "model = __import__('os').getcwd()"}}, 'model') is None
    assert value_in(content, 'model')['backbone']['depth'] == 18


def test_weights_under_model_are_loaded(tool, digits, digits_run, tmp_path):
    """mmengine looks for them under state_dict alone, and would go on with random weights."""
    weights = load_checkpoint(digits_run / 'epoch_1.pth')['state_dict']
    weights['backbone.layer1.0.conv1.weight'].fill_(0.125)
    torch.save({'model': weights, 'epoch': 1}, tmp_path / 'other.pth')
    load_safely()
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'other.pth'), 'cpu')
    assert set(loaded) == {'state_dict', 'epoch'} and loaded['state_dict'].keys() == weights.keys()
    cfg = mmscconv.get_config(CONFIG.stem)
    model = load_detector(cfg, tmp_path / 'other.pth', False, 'cpu')
    assert (model.backbone.layer1[0].conv1.weight == 0.125).all()


@pytest.fixture(scope='module')
def checkpoint(digits_run):
    return load_checkpoint(digits_run / 'epoch_1.pth')


def load_into(purpose, checkpoint, changes, settings=(), optimizer=torch.optim.AdamW, hooks=()):
    """Let the tools' hook look at the digits checkpoint, changed, for a model with other settings."""
    import mmscconv.models

    settings = dict(settings)
    cfg = mmscconv.get_config(settings.pop('name', CONFIG.stem))
    cfg.merge_from_dict(settings)
    cfg.load_from = 'a.pth'
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    runner = SimpleNamespace(model=model, cfg=cfg, optim_wrapper=None, hooks=hooks)
    if purpose == 'resume':
        runner.optim_wrapper = SimpleNamespace(optimizer=optimizer(model.parameters()))
    RequireMatchingCheckpoint(purpose).after_load_checkpoint(runner, changes({**checkpoint}))


def renamed(old, new):
    return lambda c: {**c, 'state_dict': {key.replace(old, new): value for key, value in c['state_dict'].items()}}


def without(*keys):
    return lambda c: {key: value for key, value in c.items() if key not in keys}


def same(content):
    return content


def one_parameter_less(content):
    (group,) = content['optimizer']['param_groups']
    return {**content, 'optimizer': {'param_groups': [{**group, 'params': group['params'][1:]}]}}


def with_another_block(content):
    weight = content['state_dict']['backbone.layer1.1.conv1.weight']
    return {**content, 'state_dict': {**content['state_dict'], 'backbone.layer1.2.conv1.weight': weight}}


DEPTH = {'model.backbone.depth': 34}
WRONG = {
    'depth': ('test', same, DEPTH, r'missing, first backbone.* \[model\.backbone\.depth: 18 there, 34 here\]'),
    'deeper': ('test', with_another_block, {}, r'1 not in the model, first backbone\.layer1\.2\.conv1\.weight'),
    'alpha': ('test', same, {'model.backbone.scconv.alpha': 0.75}, 'scconv.alpha: unset there, 0.75 here'),
    'classes': ('test', same, {'model.bbox_head.num_classes': 3}, 'bbox_head.num_classes: 10 there, 3 here'),
    'plain': ('test', same, {'name': 'retinanet_r18_digits'}, 'backbone.type: SCConvResNet there, ResNet here'),
    'classifier': ('test', renamed('bbox_head', 'head'), {}, r'missing, first bbox_head\.'),
    'no meta': ('test', without('meta'), DEPTH, r'\[other depth, alpha or config\?\]'),
    'resumed depth': ('resume', same, DEPTH, 'depth: 18 there, 34 here'),
    'weights alone': ('resume', without('optimizer', 'message_hub'), {}, 'it has no message_hub, optimizer'),
    'groups': ('resume', one_parameter_less, {}, 'it has other groups of parameters than AdamW'),
    'nothing in common': ('start', renamed('', 'x.'), {}, 'the checkpoint is not of this model: a.pth'),
}


@pytest.mark.parametrize('case', WRONG)
def test_a_wrong_checkpoint_is_told_with_its_cause(case, checkpoint):
    purpose, changes, settings, message = WRONG[case]
    with pytest.raises(UserError, match=message) as error:
        load_into(purpose, checkpoint, changes, settings)
    assert '\n' not in str(error.value) and 'a.pth' in str(error.value)


def test_the_state_of_another_optimizer(checkpoint):
    load_into('resume', checkpoint, same)
    with pytest.raises(UserError, match='its optimizer is another one than SGD, by momentum, betas'):
        load_into('resume', checkpoint, same, optimizer=torch.optim.SGD)


def test_settings_on_which_no_weight_depends_are_a_warning(checkpoint, monkeypatch):
    lines = []
    monkeypatch.setattr('mmscconv.storage.checkpoint_match.warn', lines.append)
    load_into('test', checkpoint, same)
    load_into('test', checkpoint, same, {'model.backbone.with_cp': True, 'model.test_cfg.score_thr': 0.5})
    load_into('start', checkpoint, same, {'model.backbone.scconv.gate': 'hard'})
    assert not lines
    load_into('test', checkpoint, same, {'model.backbone.scconv.gate': 'hard'})
    assert lines == [
        'a.pth was trained with other settings of the model, which its weights do not show: '
        'model.backbone.scconv.gate: unset there, hard here'
    ]


def test_other_pixels_than_the_training_s_are_a_warning(checkpoint, monkeypatch):
    """Mean and deviation are in no checkpoint's weights."""
    lines = []
    monkeypatch.setattr('mmscconv.storage.checkpoint_match.warn', lines.append)
    load_into('test', checkpoint, same, {'model.data_preprocessor.mean': [0, 0, 0]})
    load_into('test', checkpoint, same, {'model.data_preprocessor.bgr_to_rgb': False})
    assert 'data_preprocessor.mean: [123.675, 116.28, 103.53] there, [0, 0, 0] here' in lines[0]
    assert 'data_preprocessor.bgr_to_rgb: True there, unset here' in lines[1]


@pytest.mark.parametrize('place', ['model', 'top'])
def test_pixels_of_mmpretrain_stand_at_the_top_of_a_config(place):
    pixels = dict(mean=[1.0, 2.0, 3.0], to_rgb=True)
    model = dict(type='ImageClassifier')
    theirs = f"model = dict(type='ImageClassifier')\ndata_preprocessor = {pixels}\n"
    ours = dict(model=dict(**model, data_preprocessor=pixels)) if place == 'model' else dict(
        model=model, data_preprocessor=pixels
    )  # fmt: skip
    assert differing_settings({'meta': {'cfg': theirs}}, ours) == ''
    assert differing_settings({'meta': {'cfg': theirs}}, dict(model=model)).startswith('data_preprocessor.mean: [1.0')


def test_weights_beside_the_model_are_left_alone(checkpoint):
    """An auxiliary head that only the training had, a loss's buffer, and what earlier deploy forms saved."""
    extra = dict.fromkeys(
        ('aux_head.weight', 'bbox_head.loss_cls.seen', 'backbone.layer1.0.conv2.sru.scale'), torch.zeros(1)
    )
    load_into('test', checkpoint, lambda c: {**c, 'state_dict': {**c['state_dict'], **extra}})


def test_a_resumed_schedule_is_the_checkpoint_s(checkpoint, monkeypatch):
    lines = []
    monkeypatch.setattr('mmscconv.hooks.matching_checkpoint.warn', lines.append)
    load_into('resume', checkpoint, same)
    assert not lines
    load_into('resume', checkpoint, same, {'optim_wrapper.optimizer.lr': 0.5, 'param_scheduler.1.end': 30})
    assert 'goes on with the optimizer and schedule of a.pth: optim_wrapper.lr: ' in lines[0]
    assert 'param_scheduler.1.end: ' in lines[0] and '30 here' in lines[0]


@pytest.fixture
def resumed(monkeypatch):
    """The lines that warn of a resumed training."""
    lines = []
    monkeypatch.setattr('mmscconv.hooks.matching_checkpoint.warn', lines.append)
    return lines


def of_images(number):
    """Change the number of images in a step that a checkpoint tells; None to take it out."""

    def change(content):
        hub = content['message_hub']
        told = {key: value for key, value in hub['runtime_info'].items() if key != 'images_per_step'}
        return {
            **content,
            'message_hub': {**hub, 'runtime_info': told | ({'images_per_step': number} if number else {})},
        }

    return change


def test_another_batch_than_before_is_told(checkpoint, resumed):
    assert checkpoint['message_hub']['runtime_info']['images_per_step'] == 16
    load_into('resume', checkpoint, same)
    load_into('resume', checkpoint, of_images(None), {'train_dataloader.batch_size': 4})
    assert not resumed
    load_into('resume', checkpoint, same, {'train_dataloader.batch_size': 4})
    load_into('resume', checkpoint, of_images(32), {'auto_scale_lr.enable': True})
    line, scaled = resumed
    assert line == (
        'the training of a.pth has made steps of 16 images, and makes steps of 4 from here on: its learning rate and '
        'schedule stay those for 16'
    )
    assert scaled.endswith('stay those for 32 (--auto-scale-lr has no effect on a resumed training)')


def test_the_lr_of_a_resumed_training_is_not_scaled(checkpoint, resumed):
    load_into('resume', checkpoint, of_images(None), {'auto_scale_lr.enable': True})
    assert resumed == ['--auto-scale-lr has no effect: a resumed training goes on with the learning rate of a.pth']


def test_averages_are_not_taken_for_the_weights(checkpoint):
    """EMAHook saves the averages in the weights' place."""
    averaged = {**checkpoint, 'ema_state_dict': {'steps': torch.tensor(1)}}
    with pytest.raises(UserError, match=r'a\.pth: .*pass --cfg-options default_hooks\.ema\.type=EMAHook\)') as error:
        load_into('resume', averaged, same)
    assert '\n' not in str(error.value)
    load_into('resume', averaged, same, hooks=[EMAHook()])
    for hooks in (
        "default_hooks = dict(ema=dict(type='EMAHook', momentum=0.1))",
        "custom_hooks = [dict(type='EMAHook', momentum=0.1)]",
    ):
        text = f'{re.sub("^default_hooks", "others", checkpoint["meta"]["cfg"], flags=re.M)}\n{hooks}\n'
        with pytest.raises(UserError, match=r'default_hooks\.ema\.type=EMAHook default_hooks\.ema\.momentum=0\.1\)'):
            load_into('resume', {**averaged, 'meta': {**checkpoint['meta'], 'cfg': text}}, same)


def test_other_steps_than_before_are_told(checkpoint, resumed):
    wrapper = 'optim_wrapper.{}'.format
    load_into('resume', checkpoint, same, {wrapper('accumulative_counts'): 1})
    assert not resumed
    load_into('resume', checkpoint, of_images(None), {wrapper('type'): 'AmpOptimWrapper'})
    load_into('resume', checkpoint, of_images(None), {wrapper('clip_grad'): None, wrapper('accumulative_counts'): 2})
    assert resumed[0] == (
        'the training of a.pth had other settings of its steps, which change from here on: '
        'optim_wrapper.type: OptimWrapper there, AmpOptimWrapper here'
    )
    assert 'optim_wrapper.accumulative_counts: 1 there, 2 here' in resumed[1]
    assert 'optim_wrapper.clip_grad.max_norm: 10 there, unset here' in resumed[1]


def test_averages_of_another_width_are_told_as_such(tool, checkpoint, digits, tmp_path):
    """EMAHook loads them itself, and would fail first."""
    averages = {f'module.{key}': value for key, value in checkpoint['state_dict'].items()}
    torch.save({**checkpoint, 'ema_state_dict': {'steps': torch.tensor(1), **averages}}, tmp_path / 'a.pth')
    options = ['default_hooks.ema.type=EMAHook', 'model.neck.out_channels=32', 'model.bbox_head.in_channels=32']
    status, _, line = call(tool, ('train', CONFIG, '--resume', tmp_path / 'a.pth'), digits, tmp_path, options)
    assert status == 2 and 'error: the checkpoint is not of this model: ' in line
    assert 'model.neck.out_channels: 64 there, 32 here' in line


def not_finite(content):
    weights = content['state_dict']
    return {
        **content,
        'state_dict': {**weights, 'backbone.bn1.bias': torch.full_like(weights['backbone.bn1.bias'], torch.nan)},
    }


@pytest.mark.parametrize('purpose', ['test', 'start'])
def test_weights_that_are_not_finite_are_refused(purpose, checkpoint):
    with pytest.raises(UserError, match=r'weights that are not finite, such as backbone\.bn1\.bias: a\.pth'):
        load_into(purpose, checkpoint, not_finite)


def test_weights_that_are_not_finite_detect_nothing(checkpoint, tmp_path):
    torch.save(not_finite(checkpoint), tmp_path / 'a.pth')
    with pytest.raises(UserError, match='weights that are not finite'):
        load_detector(mmscconv.get_config(CONFIG.stem), tmp_path / 'a.pth', False, 'cpu')


def test_weights_alone_are_tested_beside_averages(tool, checkpoint, digits, tmp_path):
    """EMAHook takes them from state_dict."""
    torch.save(checkpoint['state_dict'], tmp_path / 'bare.pth')
    status, _, line = call(
        tool, ('test', CONFIG, tmp_path / 'bare.pth'), digits, tmp_path, ['default_hooks.ema.type=EMAHook']
    )
    assert status == 0, line


def test_checkpoints_in_another_folder_are_resumed(checkpoint, tmp_path):
    """CheckpointHook's out_dir: last_checkpoint names the file there."""
    work_dir, other = tmp_path / 'run', tmp_path / 'disk' / 'run'
    work_dir.mkdir()
    other.mkdir(parents=True)
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        torch.save(checkpoint, other / name)
    (work_dir / 'last_checkpoint').write_text(str(other / 'epoch_2.pth'))
    assert checkpoint_to_resume(work_dir, pytest.fail) == other / 'epoch_2.pth'
    (other / 'epoch_2.pth').unlink()
    lines = []
    assert checkpoint_to_resume(work_dir, lines.append) == other / 'epoch_1.pth'
    assert lines == [f'not resumed from the last checkpoint, which is not there: {other / "epoch_2.pth"}']
    (other / 'epoch_1.pth').unlink()
    with pytest.raises(UserError, match=r'epoch_2\.pth, the last checkpoint of this training, is not there'):
        checkpoint_to_resume(work_dir, pytest.fail)


def test_a_start_from_other_classes_is_a_warning(checkpoint, monkeypatch):
    lines = []
    monkeypatch.setattr('mmscconv.hooks.matching_checkpoint.warn', lines.append)
    load_into('start', checkpoint, same)
    assert not lines
    load_into('start', checkpoint, same, {'model.bbox_head.num_classes': 3})
    assert 'fills a part of the model only: a.pth: 2 of another shape, first bbox_head.retina_cls.weight' in lines[0]


WRONG_FILES = {
    'alpha': ('test', ['model.backbone.scconv.alpha=0.75'], 'scconv.alpha: unset there, 0.75 here'),
    'resume': ('resume', ['model.backbone.depth=34'], 'depth: 18 there, 34 here'),
    'wrong prefix': ('pretrained', [INIT('prefix', 'bone.')], 'shares no weight with model.backbone: '),
}


@pytest.mark.parametrize('case', WRONG_FILES)
def test_the_tools_refuse_a_wrong_checkpoint(case, tool, digits, digits_run, tmp_path):
    use, options, message = WRONG_FILES[case]
    path = digits_run / 'epoch_1.pth'
    status, _, line = call(tool, TOOLS[use](path), digits, tmp_path, options)
    assert status == 2
    assert line.startswith('error: ') and message in line and str(path) in line


def test_a_run_writes_into_its_work_dir_alone(digits_run):
    """The run's current folder and home were empty; other libraries have caches of their own."""
    places = digits_run.parent
    assert not list((places / 'cwd').iterdir())
    left = [p.relative_to(places / 'home').as_posix() for p in (places / 'home').rglob('*') if p.is_file()]
    caches = tuple(f'.cache/{name}/' for name in ('mmscconv', 'matplotlib', 'torch', 'fontconfig', 'YAPF'))
    assert [path for path in left if not path.startswith((*caches, '.config/matplotlib/'))] == []
    assert (digits_run / 'epoch_1.pth').is_file()


def test_results_are_whole_or_not_there(tool, digits, digits_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'out.pkl').write_bytes(b'of an earlier test')
    args = ('test', CONFIG, digits_run / 'epoch_1.pth', '--out', tmp_path / 'out.pkl')
    monkeypatch.setattr('mmdet.evaluation.DumpDetResults.compute_metrics', full_disk)
    status, _, error = call(tool, args, digits, tmp_path)
    assert status == 2 and f'cannot write {tmp_path}/out.pkl: No space left on device' in error
    assert error.strip().endswith('then repeat the command)')
    assert (tmp_path / 'out.pkl').read_bytes() == b'of an earlier test'
    assert {p.name for p in tmp_path.iterdir()} == {'out.pkl', 'run'}


def full_disk(metric, results):
    Path(metric.out_file_path).write_bytes(b'half')
    raise OSError(28, 'No space left on device')


@pytest.mark.parametrize(
    'content', [b'bad\n', b'hello world', b'<html></html>', b'\x80\x02}', b'(.', b'I1\nR.', b''], ids=repr
)
@pytest.mark.parametrize('trusted', [False, True], ids=['', 'trusted'])
def test_any_other_file_is_one_line(content, trusted, tmp_path):
    file = tmp_path / 'some.pth'
    file.write_bytes(content)
    with pytest.raises(UserError, match=r'^checkpoint cannot be read, it is .*damaged: '):
        load_checkpoint(str(file), trusted)


@pytest.mark.parametrize(
    ('name', 'flag'),
    [('resnet56_cifar10', []), ('resnet56_cifar100', []), ('resnet56_cifar10', ['--download'])],
    ids=['CIFAR-10', 'CIFAR-100', 'download'],
)
def test_cifar_is_fetched_only_where_the_command_says_so(name, flag, tool, tmp_path):
    root = tmp_path / 'data'
    root.mkdir()
    args = [
        'train', ROOT / 'configs' / 'cifar' / f'{name}.py', '--data-root', root, '--work-dir', tmp_path / 'run', *flag,
        '--cfg-options', 'model.backbone.depth=8',
    ]  # fmt: skip
    if flag:
        with pytest.raises(AssertionError, match='a connection was tried'):
            tool(*args)
    else:
        status, _, error = tool(*args)
        assert status == 2
        assert error.splitlines()[-1].startswith('error: Cannot find CIFAR10')
        assert error.endswith('(pass --download)\n')
    assert not [path for path in root.rglob('*') if path.is_file()]
