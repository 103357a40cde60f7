"""The order of training data: whole epochs, equal however it is divided or resumed."""

import itertools

import numpy as np
import pytest
import torch

from resnext_det.engine.sampler import SeededDataset, TrainingBatches, repeated, seed_everything, stream


def take(count, batches):
    return list(itertools.islice(iter(batches), count))


def test_every_epoch_holds_every_sample_once_in_another_order():
    places = list(itertools.islice(stream(7, seed=3), 21))
    epochs = [[index for _, index in places[e : e + 7]] for e in (0, 7, 14)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3
    assert epochs[0] != epochs[1] and [position for position, _ in places] == list(range(21))


@pytest.mark.parametrize("groups", [None, [0, 1, 1, 0, 0, 1, 0]])
@pytest.mark.parametrize("start", [1, 4, 9])
def test_resuming_goes_on_with_the_very_next_batch(start, groups):
    whole = take(15, TrainingBatches(7, 3, seed=2, groups=groups))
    assert take(15 - start, TrainingBatches(7, 3, seed=2, start_batch=start, groups=groups)) == whole[start:]


def test_processes_share_what_one_would_read():
    one = take(6, TrainingBatches(9, 4, seed=1))
    two = [take(6, TrainingBatches(9, 2, seed=1, rank=rank, world_size=2)) for rank in (0, 1)]
    for whole, first, second in zip(one, *two, strict=True):
        assert sorted(first + second) == sorted(whole)


def test_groups_are_never_mixed_and_nothing_is_lost():
    groups = [0, 1, 1, 0, 0, 1, 0, 1, 1, 0]
    batches = take(20, TrainingBatches(10, 2, seed=0, groups=groups))
    assert all(len({groups[index] for _, index in batch}) == 1 for batch in batches)
    counts = np.bincount([index for batch in batches for _, index in batch])
    assert counts.sum() == 40 and counts.max() - counts.min() <= 1


def test_another_seed_is_another_order():
    assert take(3, TrainingBatches(50, 4, seed=0)) != take(3, TrainingBatches(50, 4, seed=1))


def test_augmentation_depends_on_the_position_alone():
    dataset = SeededDataset([10, 20, 30], lambda x: (x, torch.rand(1).item(), np.random.rand()), seed=4)
    first = dataset[5, 1]
    dataset[6, 2]
    assert dataset[5, 1] == first
    assert dataset[8, 1][1:] != first[1:], "the same sample in the next epoch is augmented otherwise"


def test_a_sample_that_is_left_out_is_replaced_by_the_next():
    dataset = SeededDataset([1, 2, 3], lambda x: None if x == 3 else x, seed=0)
    assert dataset[0, 2] == 1
    with pytest.raises(RuntimeError, match="not one sample"):
        SeededDataset([1], lambda x: None, seed=0)[0, 0]


def test_seeding_covers_every_generator():
    def draw():
        import random

        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_everything((1, 2))
    first = draw()
    seed_everything((1, 3))
    other = draw()
    seed_everything((1, 2))
    assert draw() == first and all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    "factors", [[1.0, 1.0, 1.0], [1.0, 2.5, 1.25, 4.0, 1.0], np.random.default_rng(3).uniform(1, 6, 200)]
)
def test_repeated_samples_stand_as_often_as_their_factors_say(factors):
    """detectron2 repeats a sample the whole part of its factor times, or once more, and by it on average."""
    factors = np.asarray(factors)
    size, order = repeated(factors)
    assert size == int(np.ceil(factors.sum()))
    counts = np.array([np.bincount(order(5, epoch), minlength=len(factors)) for epoch in range(400)])
    assert (counts.sum(axis=1) == size).all()
    share = factors * size / factors.sum()
    assert (counts >= np.floor(share - 1e-9)).all() and (counts <= np.ceil(share + 1e-9)).all()
    assert np.abs(counts.mean(axis=0) - share).max() < 0.1  # 4 standard errors of a coin thrown 400 times
    assert not np.array_equal(order(5, 0), order(5, 1)) and np.array_equal(order(5, 7), order(5, 7))


@pytest.mark.parametrize("groups", [None, [0, 1, 0, 1, 0]])
def test_repeated_samples_resume_and_are_shared_among_processes(groups):
    size, order = repeated([1.0, 2.5, 1.25, 4.0, 1.0])

    def batches(number, **place):
        made = TrainingBatches(size, 2, 9, order_of=order, groups=groups, **place)
        return list(itertools.islice(iter(made), number))

    assert batches(20)[7:] == batches(13, start_batch=7)
    if groups is None:
        together = [batches(10, rank=rank, world_size=2) for rank in range(2)]
        assert sorted(sum(batches(20), [])) == sorted(sum(sum(together, []), []))
