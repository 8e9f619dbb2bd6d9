#!/usr/bin/env python
"""Make a checkpoint ready to publish: weights and meta alone, with a part of its SHA-256 in the name.

The result is named OUT-<8 hex digits>.pth, as by mmdet's tool of the same name, and can
be read with torch.load(weights_only=True). With EMA, mmengine's checkpoints hold the
averaged weights in state_dict, and these are published.
"""

import argparse
import hashlib
import io
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.checks.environment import check_environment
from mmscconv.errors import UserError, run
from mmscconv.foreign_errors import flat_message

KEPT = ('meta', 'state_dict')


def as_half(name: str, weight: Any) -> Any:
    """Return a tensor of floats in fp16, anything else as it is.

    Raises:
        UserError: A weight is too large for fp16.
    """
    if not hasattr(weight, 'is_floating_point') or not weight.is_floating_point():
        return weight
    half = weight.half()
    if not half.isfinite().all():
        raise UserError(f'{name} holds numbers that fp16 does not: leave out --half')
    return half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path, help='checkpoint of a training')
    parser.add_argument('out', type=Path, help='file to write; the hash goes before .pth')
    parser.add_argument(
        '--bare',
        action='store_true',
        help='keep the classes alone of the meta, whose config names folders of this machine',
    )
    parser.add_argument('--half', action='store_true', help='store the weights in fp16, half as large')
    parser.add_argument(
        '--trusted', action='store_true', help='load a checkpoint that holds other objects than weights'
    )
    args = parser.parse_args()
    check_environment()
    import torch

    from mmscconv.storage.checkpoints import load_checkpoint, require_finite, weights_of
    from mmscconv.storage.disk import write_atomically

    content = load_checkpoint(args.checkpoint, args.trusted)
    if 'state_dict' not in content:
        raise UserError(f'checkpoint has no state_dict: {args.checkpoint}')
    require_finite(args.checkpoint, weights_of(content, args.checkpoint))
    kept = {key: content[key] for key in KEPT if key in content}
    if args.bare:
        kept['meta'] = {key: value for key, value in kept.get('meta', {}).items() if key == 'dataset_meta'}
    if args.half:
        kept['state_dict'] = {name: as_half(name, t) for name, t in content['state_dict'].items()}
    file = io.BytesIO()
    torch.save(kept, file)
    digest = hashlib.sha256(file.getbuffer()).hexdigest()[:8]
    published = args.out.with_name(f'{args.out.name.removesuffix(".pth")}-{digest}.pth')
    try:
        write_atomically(published, file.getbuffer())
    except OSError as error:
        raise UserError(f'cannot write {args.out}: {flat_message(error)}') from error
    dropped = [key for key in content if key not in KEPT]
    print(f'{published} (left out: {", ".join(dropped) or "nothing"})')


if __name__ == '__main__':
    sys.exit(run(main))
