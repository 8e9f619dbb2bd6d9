"""The hooks that watch a training: GateShares, and StopOnNonFinite with numbers that are made non-finite on purpose."""

import json
import math

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from helpers.paths import ROOT
from mmscconv import SRU
from mmscconv.errors import UserError
from mmscconv.hooks import GateShares
from mmscconv.paper.measures import record_gate_shares
from mmscconv.storage.checkpoints import last_good_checkpoint

STOP = dict(type='StopOnNonFinite')
SAVING = dict(type='CheckpointHook', interval=1, by_epoch=False)


class Ramp(Dataset):
    """Image i is filled with the number i; the loader makes a batch of each."""

    def __init__(self, length=6, broken=None):
        self.length, self.broken = length, broken

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return {'inputs': torch.full((4, 3, 3), math.nan if i == self.broken else float(i))}


class Root(nn.Module):
    """NaN from the number on that the limit is below."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, x):
        return torch.sqrt(self.limit - x)


class Net(BaseModel):
    def __init__(self, limit=100.0, threshold=0.5, loss=torch.square):
        super().__init__()
        self.root, self.conv, self.sru = Root(limit), nn.Conv2d(4, 8, 1), SRU(8, threshold=threshold)
        self.loss = loss

    def forward(self, inputs, mode='tensor'):
        y = self.sru(self.conv(self.root(torch.stack(list(inputs)))))
        return {'loss_a': [self.loss(y.mean())], 'loss_b': y.abs().mean(), 'acc': torch.tensor(math.nan)}


@pytest.fixture
def make_runner(tmp_path):
    def make(model, hooks, dataset=None, lr=0.01, saving=SAVING, **wrapper):
        return Runner(
            model=model,
            work_dir=str(tmp_path),
            train_dataloader=dict(
                batch_size=1, dataset=dataset or Ramp(), sampler=dict(type='DefaultSampler', shuffle=False)
            ),
            train_cfg=dict(by_epoch=False, max_iters=6),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr), **wrapper),
            default_hooks=dict(checkpoint=saving),
            custom_hooks=hooks,
            experiment_name=tmp_path.name,
        )

    return make


def stopped(runner):
    with pytest.raises(UserError) as error:
        runner.train()
    assert '\n' not in str(error.value)
    return str(error.value)


def weights(path):
    return torch.load(path, weights_only=False)['state_dict']


def test_a_sound_training_is_left_alone(make_runner, tmp_path):
    model = Net()
    counts = []
    model.conv.register_forward_hook(
        lambda *_: counts.append(len(model._forward_hooks) + len(model.root._forward_hooks))
    )
    make_runner(model, [STOP]).train()
    assert counts == [1] * 6  # the hook that keeps the losses; none on the layers
    assert not model._forward_hooks
    assert all(value.isfinite().all() for value in weights(tmp_path / 'iter_6.pth').values())


def test_the_first_layer_and_the_last_good_checkpoint_are_named(make_runner, tmp_path):
    model = Net(limit=2.5)
    message = stopped(make_runner(model, [STOP]))
    assert message.startswith(
        'the loss is not finite at iteration 4 (loss_a, loss_b): first in the output of root (Root)'
    )
    assert f'last good checkpoint: {tmp_path / "iter_3.pth"}' in message
    assert 'input is already' not in message and 'weights are not finite' not in message
    # The step that would have spoiled the weights was not made.
    want = weights(tmp_path / 'iter_3.pth')
    assert all(torch.equal(value, want[name]) for name, value in model.state_dict().items())


def test_accumulated_gradients(make_runner):
    message = stopped(make_runner(Net(limit=1.5), [STOP], accumulative_counts=4))
    assert 'iteration 3' in message and 'root (Root)' in message


def test_clipped_gradients(make_runner, tmp_path):
    message = stopped(make_runner(Net(limit=2.5), [STOP], clip_grad=dict(max_norm=1)))
    assert 'iteration 4' in message and 'iter_3.pth' in message


def test_broken_input(make_runner):
    message = stopped(make_runner(Net(), [STOP], Ramp(broken=0)))
    assert 'iteration 1 ' in message
    assert 'data_preprocessor (BaseDataPreprocessor), whose input is already not finite; no checkpoint was' in message


def test_broken_gradient(make_runner, tmp_path):
    """The loss is finite, its gradient is not: the weights show it in the next iteration."""
    model, calls = Net(), []

    def spoil(gradient):
        calls.append(1)
        return gradient * math.nan if len(calls) == 3 else gradient

    model.conv.weight.register_hook(spoil)
    message = stopped(make_runner(model, [STOP]))
    assert 'iteration 4' in message and 'conv (Conv2d), whose weights are not finite' in message
    assert 'iter_2.pth' in message  # iter_3.pth holds the spoilt weights


def test_spoilt_weights_do_not_replace_the_last_good_checkpoint(make_runner, tmp_path):
    model, calls = Net(), []

    def spoil(gradient):
        calls.append(1)
        return gradient * math.nan if len(calls) == 3 else gradient

    model.conv.weight.register_hook(spoil)
    saving = dict(type='SafeCheckpointHook', interval=1, by_epoch=False, max_keep_ckpts=1)
    message = stopped(make_runner(model, [STOP], saving=saving))
    assert 'iter_2.pth' in message and all(w.isfinite().all() for w in weights(tmp_path / 'iter_2.pth').values())


def test_a_model_may_keep_other_things_than_tensors(make_runner, tmp_path, monkeypatch):
    """torch's get_extra_state puts them into the state dict."""
    monkeypatch.setattr(Net, 'get_extra_state', lambda self: {'calls': 3}, raising=False)
    monkeypatch.setattr(Net, 'set_extra_state', lambda self, state: None, raising=False)
    saving = dict(type='SafeCheckpointHook', interval=1, by_epoch=False, max_keep_ckpts=1)
    make_runner(Net(), [STOP], saving=saving).train()
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_6.pth']


def test_loss_computation(make_runner):
    message = stopped(make_runner(Net(loss=lambda y: (y - y).log()), [STOP]))
    assert "(loss_a): every layer's output is finite, so it comes from the computation of the loss" in message


def test_something_random(make_runner):
    values = iter([math.nan])
    message = stopped(make_runner(Net(loss=lambda y: y * next(values, 1.0)), [STOP]))
    assert 'it is finite when the batch runs again' in message


def test_last_good_checkpoint_skips_what_is_broken(tmp_path):
    assert last_good_checkpoint(tmp_path) is None
    for i, content in enumerate(({'state_dict': {'w': torch.ones(2)}}, {'state_dict': {'w': torch.tensor(math.inf)}})):
        torch.save(content, tmp_path / f'iter_{i}.pth')
    (tmp_path / 'iter_2.pth').write_bytes((tmp_path / 'iter_0.pth').read_bytes()[:300])
    assert last_good_checkpoint(tmp_path).name == 'iter_0.pth'


def test_our_tools_show_one_line(tool, digits, digits_run, tmp_path, monkeypatch):
    from helpers.running_tools import DIGITS

    forward, seen = SRU.forward, []

    def broken(self, x):
        seen.append(1)
        y = forward(self, x)
        return y * math.nan if self.channels == 64 else y

    monkeypatch.setattr(SRU, 'forward', broken)
    status, _, stderr = tool(
        'train', ROOT / 'configs' / 'retinanet_scconv_r18_digits.py', '--data-root', digits, '--work-dir', tmp_path,
        '--cfg-options', *DIGITS,
    )  # fmt: skip
    assert status == 2 and seen  # kernels stand in for SRU's own forward alone
    line = stderr.strip().splitlines()[-1]
    assert line.startswith('error: the loss is not finite at iteration 1 (loss_cls, loss_bbox): ')
    assert 'first in the output of backbone.layer2.0.' in line and '.sru (SRU)' in line


def gate_lines(folder):
    lines = next(folder.glob('*/vis_data/scalars.json')).read_text().splitlines()
    return [record for record in map(json.loads, lines) if any(key.startswith('gate/') for key in record)]


def log_text(folder):
    return next(folder.glob('*/*.log')).read_text()


def test_gate_shares_are_logged(make_runner, tmp_path):
    model = Net()
    with torch.no_grad():
        model.sru.gn.bias.uniform_(-1, 1)
    make_runner(model, [dict(type='GateShares', interval=3)], lr=0.0).train()
    lines = gate_lines(tmp_path)
    assert [line['step'] for line in lines] == [3, 6]
    for line in lines:
        with record_gate_shares(model) as shares:
            model([Ramp()[line['step'] - 1]['inputs']])
        assert line['gate/sru'] == shares['sru']
        assert 0 < line['gate/sru'] < 1
    assert not model.sru._forward_hooks
    assert 'have collapsed' not in log_text(tmp_path)


@pytest.mark.parametrize(('threshold', 'share'), [(0.999, '0%'), (0.001, '100%')])
def test_collapsed_gates_are_warned_of_once(make_runner, tmp_path, threshold, share):
    make_runner(Net(threshold=threshold), [dict(type='GateShares', interval=2)]).train()
    warnings = [line for line in log_text(tmp_path).splitlines() if 'have collapsed' in line]
    assert len(warnings) == 1
    assert f'SRU gates have collapsed at iteration 2: sru ({share} informative)' in warnings[0]
    assert 'WARNING' in warnings[0]


@pytest.mark.parametrize('threshold', [0, 1])
def test_gates_that_are_open_or_shut_on_purpose(make_runner, tmp_path, threshold):
    make_runner(Net(threshold=threshold), [dict(type='GateShares', interval=2)]).train()
    assert len(gate_lines(tmp_path)) == 3
    assert 'have collapsed' not in log_text(tmp_path)


def test_hooks_by_name_and_their_arguments():
    assert HOOKS.build(dict(type='GateShares')).interval == 100
    with pytest.raises(ValueError, match='interval must be positive'):
        GateShares(interval=0)
