"""VOC's files: what has one meaning is read so, by the check and by mmdet alike; the rest is one line."""

from contextlib import nullcontext

import pytest
from mmdet.registry import DATASETS
from PIL import Image

from mmscconv.checks.voc import check_voc
from mmscconv.datasets.reading import annotations_checked
from mmscconv.errors import UserError

SIZE = '<size><width>64</width><height>48</height></size>'
BOX = '<bndbox><xmin>{}</xmin><ymin>5</ymin><xmax>{}</xmax><ymax>20</ymax></bndbox>'


def thing(name='cat', left=5, right=20, difficult=''):
    return f'<object><name>{name}</name>{difficult}{BOX.format(left, right)}</object>'


SOUND = SIZE + thing()


@pytest.fixture
def voc(tmp_path, told):
    """A function that writes two annotated images, checks them and builds the data set."""
    for name in ('Annotations', 'JPEGImages'):
        (tmp_path / name).mkdir()

    def build(second=SOUND, names=('a', 'b'), lines=None, encoding='utf-8', test=False, **settings):
        for name, text in zip(names, (SOUND, second), strict=False):
            Image.new('RGB', (64, 48)).save(tmp_path / 'JPEGImages' / f'{name}.jpg')
            (tmp_path / 'Annotations' / f'{name}.xml').write_text(f'<annotation>{text}</annotation>')
        text = '\n'.join(names) if lines is None else lines
        (tmp_path / 'list.txt').write_bytes(text.encode(encoding))
        dataset = dict(
            type='VOCDataset', metainfo=dict(classes=('dog', 'cat')), data_root=str(tmp_path), ann_file='list.txt',
            data_prefix=dict(sub_data_root=''), test_mode=test, pipeline=[],
        )  # fmt: skip
        dataset.update(settings)
        checked = settings.get('type') == 'CheckedVOCDataset'
        stage = 'val' if test else 'train'
        check_voc({f'{stage}_dataloader': dict(dataset=dataset)}, [stage])
        with nullcontext() if checked else annotations_checked():
            built = DATASETS.build(dataset)
        return [built.get_data_info(i) for i in range(len(built))]

    return build


LISTS = {
    'blanks in names': dict(names=('photo 1 of 2', 'photo 2 of 2')),
    'blank lines': dict(lines='\na\n\n  \nb\n\n'),
    'Windows': dict(lines='a\r\nb\r\n'),
    'blanks after names': dict(lines='a  \nb\t\n'),
    'byte order mark': dict(lines='a\nb\n', encoding='utf-8-sig'),
    'UTF-16': dict(lines='a\nb\n', encoding='utf-16'),
    'a name like a class list': dict(names=('photo 1', 'photo 0')),
}


@pytest.mark.parametrize('case', LISTS)
def test_lists_are_read(case, voc, told):
    infos = voc(**LISTS[case])
    assert [len(info['instances']) for info in infos] == [1, 1]
    assert [info['instances'][0]['bbox_label'] for info in infos] == [1, 1]
    assert bool(told) == ('encoding' in LISTS[case])


MENDED = {
    'empty difficult': (SIZE + thing(difficult='<difficult/>'), 1, 0, 'without a value and are read as not difficult'),
    'unspecified': (SIZE + thing(difficult='<difficult>Unspecified</difficult>'), 1, 0, 'read as not difficult'),
    'difficult': (SIZE + thing(difficult='<difficult> 1 </difficult>'), 1, 1, None),
    'blanks in a class': (SIZE + thing(name='\n cat '), 1, 0, 'names of objects have blanks around them'),
    'no size': (thing(), 1, 0, None),
    'no width': (SIZE.replace('<width>64</width>', '') + thing(), 1, 0, 'annotations have no size of their image'),
    'width 0': (SIZE.replace('64', '0') + thing(), 1, 0, 'annotations have no size of their image'),
    'width a word': (SIZE.replace('64', 'wide') + thing(), 1, 0, 'annotations have no size of their image'),
    'width a fraction': (SIZE.replace('64', '64.0') + thing(), 1, 0, None),
    'no width of a box': (SIZE + thing() + thing(left=9, right=9), 1, 0, 'boxes have no width or height, first'),
    'no width once rounded': (SIZE + thing() + thing(left=9.2, right=9.8), 1, 0, '1 boxes have no width or height'),
    'right of the image': (SIZE + thing() + thing(left=65, right=80), 1, 0, '1 boxes are outside of their image'),
    'left of the image': (SIZE + thing() + thing(left=-9, right=1), 1, 0, '1 boxes are outside of their image'),
}


@pytest.mark.parametrize('kind', ['VOCDataset', 'CheckedVOCDataset'])
@pytest.mark.parametrize('case', MENDED)
def test_what_has_one_meaning_is_read_so(case, kind, voc, told):
    text, objects, difficult, message = MENDED[case]
    info = voc(text, type=kind)[1] if kind.startswith('Checked') else voc(text)[1]
    assert (info['width'], info['height']) == (64, 48)
    assert [(i['bbox'], i['ignore_flag']) for i in info['instances']] == [([4, 4, 19, 19], difficult)] * objects
    assert [message in line for line in told] == [True] * (message is not None)


REFUSED = {
    'a class list': (
        dict(lines='a -1\nb  1\n'),
        'two columns, as the lists of a single class have: ',
    ),
    'a word as difficult': (
        dict(second=SIZE + thing(difficult='<difficult>no</difficult>')),
        "difficult='no', which must",
    ),
    'no name': (dict(second=SIZE + f'<object>{BOX.format(1, 9)}</object>'), 'an object without name'),
    'huge': (dict(second=SIZE + thing(right='1e30')), "has xmax='1e30' in a box"),
    'deeper objects': (dict(second=f'<objects>{thing()}</objects>'), 'not directly in its root element <annotation>'),
    'encoding': (dict(lines='Zürich\n', encoding='latin-1'), 'is not UTF-8'),
    'unlisted letters': (
        dict(metainfo=dict(classes='cat')),
        r"classes='cat', a text .* write \('cat',\)",
    ),
    'nothing to learn': (dict(lines='b\n', second=SIZE), 'no image has an object: .*, there is nothing to learn'),
    'twice': (dict(lines='a\nb\na\n', test=True), "lists 'a' twice, whose objects would be counted twice"),
}


@pytest.mark.parametrize('kind', ['VOCDataset', 'CheckedVOCDataset'])
@pytest.mark.parametrize('case', REFUSED)
def test_what_has_no_meaning_is_one_line(case, kind, voc, told, tmp_path):
    settings, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as error:
        voc(**{'type': kind, **settings})
    assert str(tmp_path) in str(error.value) and '\n' not in str(error.value)


def test_files_in_another_storage_are_left_to_mmdet(tmp_path, told):
    dataset = dict(type='VOCDataset', ann_file=str(tmp_path / 'list.txt'), data_prefix=dict(sub_data_root=''))
    cfg = dict(train_dataloader=dict(dataset=dataset))
    with pytest.raises(UserError, match=r'annotation file cannot be read: .*list\.txt'):
        check_voc(cfg, ['train'])
    dataset['backend_args'] = dict(backend='petrel')
    check_voc(cfg, ['train'])


def test_nothing_to_find_is_a_warning(voc, told):
    voc(lines='b\n', second=SIZE, test=True)
    assert 'no image has an object' in told[0] and 'average precision will be -1' in told[0]


def test_an_image_whose_size_nobody_says_must_be_one(voc, tmp_path):
    voc()
    (tmp_path / 'Annotations' / 'b.xml').write_text(f'<annotation>{thing()}</annotation>')
    (tmp_path / 'JPEGImages' / 'b.jpg').write_text('hello')
    dataset = dict(type='VOCDataset', data_root=str(tmp_path), ann_file='list.txt', metainfo=dict(classes=('cat',)))
    with pytest.raises(UserError, match=r'cannot load .*b\.jpg'):
        check_voc(dict(train_dataloader=dict(dataset=dataset)), ['train'])
