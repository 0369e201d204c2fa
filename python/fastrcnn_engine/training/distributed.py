"""Several processes that train one network: torchrun, DistributedDataParallel.

Every process samples the same batch and works on its share of the images, so ``images_per_batch``,
the learning rate and the schedule mean what they mean for one process. What one process would have
computed on the whole batch is put together again: the number of RoIs that losses are divided by,
the size images are padded to, the statistics of batch normalisation, the sum of the gradients.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Its functions take the group there is at their import for a default and keep it: imported by
# DistributedDataParallel, later than here, they had gloo's threads outlive the group, and now and
# then one of them aborted the process while the interpreter ended.
import torch.distributed.nn.functional  # noqa: F401
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from fastrcnn_engine.training.device import checked_device

# A process that neither answers nor dies is given up after this.
TIMEOUT = timedelta(minutes=10)
APART = 50  # how many images a process may be ahead of another, far less than TIMEOUT is worth
_meetings = itertools.count()
Item = TypeVar("Item")


def rank_and_count() -> tuple[int, int]:
    """(number of this process, how many there are) by torchrun's variables; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def restarts() -> int:
    """How often torchrun has started these processes again, after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


class Processes:
    """The processes of a run, as one of them sees them. One alone talks to nobody."""

    def __init__(self, rank: int, count: int, device: torch.device):
        self.rank, self.count, self.device = rank, count, device
        self._parallel: list[DistributedDataParallel] = []

    def share(self, items: Sequence[Item]) -> Iterator[Item]:
        """This process's part, every so many; all go through the same items to the end.

        Who is ahead waits a little now and then, rather than at the end and for too long.
        """
        for number, start in enumerate(range(0, len(items), self.count)):
            if number % APART == 0:
                self.all([number])
            yield from items[start + self.rank : start + self.rank + 1]

    def all(self, row: Sequence[int]) -> list[list[int]]:
        """The rows of all processes, by their numbers; rows are of one length."""
        if self.count == 1:
            return [list(row)]
        own = torch.tensor(row, dtype=torch.int64, device=self.device)
        rows = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(rows, own)
        return torch.stack(rows).tolist()

    def sums(self, values: torch.Tensor) -> list[float]:
        """Sums over the processes, added in the same order in each."""
        if self.count > 1:
            rows = [torch.empty_like(values) for _ in range(self.count)]
            dist.all_gather(rows, values)
            values = torch.stack(rows).sum(dim=0)
        return values.tolist()

    def gathered(self, value: Any) -> list[Any]:
        """The objects of all processes, by their numbers."""
        values = [value]
        if self.count > 1:
            values *= self.count
            dist.all_gather_object(values, value)
        return values

    def at_first(self, value: Any) -> list[Any] | None:
        """The objects of all processes, by their numbers, in process 0; None in the others."""
        if self.count == 1:
            return [value]
        values = [None] * self.count if self.rank == 0 else None
        dist.gather_object(value, values)
        return values

    def parallel(self, model: nn.Module) -> nn.Module:
        """The module to call in training, as long as these processes are met; its gradients are
        means over them.
        """
        if self.count == 1:
            return model
        self._parallel.append(DistributedDataParallel(model))
        return self._parallel[-1]

    def leave(self) -> None:
        """End what holds the group of processes beside Python, for whoever ends it next.

        The last to hold it waits for gloo's threads, and these for Python's lock if they still have
        a tensor to give back. Python lets go of its lock for that; what is ended here does not.
        """
        while self._parallel:
            network = self._parallel.pop()
            del network.logger, network.reducer, network.process_group

    def no_sync(self, network: nn.Module) -> AbstractContextManager[None]:
        """Within it gradients stay with their process, until one more backward pass outside."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


@contextmanager
def join(device: str) -> Iterator[Processes]:
    """Meet the other processes, and part from them at the end of the block, all equally often.

    Under torchrun "cuda" is the GPU of this process on its machine.

    Raises:
        ValueError: no such device, or one GPU named for several processes.
        ConnectionError: another process died or does not answer.
    """
    rank, count = rank_and_count()
    if count == 1:
        yield Processes(0, 1, checked_device(device))
        return
    if device.startswith("cuda:"):
        raise ValueError(f"device is {device!r}; of several processes each takes one GPU: cuda")
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', rank)}"
    target = checked_device(device)
    if target.type == "cuda":
        torch.cuda.set_device(target)
    # In torchrun's store are the addresses of earlier meetings, and of processes that have died.
    store, _, _ = next(iter(rendezvous("env://", rank, count, timeout=TIMEOUT)))
    dist.init_process_group(
        "nccl" if target.type == "cuda" else "gloo", timeout=TIMEOUT, rank=rank, world_size=count,
        store=PrefixStore(f"start-{restarts()}-{next(_meetings)}", store),
    )  # fmt: skip
    processes, group = Processes(rank, count, target), dist.group.WORLD
    try:
        yield processes
    except RuntimeError as error:
        # What gloo raises has no type of its own.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise ConnectionError(
            f"process {rank} of {count} has lost another one; its own message, if it had the time "
            "for one, says why. The last checkpoint of a training is untouched, --resume goes on "
            f"from it ({str(error).splitlines()[0]})"
        ) from error
    finally:
        processes.leave()
        if dist.is_initialized():
            dist.destroy_process_group()
        del group


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over the processes. Each of them uses it: gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> torch.Tensor:
        return _SumOverProcesses.apply(*grad_outputs)


class _JointBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the values of all processes, on any device.

    torch's SyncBatchNorm is for GPUs alone. Two passes, mean and then spread: no difference of
    large sums.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any (N, C, ...)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        over = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        values = input.float()
        count = values.new_tensor([values.numel() // values.shape[1]])
        dist.all_reduce(count)
        mean = _SumOverProcesses.apply(values.sum(over)) / count
        centred = values - mean.view(shape)
        variance = _SumOverProcesses.apply((centred**2).sum(over)) / count
        if self.track_running_stats:
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = self.momentum
                if momentum is None:
                    momentum = 1.0 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        result = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)


def join_batch_norm(model: nn.Module) -> None:
    """Have every batch normalisation of the model, 1d to 3d, look at all processes.

    Parameters, buffers and their names stay; in evaluation nothing changes.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                joint = _JointBatchNorm(
                    child.num_features, child.eps, child.momentum, child.affine,
                    child.track_running_stats,
                )  # fmt: skip
                joint.__dict__.update(child.__dict__)
                setattr(module, name, joint)
