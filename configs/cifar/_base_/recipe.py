"""The recipe of section 3.1: 200 epochs, SGD, lr 0.05 divided by 10 at 100 and 150, batch 128."""

_base_ = ['mmpretrain::_base_/schedules/cifar10_bs128.py', '../../_base_/classification_runtime.py']

custom_imports = dict(imports=['mmscconv.models', 'mmscconv.datasets'], allow_failed_imports=False)

input_shape = (32, 32)

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[100, 150], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=1)

# --amp with optim_wrapper.dtype=bfloat16 shortens an epoch further.
default_hooks = dict(
    layout=dict(devices=['cuda', 'cpu']), checkpoint=dict(interval=10, max_keep_ckpts=1, save_best='auto')
)
auto_scale_lr = dict(enable=False, base_batch_size=128)
