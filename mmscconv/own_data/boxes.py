"""Boxes read by globox: clipped to their image, or left out with the reason."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

from globox import BoundingBox
from globox.errors import ParsingError

from mmscconv.own_data.records import Account, Box, Size

SMALLEST = 1  # pixel; FilterAnnotations(min_gt_bbox_wh=(1, 1)) keeps what is wider
ROUNDING = 0.01  # pixels; six decimals of a YOLO file are this exact in images of up to 10,000 pixels


def read_box(
    parse: Callable[[], BoundingBox], size: Size, account: Account, where: str, crowd: bool = False
) -> Box | None:
    """Return the box that ``parse`` reads, clipped to an image of ``size``; None, and counted, if it is of no use."""
    try:
        found = parse()
    except (AssertionError, OverflowError, ParsingError, TypeError, ValueError):
        account.add('boxes without four finite numbers in order: left out', where)
        return None
    if not all(map(isfinite, found.ltrb)):
        account.add('boxes without four finite numbers in order: left out', where)
        return None
    label = found.label.strip()
    if not label:
        account.add('objects without a class: left out', where)
        return None
    if label != found.label:
        account.add('class names with blanks around them: taken without', where)
    x1, x2 = (min(max(x, 0), size[0]) for x in (found.xmin, found.xmax))
    y1, y2 = (min(max(y, 0), size[1]) for y in (found.ymin, found.ymax))
    if min(found.width, found.height) <= SMALLEST:
        account.add('boxes of no size, a pixel wide or high at most: left out', where)
        return None
    if min(x2 - x1, y2 - y1) <= SMALLEST:
        account.add('boxes outside of their image: left out', where)
        return None
    if max(abs(a - b) for a, b in zip((x1, y1, x2, y2), found.ltrb, strict=True)) > ROUNDING:
        account.add('boxes that reach out of their image: clipped', where)
    if crowd:
        account.add('objects marked as crowd, ignored or difficult: not trained on, neither hit nor miss', where)
    return Box(label, (x1, y1, x2, y2), crowd)
