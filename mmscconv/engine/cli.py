"""Command-line flags that tools share: mmdet's, plus --data-root, --download and --trusted."""

from __future__ import annotations

import argparse
import ast
import re
from typing import Any

from mmengine.config import Config, DictAction

from mmscconv.configuration import move_data_root, read_config

# The quickstart of earlier checkouts imports move_data_root from here.
__all__ = ['add_common_arguments', 'add_config_arguments', 'config_of', 'move_data_root']

LISTS = 'a list is written as key="[a,b]", with blanks in a name as key="[\'a b\',\'c\']"'


class ConfigOptions(DictAction):
    """mmengine's ``KEY=VALUE`` options, of which it would take the blanks: from paths and class names, too."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for pair in values:
            key, separator, value = pair.partition('=')
            if not separator or not all(key.split('.')) or key.strip() != key:
                parser.error(f'{option_string} takes KEY=VALUE, a.b.c=1 without blanks around the =, got {pair!r}')
            try:
                options[key] = self._value(value)
            except (AssertionError, SyntaxError, ValueError) as error:
                parser.error(f'{option_string} {key}: cannot read {value!r} ({error}); {LISTS}')
        setattr(namespace, self.dest, options)

    def _value(self, value: str) -> Any:
        text = value.strip()
        if not re.search(r'\s', text):
            return self._parse_iterable(text)
        if text[0] in '[(\'"' and text[-1] in '])\'"' and re.search('[\'"]', text):
            return ast.literal_eval(text)
        joined = re.sub(r'\s*([,()\[\]])\s*', r'\1', text)
        if not re.search(r'\s', joined):
            return self._parse_iterable(joined)
        if text[0] in '[(':
            raise ValueError('a blank inside of a name')
        return text  # a path or a name with blanks


class PassedOptions(ConfigOptions):
    """The same, and their texts in ``passed``, for a tool that hands them on to another one."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        super().__call__(parser, namespace, values, option_string)
        namespace.passed = [*namespace.passed, *values]


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that training and testing share."""
    parser.add_argument('--work-dir', help='folder for logs and results (default: work_dirs/<config name>)')
    add_config_arguments(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch.distributed.launch passes the rank as an argument, torchrun as a variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that change a config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        help='settings to override, nested ones as a.b.c=value, lists as key="[a,b]"',
    )
    parser.add_argument('--data-root', help="folder of the data, replaces the config's data_root everywhere")
    parser.add_argument('--download', action='store_true', help='download missing files of CIFAR data sets')
    parser.add_argument(
        '--trusted',
        action='store_true',
        help='load checkpoints that hold other objects than weights (may run any code)',
    )


def config_of(args: argparse.Namespace) -> Config:
    """Read the config that ``args`` name, with the changes of :func:`add_config_arguments`'s flags."""
    return read_config(args.config, args.cfg_options or {}, args.data_root, args.download)
