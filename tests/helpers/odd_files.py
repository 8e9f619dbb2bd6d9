"""Annotation files in which anything may be missing or of another kind."""

import copy

from hypothesis import strategies as st

TEXTS = ['', ' ', 'x', '1', '0', '1.5', 'cat', 'true', 'nan', '\u00e4\n']
VALUES = st.sampled_from(
    [None, True, False, *TEXTS, [], [1], {}, {'a': 1}, -1, 0, 0.0, 0.5, 1, 2, 3, 64.0, 1e30, -1e30, 10**25, 10**400,
     2**53, float('nan'), float('inf'), [1, 2, 3, 4], [0, 0, 0.5, 9], [-5, 3, 3, 3], [5, 5, 0, 9], ['1', 2, 3, 4]]
)  # fmt: skip
FIELDS = {
    'images': ['id', 'file_name', 'width', 'height', 'more'],
    'annotations': ['id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd', 'ignore', 'segmentation'],
    'categories': ['id', 'name', 'supercategory'],
}
SIZE = (64, 48)
NAMES = ('a.png', 'b.png', 'c.png')
CLASSES = ('cat', 'dog')
IMAGE_IDS = [[1, 2, 3], [7, 3, 900], ['a', 'b', 'c'], ['3', '1', '2'], [0, 1, 2**60], [1.0, 2.0, 4.0]]
ENCODINGS = ['utf-8', 'utf-8', 'utf-8-sig', 'utf-16', 'utf-32', 'latin-1']


@st.composite
def boxes(draw):
    """Return x, y, width, height in the image."""
    width, height = draw(st.integers(4, 30)), draw(st.integers(4, 24))
    return [draw(st.integers(0, SIZE[0] - width)), draw(st.integers(0, SIZE[1] - height)), width, height]


@st.composite
def sound_coco(draw):
    """Return a COCO file as it should be, but for liberties that have one meaning."""
    ids = draw(st.sampled_from(IMAGE_IDS))
    category_ids = draw(st.sampled_from([[3, 7], [0, 1], [2, 1], ['x', 'y']]))
    images = [dict(id=i, file_name=n, width=SIZE[0], height=SIZE[1]) for i, n in zip(ids, NAMES, strict=True)]
    categories = [dict(id=i, name=n) for i, n in zip(category_ids, CLASSES, strict=True)]
    if draw(st.booleans()):
        categories.reverse()
    if draw(st.booleans()):
        categories.append(
            dict(id=99 if isinstance(category_ids[0], int) else 'z', name=draw(st.sampled_from(['cat', 'fox'])))
        )
    start = draw(st.sampled_from([0, 1, 10]))
    annotations = []
    for number in range(draw(st.integers(1, 6))):
        box = draw(boxes())
        crowd = draw(st.integers(0, 5)) == 0
        annotations.append(
            dict(
                id=start + number, image_id=draw(st.sampled_from(ids)), bbox=box, area=box[2] * box[3],
                category_id=draw(st.sampled_from(categories))['id'], iscrowd=int(crowd),
            )
        )  # fmt: skip
    return dict(images=images, annotations=annotations, categories=categories)


@st.composite
def coco_files(draw):
    """Return the content and the encoding of a COCO file with up to two odd values."""
    content = draw(sound_coco())
    for _ in range(draw(st.integers(0, 2))):
        part = draw(st.sampled_from(['annotations', 'annotations', 'annotations', 'images', 'categories', None]))
        if part is None:
            key, owners = draw(st.sampled_from(list(FIELDS))), [content]
        else:
            key = draw(st.sampled_from(FIELDS[part]))
            entries = content.get(part)
            owners = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
        if not owners:
            continue
        chosen = owners if draw(st.integers(0, 3)) == 0 else [draw(st.sampled_from(owners))]
        missing, value = draw(st.integers(0, 3)) == 0, draw(VALUES)
        for owner in chosen:
            if missing:
                owner.pop(key, None)
            else:
                owner[key] = copy.deepcopy(value)
    if draw(st.integers(0, 30)) == 0:
        content = draw(VALUES)
    return content, draw(st.sampled_from(ENCODINGS))


XML_FIELDS = ['name', 'difficult', 'bndbox', 'xmin', 'ymin', 'xmax', 'ymax', 'size', 'width', 'height', 'object']
XML_TEXTS = [*TEXTS, ' cat ', '\ncat\n', '-1', '1e400', '1e30', '-inf', '64', '5', '7.9', 'Unspecified', None]


@st.composite
def voc_objects(draw):
    """Return one object's class, box and flag."""
    x, y, width, height = draw(boxes())
    return dict(
        name=draw(st.sampled_from([*CLASSES, 'fox'])), box=(x + 1, y + 1, x + 1 + width, y + 1 + height),
        difficult=draw(st.sampled_from([None, '0', '1', '', ' 1 ', 'Unspecified'])),
    )  # fmt: skip


@st.composite
def voc_files(draw):
    """Return (objects, changes) of each image, each change (element's name, its number, new text or None to drop)."""
    files = []
    for _ in NAMES:
        changes = []
        if draw(st.integers(0, 2)) == 0:
            drop = draw(st.integers(0, 3)) == 0
            changes.append(
                (draw(st.sampled_from(XML_FIELDS)), draw(st.integers(0, 1)), drop, draw(st.sampled_from(XML_TEXTS)))
            )
        files.append((draw(st.lists(voc_objects(), min_size=1, max_size=3)), changes))
    cut = draw(st.integers(0, 40)) == 0
    return files, cut, draw(st.sampled_from(['\n', '\n', '\r\n', '\n\n', ' 1\n'])), draw(st.sampled_from(ENCODINGS))
