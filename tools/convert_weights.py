#!/usr/bin/env python
"""Convert a checkpoint of the popular unofficial ScConv module into one for this package's layers.

The result holds 'state_dict', and 'meta' if the checkpoint has one; an optimizer's state
does not fit the new layers. docs/legacy_checkpoints.md lists the old and the new keys.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.checks.environment import check_environment
from mmscconv.errors import UserError, run


def main() -> None:
    from mmscconv.legacy.convert import FORMS, convert_weights, find_layers, settings_table
    from mmscconv.legacy.layer import NUM_GROUPS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path, help="a state_dict, or a dict with one as 'state_dict' or 'model'")
    parser.add_argument('out', type=Path, help='file to write')
    parser.add_argument('--prefix', default='', help='convert only layers whose names begin with PREFIX')
    parser.add_argument(
        '--form', choices=FORMS, default='legacy', help='legacy: the same numbers; paper: weights for more training'
    )
    parser.add_argument('--drop-gwc-bias', action='store_true', help="leave out the GWC's biases, for --form paper")
    parser.add_argument(
        '--group-num', type=int, default=NUM_GROUPS,
        help="the network's group_num, for the printed config; weights do not record it (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument('--trusted', action='store_true', help='load a checkpoint that holds other objects, too')
    args = parser.parse_args()
    check_environment()

    from mmscconv.storage.checkpoints import load_checkpoint, save_checkpoint, unwrapped, weights_of

    content = load_checkpoint(args.checkpoint, args.trusted)
    if args.out.exists() and args.out.samefile(args.checkpoint):
        raise UserError(f'{args.out} is the checkpoint itself: name another file to write')
    weights = weights_of(content, args.checkpoint)
    kept = {'meta': content['meta']} if 'meta' in content and weights is not content else {}
    wrapped = bool(weights) and all(str(key).startswith('module.') for key in weights)
    if wrapped:
        weights = unwrapped(weights)
    try:
        table = settings_table(find_layers(weights, args.prefix), args.group_num, args.form)
        converted = convert_weights(weights, args.prefix, args.form, args.drop_gwc_bias)
    except ValueError as error:
        raise UserError(f'{args.checkpoint}: {error}') from error
    save_checkpoint({**kept, 'state_dict': converted}, args.out)
    print(table)
    if wrapped:
        print("the prefix 'module.' of data-parallel training was removed from every key")
    print(f'wrote {args.out}')


if __name__ == '__main__':
    sys.exit(run(main))
