"""The steps of ``tools/own_dataset.py``: read, split, look at and describe a data set, and write its config."""

from __future__ import annotations

import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmscconv.errors import UserError
from mmscconv.foreign_errors import first_line
from mmscconv.own_data.config_file import config_text
from mmscconv.own_data.reading import choose_classes, read_data_set
from mmscconv.own_data.recipe import Recipe, choose_recipe
from mmscconv.own_data.records import Account, AnnotatedImage, Size, Splits
from mmscconv.own_data.sheet import write_sheet
from mmscconv.own_data.splitting import train_and_val
from mmscconv.own_data.timing import StepTimes, in_words, time_steps
from mmscconv.own_data.writing import common_folder, write_splits
from mmscconv.storage.disk import full_disk_named

SMALLEST_IMAGE = 32  # pixels, from filter_cfg of mmdet's COCO config
REPORT_SECONDS = 30  # of report.py besides predicting: start, counts, drawing
START_SECONDS = 15


@dataclass(frozen=True)
class OwnDatasetJob:
    """The arguments of the tool.

    Args:
        source: Folder or file of the data set.
        out: Folder to write; None for one named after the data set and the network.
        form: Form of the data set; None to recognise it.
        images: Folder of the images; None for ``source``.
        classes: To train on, in this order; None for all.
        backbone: r18, r50 or r101.
        baseline: Take the plain twin of the network.
        size: (width, height) to fit images into; None to choose it.
        init: Checkpoint to start from.
        seed: Seed of the split, where the data set has none.
    """

    source: Path
    out: Path | None = None
    form: str | None = None
    images: Path | None = None
    classes: Sequence[str] | None = None
    backbone: str = 'r18'
    baseline: bool = False
    size: Size | None = None
    init: str | None = None
    seed: int = 0

    def run(self, tools: Path) -> Iterator[str]:
        """Write config, annotations and sheet; yield lines for the user, with the next commands of ``tools`` last.

        Raises:
            UserError: The data set cannot be used, or the folder is there already; nothing is written then.
        """
        out = self.out or Path('own_datasets') / self._name()
        if out.exists():
            raise UserError(f'output folder is there already: {out} (remove it, or pass another --out)')
        if self.init and '://' not in self.init and not Path(self.init).is_file():
            raise UserError(f'--init names a checkpoint that is not there: {self.init}')
        account = Account()
        data = read_data_set(self.source, self.images, self.form, account)
        classes = choose_classes(data, self.classes, account)
        splits, how = train_and_val(data.splits, self.seed, account)
        for name, images in splits.items():
            if not any(not box.crowd for image in images for box in image.boxes):
                raise UserError('; '.join([f'no object is left in the {name} set', *account.lines()]))
        trained_on = _trained_on(splits['train'], account)
        yield f'found: {data.found} in {self.source}'
        yield f'{len(classes)} classes: {_enumerated(classes)}'
        yield how
        yield from _described(splits, classes)
        for line in account.lines():
            yield f'note: {line}'

        ignored = any(box.crowd for image in trained_on for box in image.boxes)
        recipe = choose_recipe(trained_on, self.backbone, self.baseline, self.size)
        config = out / f'{out.name}.py'
        try:
            out.mkdir(parents=True)
        except OSError as error:
            raise UserError(f'cannot write to {out}: {error.strerror} (pass --out)') from error
        try:
            with full_disk_named(out, 'run it again'):
                root = common_folder(splits)
                write_splits(splits, classes, out, root)
                init = self.init if not self.init or '://' in self.init else str(Path(self.init).absolute())
                config.write_text(config_text(recipe, classes, self.source, root, init, ignored), encoding='utf-8')
                write_sheet(out / 'sheet.png', splits, classes, recipe)
        except BaseException:
            shutil.rmtree(out)
            raise
        yield f'wrote {config}: {_in_short(recipe)}'
        yield f'wrote {", ".join(f"{name}.json" for name in splits)} and sheet.png beside it: look at the sheet first'
        timing: StepTimes | None = None
        try:
            timing = time_steps(config)
        except (Exception, KeyboardInterrupt) as error:  # the times are an extra: the files are whole without them
            yield f'note: training steps could not be timed: {first_line(error)}'
        yield from _commands(config, recipe, splits, timing, tools)

    def _name(self) -> str:
        source = self.source.absolute()
        name = re.sub(r'\W+', '_', source.stem if source.is_file() else source.name).strip('_').lower()
        return f'{name or "data"}_{"" if self.baseline else "scconv_"}{self.backbone}'


def _trained_on(images: Sequence[AnnotatedImage], account: Account) -> list[AnnotatedImage]:
    """Return the images of the training set that are trained on: large enough, and with an object to learn.

    Images whose objects are all marked lose them, so that mmdet leaves these images out, too.

    Raises:
        UserError: None of them.
    """
    found = []
    for image in images:
        if min(image.size) < SMALLEST_IMAGE:
            account.add(f'images less than {SMALLEST_IMAGE} pixels wide or high: not trained on', image.path)
        elif any(not box.crowd for box in image.boxes):
            found.append(image)
        elif image.boxes:  # without an object to match, mmdet takes all of the image for background
            account.add('images with crowd, ignored or difficult objects alone: left out of train', image.path)
            image.boxes = []
    if not found:
        raise UserError('; '.join(['no image of the train set can be trained on', *account.lines()]))
    return found


def _described(splits: Splits, classes: Sequence[str]) -> Iterator[str]:
    for name, images in splits.items():
        counts = Counter(box.label for image in images for box in image.boxes)
        empty = sum(not image.boxes for image in images)
        text = f'{name}: {len(images)} images, {sum(counts.values())} objects'
        missing = [label for label in classes if not counts[label]]
        if empty:
            text += f'; {empty} images without objects' + (' are not trained on' if name == 'train' else '')
        if missing:
            text += f'; none of {_enumerated(missing)}'
        yield text


def _enumerated(names: Sequence[str], most: int = 12) -> str:
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def _in_short(recipe: Recipe) -> str:
    width, height = recipe.size
    network = f'RetinaNet, {"plain" if recipe.baseline else "SCConv"} {recipe.backbone.upper()}'
    return f'{network}, images fit into {width}x{height}, batch {recipe.batch}, {recipe.epochs} epochs'


def _commands(config: Path, recipe: Recipe, splits: Splits, timing: StepTimes | None, tools: Path) -> Iterator[str]:
    run = Path('work_dirs') / config.stem
    train, report = (
        f'    {shlex.join(["python", str(tools / tool), str(argument)])}'
        for tool, argument in (('train.py', config), ('report.py', run))
    )
    if timing is None:
        yield from ('next:', train, report)
        return
    validation = len(splits['val']) * timing.val_image
    training = START_SECONDS + recipe.iterations * timing.step + recipe.epochs // recipe.val_every * validation
    yield (
        f'next ({recipe.iterations} iterations of {timing.step:.2f} s and validations of {validation:.0f} s, '
        f'as measured now on {timing.device}):'
    )
    yield f'{train}    # {in_words(training)}'
    yield f'{report}    # {in_words(REPORT_SECONDS + validation)}'
