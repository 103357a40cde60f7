"""The order of training data: endless, shuffled, the same for any number of processes and workers, and resumable.

Position p of the stream holds sample ``order(seed, p // size)[p % size]``, a permutation, or the choice of an epoch in
which some samples repeat. Nothing else decides it, so a run resumed at step i starts reading at the
position of step i.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

Place = tuple[int, int]
"""(position in the stream, index of the sample)."""


Order = Callable[[int, int], Sequence[int]]
"""(seed, epoch) -> the samples of an epoch: every one's index once, unless it repeats some."""


def stream(
    size: int, seed: int, shuffle: bool = True, start: int = 0, order_of: Order | None = None
) -> Iterator[Place]:
    """Positions and samples from position ``start`` on, without end; ``order_of`` replaces the uniform shuffle."""
    for epoch in itertools.count(start // size):
        if order_of is not None:
            order = order_of(seed, epoch)
        else:
            order = _permutation(size, seed, epoch) if shuffle else range(size)
        first = start - epoch * size if epoch == start // size else 0
        for offset in range(first, size):
            yield epoch * size + offset, int(order[offset])


def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)


def repeated(factors: Sequence[float]) -> tuple[int, Order]:
    """Epochs of one length in which sample i stands about ``factors[i]`` times, shuffled.

    Systematic sampling: the samples lie in random order on a line, each as long as its factor, and equal steps from a
    random start choose them. So sample i is chosen as often as in detectron2's ``RepeatFactorTrainingSampler`` on
    average, in an epoch the whole part of it or one more, and an epoch's length is known before it begins.

    Args:
        factors: above 0, one for each sample; Gupta et al. 2019, appendix B.2.

    Returns:
        The samples of an epoch, the sum of the factors rounded up, and their order.
    """
    lengths = np.asarray(factors, dtype=np.float64)
    size = math.ceil(round(lengths.sum(), 6))  # a sum that is whole but for its rounding stays so
    steps = lengths * (size / lengths.sum())

    def order(seed: int, epoch: int) -> np.ndarray:
        random_numbers = np.random.default_rng((seed, epoch))
        line = random_numbers.permutation(len(lengths))
        ends = np.cumsum(steps[line])
        places = np.searchsorted(ends, random_numbers.random() + np.arange(size), side="right")
        return random_numbers.permutation(line[np.minimum(places, len(line) - 1)])

    return size, order


class TrainingBatches(Sampler):
    """Batches of :data:`Place` for one process, without end.

    Args:
        size: number of samples in an epoch: those of the set, or what ``order_of`` gives.
        batch_size: samples in a batch of this process.
        seed: of the order; equal in all processes.
        rank, world_size: process ``rank`` takes positions rank, rank + world_size, ...: together the processes read
            what a single one with the whole batch would.
        start_batch: how many batches to skip, for resuming.
        groups: a small integer for each sample; a batch holds samples of one group only (portrait and landscape
            images, which would otherwise be padded to each other's shape).
        order_of: an order other than the uniform shuffle, such as one that reads neighboring files together.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
        groups: Sequence[int] | None = None,
        shuffle: bool = True,
        order_of: Order | None = None,
    ) -> None:
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.rank, self.world_size, self.start_batch, self.groups = rank, world_size, start_batch, groups
        self.order_of = order_of

    def __iter__(self) -> Iterator[list[Place]]:
        if self.groups is None:  # every batch is a fixed stretch of the stream: jump there
            start = self.start_batch * self.batch_size * self.world_size
            places = itertools.islice(self._stream(start), self.rank, None, self.world_size)
            while True:
                yield list(itertools.islice(places, self.batch_size))
        # Which batch a sample falls into depends on all before it: replay the order, which costs no reading of data.
        yield from itertools.islice(self._grouped(), self.start_batch, None)

    def _stream(self, start: int) -> Iterator[Place]:
        return stream(self.size, self.seed, self.shuffle, start, self.order_of)

    def _grouped(self) -> Iterator[list[Place]]:
        waiting: dict[int, list[Place]] = {}
        for place in itertools.islice(self._stream(0), self.rank, None, self.world_size):
            group = int(self.groups[place[1]])
            batch = waiting.setdefault(group, [])
            batch.append(place)
            if len(batch) == self.batch_size:
                del waiting[group]
                yield batch


class SeededDataset(Dataset):
    """Applies ``mapper`` to samples, with randomness that depends on the position in the stream alone.

    The same image is augmented alike whichever worker process reads it, and again after a resume.

    Args:
        samples: the raw samples.
        mapper: from a raw sample to what the model takes; None drops the sample, and the next one in the set stands in.
        seed: of the augmentation.
    """

    def __init__(self, samples: Sequence[Any], mapper: Callable[[Any], Any], seed: int) -> None:
        self.samples, self.mapper, self.seed = samples, mapper, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: Place) -> Any:
        position, index = place
        for substitute in range(len(self.samples)):
            seed_everything((self.seed, position, substitute), devices=False)
            sample = self.mapper(self.samples[(index + substitute) % len(self.samples)])
            if sample is not None:
                return sample
        raise RuntimeError("not one sample of the training set can be read")


def seed_everything(parts: Sequence[int], devices: bool = True) -> None:
    """Seed Python's, numpy's and torch's generators from a tuple of numbers.

    Without ``devices`` only torch's CPU generator is seeded, which takes a hundredth of the time.
    """
    words = np.random.SeedSequence(list(parts)).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    seed = int(words[2]) << 32 | int(words[3])
    if devices:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
