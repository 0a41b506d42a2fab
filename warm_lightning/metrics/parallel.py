"""Where this process stands among those that score together."""

import torch.distributed as dist


def place() -> tuple[int, int]:
    """Rank and number of processes; (0, 1) where there is one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
