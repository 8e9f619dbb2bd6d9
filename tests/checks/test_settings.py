"""Misspelt settings are told, and names on purpose are left alone."""

import pytest

import mmscconv
from mmscconv.checks.settings import check_keys
from mmscconv.errors import UserError


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
