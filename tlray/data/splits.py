"""Cutting a set of images into parts that never share a group or a duplicate."""

import numpy as np


def ties(hashes: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """int64 [N]: images of one number belong together, as they are identical, of one group, or linked through others that are."""
    _, duplicate = np.unique(hashes, return_inverse=True)
    if groups is None:
        return duplicate
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, group = np.unique(groups, return_inverse=True)
    duplicates = duplicate.max() + 1
    nodes = int(duplicates + group.max() + 1)
    edges = coo_array((np.ones(len(group), np.int8), (duplicate, group + duplicates)), shape=(nodes, nodes))
    _, component = connected_components(edges, directed=False)
    return component[duplicate].astype(np.int64)


def deal(labels: np.ndarray, tie: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """int64 [N]: the part, from 0 to `parts` - 1, of every image; what is tied together stays together.

    labels: int [N], dealt out so that every part has its share of each class; or [N, L] (multilabel), dealt out at random.
    The tied sets go one by one, the largest first, equal ones in random order, to the part that holds fewest of their classes.
    """
    single = labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)
    _, code = np.unique(tie, return_inverse=True)
    table = np.zeros((code.max() + 1, single.max() + 1))
    np.add.at(table, (code, single), 1)
    order = np.random.default_rng(seed).permutation(len(table))
    order = order[np.argsort(-table.sum(1)[order], kind="stable")]
    share = table / np.maximum(table.sum(0), 1)
    least = 1e-3 / len(labels) ** 2  # the total decides only between parts that hold equally many of the classes
    held, total, part = np.zeros((parts, table.shape[1])), np.zeros(parts), np.empty(len(table), np.int64)
    for index in order:
        chosen = part[index] = np.argmin(held @ share[index] + least * total)
        held[chosen] += table[index]
        total[chosen] += table[index].sum()
    return part[code]
