"""Misspelt settings are told, and names on purpose are left alone."""

import copy

import pytest

import mmscconv
from mmscconv.checks.settings import check_counting, check_keys
from mmscconv.configuration import read_config
from mmscconv.errors import UserError
from mmscconv.own_data.config_file import BY_ITERATION


@pytest.mark.parametrize(
    ('wrong', 'right'),
    [('optm_wrapper', 'optim_wrapper'), ('train_dataloder', 'train_dataloader'), ('custom_hook', 'custom_hooks')],
)
def test_a_misspelt_key_of_a_config_is_a_warning(wrong, right, warnings):
    check_keys({'model': {}, wrong: {}}, (), 'a.py')
    assert warnings == [f'a.py sets {wrong!r}, which nothing reads: did you mean {right!r}?']


def test_a_misspelt_option_is_an_error(warnings):
    with pytest.raises(UserError, match=r"--cfg-options sets 'train_dataloder'.* did you mean 'train_dataloader'\?"):
        check_keys({'train_dataloader': {}}, ['train_dataloder.batch_size'], 'a.py')
    check_keys({'model': {}}, ['nonsense.x', 'nonsense.y'], 'a.py')
    assert warnings == ["--cfg-options sets 'nonsense', which is neither in a.py nor known to mmengine"]


def test_a_variable_of_the_config_changes_nothing_that_was_made_from_it(warnings):
    check_keys({'train_pipeline': []}, ['train_pipeline.2.scale', 'input_shape', 'metainfo.classes', 'model.x'], 'a.py')
    assert len(warnings) == 1
    assert "--cfg-options sets 'train_pipeline', a variable of a.py: what was made from it there keeps" in warnings[0]


def test_names_on_purpose_pass_in_silence(warnings):
    options = ['model.backbone.init_cfg.type', 'default_hooks.gates.type', 'load_from', 'randomness.seed', 'compile']
    for name in ('retinanet_scconv_r50_voc', 'retinanet_r18_digits', 'cifar/scconv_resnet56_cifar10_folder'):
        check_keys(mmscconv.get_config(name), options, name)
    helpers = (
        'train_pipeline',
        'test_pipeline',
        'val_pipeline',
        'model_cfg',
        'train_dataset',
        'optimizer',
        'data',
        'train_dataloader2',
    )
    check_keys(dict.fromkeys(helpers), (), 'a.py')
    assert not warnings


BY_ITERATIONS = dict(
    train_cfg=dict(type='IterBasedTrainLoop', max_iters=100),
    param_scheduler=[
        dict(type='LinearLR', by_epoch=False, end=10),
        dict(type='CosineAnnealingLR', convert_to_iter_based=True),
        dict(type='ReduceOnPlateauLR', monitor='loss'),  # steps at each validation
    ],
    default_hooks=dict(
        checkpoint=dict(type='SafeCheckpointHook', by_epoch=False),
        logger=dict(type='LoggerHook', log_metric_by_epoch=False),
    ),
)


def test_no_shipped_config_counts_epochs_in_a_loop_of_iterations(warnings, tmp_path):
    loops = set()
    for name in mmscconv.list_configs():
        cfg = mmscconv.get_config(name)
        check_counting(cfg)
        loops.add(cfg.train_cfg.get('type'))
    assert 'IterBasedTrainLoop' in loops
    base = mmscconv.get_config('retinanet_scconv_r50_coco').filename
    text = BY_ITERATION.format(iterations=90, epochs=9, val_every=10, warmup=5, milestones=[60, 80])
    (tmp_path / 'own.py').write_text(f'_base_ = {base!r}\n{text}\n')
    check_counting(read_config(tmp_path / 'own.py'))
    assert not warnings


def test_what_counts_epochs_in_a_loop_of_iterations_is_told_once(warnings):
    check_counting(BY_ITERATIONS)
    assert not warnings
    cfg = copy.deepcopy(BY_ITERATIONS)
    cfg |= dict(train_cfg=dict(by_epoch=False, max_iters=100))
    cfg['param_scheduler'] = [dict(type='mmengine.optim.MultiStepLR', milestones=[50])]
    cfg['default_hooks'] = dict(checkpoint=dict(type='CheckpointHook', interval=10), logger=dict(type='LoggerHook'))
    check_counting(cfg)
    (line,) = warnings
    assert line.startswith('train_cfg counts iterations, but these settings count epochs: ')
    assert 'default_hooks.checkpoint.by_epoch: saves at the end alone' in line
    assert 'param_scheduler.0.by_epoch: MultiStepLR never steps' in line
    assert 'default_hooks.logger.log_metric_by_epoch: logs each validation at step 0' in line
    check_counting({**cfg, 'train_cfg': dict(by_epoch=True, max_epochs=10)})
    check_counting({**cfg, 'train_cfg': None})
    assert len(warnings) == 1


def test_schedules_of_several_optimizers_and_hooks_left_out(warnings):
    cfg = {**BY_ITERATIONS, 'default_hooks': dict(checkpoint=None, logger=None)}
    check_counting({**cfg, 'param_scheduler': dict(net=[dict(type='ExponentialLR')], other=dict(type='StepLR'))})
    (line,) = warnings
    assert 'param_scheduler.net.0.by_epoch: ExponentialLR' in line and 'param_scheduler.other.by_epoch: StepLR' in line
