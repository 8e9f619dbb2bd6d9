"""The shell scripts that start a tool on several devices: the commands that they run."""

import os

import pytest

from helpers.paths import ROOT
from helpers.running_tools import start_tool

TOOLS = ROOT / 'tools'
CONFIG = 'configs/a b.py'  # one word, whatever is in it


@pytest.fixture
def start(tmp_path):
    """Function that starts a script with a ``python`` and an ``srun`` that print a line for each of their words."""
    for name in ('python', 'srun'):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@"\n')
        program.chmod(0o755)
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'

    def run(script, *args, **variables):
        return start_tool('bash', TOOLS / script, *args, **{'PATH': path, 'PYTHON': 'python', **variables})

    return run


@pytest.mark.parametrize(
    ('script', 'args', 'tool'),
    [
        ('dist_train.sh', (CONFIG, 2), ('train.py', CONFIG)),
        ('dist_test.sh', (CONFIG, 'a.pth', 2), ('test.py', CONFIG, 'a.pth')),
    ],
    ids=['train', 'test'],
)
def test_processes_of_torch(script, args, tool, start):
    flags = '--cfg-options', 'a=[1, 2]'
    done = start(script, *args, *flags)
    assert done.returncode == 0, done.text
    name, *arguments = tool
    places = '--nnodes=1', '--node_rank=0', '--nproc_per_node=2', '--master_addr=127.0.0.1', '--master_port=29500'
    assert done.stdout.splitlines() == [
        'python', '-m', 'torch.distributed.run', *places,
        str(TOOLS / name), *arguments, '--launcher', 'pytorch', *flags,
    ]  # fmt: skip
    variables = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='1234')
    places = '--nnodes=2', '--node_rank=1', '--nproc_per_node=2', '--master_addr=10.0.0.1', '--master_port=1234'
    assert start(script, *args, **variables).stdout.splitlines()[3:8] == [*places]


@pytest.mark.parametrize(
    ('variables', 'resources'),
    [
        ({}, ('--gres=gpu:8', '--ntasks=8', '--ntasks-per-node=8', '--cpus-per-task=8', '--kill-on-bad-exit=1')),
        (
            dict(GPUS='4', CPUS_PER_TASK='2', SRUN_ARGS='--time=1 --quiet'),
            ('--gres=gpu:4', '--ntasks=4', '--ntasks-per-node=4', '--cpus-per-task=2', '--kill-on-bad-exit=1',
             '--time=1', '--quiet'),
        ),
        (
            dict(GPUS='16', GPUS_PER_NODE='4'),
            ('--gres=gpu:4', '--ntasks=16', '--ntasks-per-node=4', '--cpus-per-task=8', '--kill-on-bad-exit=1'),
        ),
    ],
    ids=['default', 'fewer', 'nodes'],
)  # fmt: skip
def test_tasks_of_slurm(variables, resources, start):
    flags = '--cfg-options', 'a=[1, 2]'
    done = start('slurm_train.sh', 'gpu', 'a job', CONFIG, 'work_dirs/a', *flags, **variables)
    assert done.returncode == 0, done.text
    assert done.stdout.splitlines() == [
        'srun', '-p', 'gpu', '--job-name=a job', *resources,
        'python', '-u', str(TOOLS / 'train.py'), CONFIG, '--work-dir', 'work_dirs/a', '--launcher', 'slurm', *flags,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('script', 'args'),
    [('dist_train.sh', 1), ('dist_test.sh', 2), ('slurm_train.sh', 3)],
)
def test_too_few_words_are_told_the_usage(script, args, start):
    done = start(script, *['word'] * args)
    assert done.returncode == 2 and done.stdout == ''
    assert 'usage: ' in done.stderr and f'{script} ' in done.stderr and 'CONFIG' in done.stderr
