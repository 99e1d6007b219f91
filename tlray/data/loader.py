"""Which images make up which batch: one permutation for all ranks, sliced."""

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import torch


def mix(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part; equal parts give equal seeds on every machine."""
    data = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(data[:8], "little") >> 1


def permutation(n: int, seed: int, number: int) -> np.ndarray:
    """The `number`-th permutation of range(n) under `seed`, int64 [n]."""
    generator = torch.Generator().manual_seed(mix("permutation", seed, number))
    return torch.randperm(n, generator=generator).numpy()


def steps_in_epoch(n: int, batch_size: int, steps: int | None, world: int = 1, batch_norm: bool = False) -> int:
    """Optimizer steps of one epoch: `steps`, or one pass over n images.

    Where batch-norm trains, a last batch with fewer than two images per rank is dropped (its statistics would be no statistics).
    """
    if steps is not None:
        return steps
    whole, rest = divmod(n, batch_size)
    keep_rest = rest > 0 and (not batch_norm or rest >= 2 * world or whole == 0)
    return whole + keep_rest


def epoch_batches(
    n: int, batch_size: int, steps: int | None, seed: int, epoch: int, world: int = 1, batch_norm: bool = False
) -> Iterator[np.ndarray]:
    """The global batches (int64 indices into range(n)) of `epoch` (from 1); rank r takes `np.array_split(batch, world)[r]`.

    Without `steps` every image comes once. With `steps`, that many full batches are cut from the endless sequence of permutations,
    each epoch going on where the last one ended.
    """
    count = steps_in_epoch(n, batch_size, steps, world, batch_norm)
    if steps is None:
        order = permutation(n, seed, epoch)
        for step in range(count):
            yield order[step * batch_size : (step + 1) * batch_size]
        return
    start = (epoch - 1) * steps * batch_size
    stop = start + steps * batch_size
    order = np.concatenate([permutation(n, seed, number) for number in range(start // n, math.ceil(stop / n))])
    order = order[start % n :]
    for step in range(count):
        yield order[step * batch_size : (step + 1) * batch_size]
