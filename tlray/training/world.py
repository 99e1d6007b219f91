"""The processes that train together, and sums and gatherings over them; knows torch.distributed and nothing of Ray."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int
    size: int
    device: torch.device

    @staticmethod
    def current() -> "World":
        """From torch.distributed where it is initialised, else one process alone; the GPU where there is one."""
        grouped = dist.is_available() and dist.is_initialized()
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        return World(dist.get_rank() if grouped else 0, dist.get_world_size() if grouped else 1, device)

    def mine(self, indices: np.ndarray) -> np.ndarray:
        """This rank's share of `indices`; shares differ by at most one and may be empty."""
        return np.array_split(indices, self.size)[self.rank]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor summed over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Every rank's rows, concatenated in the order of ranks."""
        if self.size == 1:
            return rows
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, rows)
        return np.concatenate(parts)

    def average_buffers(self, modules: Iterable[torch.nn.Module]) -> None:
        """Average the running statistics of batch-norm over all ranks, all of them in one message."""
        buffers = [each for module in modules for each in module.buffers() if each.is_floating_point()]
        if self.size > 1 and buffers:
            means = self.sum(torch.cat([each.flatten() for each in buffers])) / self.size
            for buffer, mean in zip(buffers, means.split([each.numel() for each in buffers]), strict=True):
                buffer.copy_(mean.view_as(buffer))
