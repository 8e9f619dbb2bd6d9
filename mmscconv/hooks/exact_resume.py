"""Randomness that depends on the iteration alone, so that a resumed training equals one that was never stopped."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, Dataset

BEGUN = 'epoch_begun'  # in the message hub: number of the epoch, and iteration of its first batch

# A DataLoader's settings besides its data set and the order of the batches.
_LOADER_SETTINGS = (
    'num_workers', 'collate_fn', 'pin_memory', 'timeout', 'worker_init_fn', 'multiprocessing_context',
    'generator', 'prefetch_factor', 'persistent_workers',
)  # fmt: skip


@HOOKS.register_module()
class ExactResume(Hook):
    """Seeds Python's, NumPy's and torch's generators anew for every iteration and for every sample that is loaded.

    The seed of an iteration comes from (seed, rank, iteration), that of a sample
    from its place in the batch as well. No generator's state has to be saved, on
    any rank or in any worker, and the number of workers changes nothing.

    After a resume, a training starts at the batch that comes next, within an epoch, too,
    and what was seen before is not loaded again (of mmengine's own ways to skip, one
    loads all of it; an ``EpochBasedTrainLoop`` starts the epoch anew). The sampler gets
    the resumed seed, also where the config has none.

    Not covered: a transform or data preprocessor that keeps something from one sample
    to the next (a cached mosaic), gradients that are accumulated across a checkpoint,
    and an ``IterableDataset``, whose order it does not know.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._first_seed: int | None = None
        self._seed = 0
        self._batches: _NumberedBatches | None = None
        self._learnt = 0  # batches of the epoch in which a resumed training begins

    def before_run(self, runner: Runner) -> None:
        self._first_seed = runner.seed  # until a checkpoint is loaded

    def before_train(self, runner: Runner) -> None:
        seeds = [runner.seed]
        broadcast_object_list(seeds)
        self._seed = seeds[0]
        loop, loader = runner.train_loop, runner.train_dataloader
        by_iteration = isinstance(loop, IterBasedTrainLoop)
        if getattr(loader, 'batch_sampler', None) is None:
            runner.logger.warning('ExactResume cannot order the data of this loader: a resumed training may differ.')
            return
        _seed_sampler(loader.batch_sampler, self._first_seed, self._seed)
        self._batches = _NumberedBatches(loader.batch_sampler, several_passes=by_iteration)
        self._learnt = learnt_of_epoch(runner)
        loader.dataset.__getitems__ = _SeededSamples(loader.dataset, self._seed, get_rank())
        settings = {name: getattr(loader, name) for name in _LOADER_SETTINGS}
        loop.dataloader = DataLoader(loader.dataset, batch_sampler=self._batches, **settings)
        if by_iteration:
            self._batches.skipped = loop.iter
            fast_forward = getattr(loop, 'fast_forward_on_resume', False)  # mmengine then skips nothing itself
            loop.dataloader_iterator = _Batches(loop.dataloader, self._batches, 0 if fast_forward else loop.iter)

    def before_train_epoch(self, runner: Runner) -> None:
        if self._batches is not None and not isinstance(runner.train_loop, IterBasedTrainLoop):
            learnt, self._learnt = self._learnt, 0
            self._batches.number, self._batches.skipped = runner.iter - learnt, runner.iter
            runner.message_hub.update_info(BEGUN, [runner.epoch, runner.iter - learnt])

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        torch.manual_seed(_seed_all(self._seed, get_rank(), runner.iter, 0))  # of the devices, too


def learnt_of_epoch(runner: Runner) -> int:
    """Return the number of batches of its first epoch that a resumed training has learnt.

    0 at the beginning of an epoch, and in a loop that counts iterations.
    """
    loop = runner.train_loop
    if isinstance(loop, IterBasedTrainLoop):
        return 0
    length = len(loop.dataloader)
    # The length may have been another one; older checkpoints do not tell.
    epoch, begun = runner.message_hub.runtime_info.get(BEGUN) or (runner.epoch, runner.epoch * length)
    learnt: int = runner.iter - begun
    return learnt if epoch == runner.epoch and 0 < learnt <= length else 0


class _Batch(list[int]):
    """The indices of a batch, and the iteration that it is for."""

    number: int


class _NumberedBatches:
    """A batch sampler that numbers the batches of another one by iteration, and leaves the first ``skipped`` out.

    With ``several_passes`` it goes on to those passes over the data that have other batches.
    """

    def __init__(self, batch_sampler: Any, several_passes: bool) -> None:
        self.batch_sampler = batch_sampler
        self.several_passes = several_passes
        self.number = 0
        self.skipped = 0
        self.passes = 0  # over the data, that were left out as a whole

    def __iter__(self) -> Iterator[_Batch]:
        while True:
            begun = self.number
            for indices in self.batch_sampler:
                batch = _Batch(indices)
                batch.number = self.number
                self.number += 1
                if batch.number >= self.skipped:
                    yield batch
            if not self.several_passes or self.number == begun or self.number > self.skipped:
                return
            self.passes += 1
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(self.passes)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    @property
    def sampler(self) -> Any:
        """The attribute through which mmengine sets the epoch."""
        return self.batch_sampler.sampler


class _SeededSamples:
    """The data set's ``__getitems__``, with which torch's loaders fetch a batch, in a worker or without one."""

    def __init__(self, dataset: Dataset[Any], seed: int, rank: int) -> None:
        self.dataset, self.seed, self.rank = dataset, seed, rank

    def __call__(self, indices: Sequence[int]) -> Any:
        whole = getattr(type(self.dataset), '__getitems__', None)
        if whole is not None:
            self._seed_place(indices, 1)
            return whole(self.dataset, indices)
        samples = []
        for place, index in enumerate(indices, 1):
            self._seed_place(indices, place)
            samples.append(self.dataset[index])
        return samples

    def _seed_place(self, indices: Sequence[int], place: int) -> None:
        if isinstance(indices, _Batch):  # not that of another loader of the same data set
            _seed_all(self.seed, self.rank, indices.number, place)


class _Batches(_InfiniteDataloaderIterator):
    """Answers the loop's own skipping of what a resumed training has seen, which the batch sampler has done."""

    _epoch: int

    def __init__(self, dataloader: DataLoader[Any], batches: _NumberedBatches, skipped: int) -> None:
        super().__init__(dataloader)
        self._batches = batches
        self._skipped = skipped

    def skip_iter(self, num_iters: int) -> None:
        self._skipped = 0

    def __next__(self) -> Any:
        # mmengine up to 0.10 calls this once for every iteration to skip, later versions skip_iter.
        if self._skipped:
            self._skipped -= 1
            return None
        self._epoch = max(self._epoch, self._batches.passes)
        return super().__next__()


def _seed_sampler(batch_sampler: Any, first: int | None, seed: int) -> None:
    """Let the sampler begin anew, with ``seed`` where the runner's ``first`` seed had been its own."""
    sampler: Any = getattr(batch_sampler, 'sampler', None)
    if getattr(sampler, 'seed', None) == first is not None:
        sampler.seed = seed
    if type(sampler) is InfiniteSampler:  # a loader's workers may have drawn from it already
        batch_sampler.sampler = InfiniteSampler(sampler.dataset, sampler.shuffle, sampler.seed)


def _seed_all(*key: int) -> int:
    """Seed the generators of the CPU; return the seed of torch's."""
    state = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    seed = int(state[2]) << 32 | int(state[3])
    # torch.manual_seed would take a millisecond for the devices, which no transform of a sample uses.
    torch.default_generator.manual_seed(seed)
    return seed
