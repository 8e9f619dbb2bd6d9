"""Atomic checkpoints: the older file is deleted only after the newer one is safe."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from mmscconv.errors import warn
from mmscconv.hooks.exact_resume import learnt_of_epoch
from mmscconv.storage.checkpoints import LAST, all_finite
from mmscconv.storage.disk import full_disk_named, write_atomically

BACKEND = 'mmscconv_atomic'
VALIDATED = 'last_validation'  # mmengine would log a key that begins with 'val'


@register_backend(BACKEND)
class AtomicBackend(LocalBackend):
    """mmengine's local files, but written atomically."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, obj)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``: at least one good checkpoint survives a kill or a full disk.

    - A checkpoint is written under another name and gets its own when it is on the disk,
      ``last_checkpoint`` after it and in the same way.
    - ``max_keep_ckpts`` and ``save_best`` delete the older file after the newer one is
      written, not before. A kill between the two leaves the older one behind.
    - A metric of -1, by which COCO's evaluation says that nothing was to be found, is never the best. A metric that was
      not measured is told once, and the training goes on.
    - A training that goes on from another run's checkpoint deletes nothing of that run.
    - A training that is resumed at a step whose validation is not in the checkpoint
      validates first; mmengine leaves that validation out, and its best checkpoint with it.

    Takes ``CheckpointHook``'s arguments. With ``backend_args`` or an ``out_dir`` that is a
    URL, checkpoints are written by that backend, as it does it.

    Raises:
        TypeError: A setting is none of ``CheckpointHook``'s, which would fail when it saves.
        UserError: The disk is full; says where and how much is free.
    """

    backend_args: dict[str, Any] | None
    file_backend: Any  # mmengine's, then what defers its deletions

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _require_known(kwargs)
        super().__init__(*args, **kwargs)
        self._unmeasured: set[str] = set()  # metrics of save_best
        if self.backend_args is None and self.file_client_args is None and '://' not in str(self.out_dir or ''):
            self.backend_args = {'backend': BACKEND}

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.file_backend = _DeletesLater(self.file_backend)
        if runner.iter:
            self.last_ckpt = runner.message_hub.runtime_info.get('last_ckpt')
            self._leave_other_runs_alone(runner)
        if _validation_is_due(runner) and runner.message_hub.runtime_info.get(VALIDATED) != runner.iter:
            runner.logger.info('The checkpoint was saved before its validation, which comes first now.')
            runner.val_loop.run()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        runner.message_hub.update_info(VALIDATED, runner.iter)
        super().after_val_epoch(runner, metrics)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        measured = {key: None if _nothing_counted(key, value) else value for key, value in metrics.items()}
        for key in self.key_indicators if self.save_best else ():
            if key in metrics and measured[key] is None:
                warn(f'{key} is {metrics[key]}: the validation data have nothing to find; no best checkpoint is saved')
            elif key not in metrics and key != 'auto':
                measured[key] = None
                self._tell_unmeasured(key, metrics)
        with full_disk_named(self.out_dir):
            super()._save_best_checkpoint(runner, measured)
            self._delete_outdated(runner)

    def _tell_unmeasured(self, key: str, metrics: Iterable[str]) -> None:
        if key not in self._unmeasured:
            self._unmeasured.add(key)
            warn(
                f'no best checkpoint is saved: save_best is {key}, which was not measured; measured were '
                f'{", ".join(metrics)} (default_hooks.checkpoint.save_best)'
            )

    def _leave_other_runs_alone(self, runner: Runner) -> None:
        """Forget the checkpoints of the run that this one goes on from, unless that run's folder is this one's."""
        resumed = runner._load_from
        same_folder = resumed is None or _lies_in(resumed, self.out_dir)
        hub = runner.message_hub
        for key in [key for key in hub.runtime_info if key == 'last_ckpt' or key.startswith('best_ckpt')]:
            path = hub.get_info(key)
            own = self._own(path, same_folder)
            hub.update_info(key, own)
            if path and own is None and key != 'last_ckpt':
                runner.logger.info(f'The best checkpoint so far is of another run and stays there: {path}')
        self.last_ckpt = hub.runtime_info.get('last_ckpt')
        if self.save_best and len(self.key_indicators) == 1:
            self.best_ckpt_path = hub.runtime_info.get('best_ckpt')
        elif self.save_best:
            self.best_ckpt_path_dict = {key: hub.runtime_info.get(f'best_ckpt_{key}') for key in self.key_indicators}
        if self.max_keep_ckpts > 0 and not same_folder:
            self.keep_ckpt_ids.clear()
            hub.update_info('keep_ckpt_ids', [])

    def _own(self, path: str | None, same_folder: bool) -> str | None:
        """Return a checkpoint's path if it is this run's, its new path if the folder has moved, or else None."""
        if path is None or _lies_in(path, self.out_dir):
            return path
        here: str = self.file_backend.join_path(self.out_dir, Path(path).name)
        return here if same_folder and self.file_backend.exists(here) else None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """Save and then delete; mmengine deletes, saves, and writes ``last_checkpoint`` in place."""
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                self.file_backend.remove(self._path(self.keep_ckpt_ids[0]))
            self.keep_ckpt_ids.append(step)  # which drops the first
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        with full_disk_named(self.last_ckpt):
            runner.save_checkpoint(
                self.out_dir,
                self.filename_tmpl.format(step),
                self.file_client_args,
                self.save_optimizer,
                self.save_param_scheduler,
                meta,
                self.by_epoch,
                self.backend_args,
                **self.args,
            )
            if is_main_process():
                write_atomically(Path(runner.work_dir) / LAST, self.last_ckpt.encode())
        self._delete_outdated(runner)

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))

    def _delete_outdated(self, runner: Runner) -> None:
        """Delete the files that newer ones replace, unless the weights just saved are of no use."""
        if not all_finite(runner.model.state_dict().values()):
            return  # what is outdated may be the last good checkpoint
        best = getattr(self, 'best_ckpt_path_dict', None) or {'': getattr(self, 'best_ckpt_path', None)}
        self.file_backend.delete({self.last_ckpt, *best.values()})


class _DeletesLater:
    """A file backend that defers removals until ``delete`` is called."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._outdated: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._outdated.append(path)

    rmtree = remove  # of a checkpoint that is a folder

    def delete(self, kept: Collection[str | None]) -> None:
        """Remove the deferred files, except those in ``kept`` and those written again since."""
        outdated, self._outdated = self._outdated, []
        for path in outdated if is_main_process() else ():
            if path not in kept and self._backend.exists(path):
                (self._backend.rmtree if self._backend.isdir(path) else self._backend.remove)(path)


def _require_known(settings: Iterable[str]) -> None:
    """Raise TypeError for a setting that ``CheckpointHook`` hands on unread, to a method that does not take it."""
    parameters = inspect.signature(CheckpointHook).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    for name in settings:
        if name not in known:
            meant = difflib.get_close_matches(name, known, 1)
            question = f': did you mean {meant[0]}?' if meant else ''
            raise TypeError(f'SafeCheckpointHook has no setting {name}{question}')


def _lies_in(path: str | Path, folder: str | Path) -> bool:
    """Return whether a file is directly in a folder, which may be a URL."""
    if '://' in str(folder):
        return str(path).rpartition('/')[0] == str(folder).rstrip('/')
    return Path(path).parent.resolve() == Path(folder).resolve()


def _nothing_counted(key: str, value: Any) -> bool:
    """Return True if a metric is pycocotools' -1, which means that there was no object."""
    return any(name in key for name in ('AP', 'AR')) and (value == -1 or value != value)


def _validation_is_due(runner: Runner) -> bool:
    """Return True if the loop validates at the step from which it resumes."""
    loop = runner.train_loop
    if isinstance(loop, IterBasedTrainLoop):
        step, last = loop.iter, loop.max_iters
    elif isinstance(loop, EpochBasedTrainLoop):
        step, last = loop.epoch, loop.max_epochs
    else:
        return False
    if learnt_of_epoch(runner):  # the validation of the epoch before was not the next thing to do
        return False
    loop._decide_current_val_interval()
    due = step % loop.val_interval == 0 or step == last
    return runner.val_loop is not None and due and step >= max(loop.val_begin, 1)
