"""Several processes that train one model."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from torch.distributed import PrefixStore, TCPStore
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler


def gather(trainer: Trainer, value: Any) -> list[Any]:
    """Return the value of each process, in the order of their ranks."""
    values = [value] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def largest(trainer: Trainer, *values: float) -> list[float]:
    """Return the maximum of each value over all processes."""
    if trainer.world_size == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float32, device=trainer.strategy.root_device)
    return list(trainer.strategy.reduce(tensor, reduce_op="max").tolist())


def agree(trainer: Trainer, *flags: bool) -> list[bool]:
    """Return for each flag whether it is true in any process."""
    return [bool(flag) for flag in largest(trainer, *flags)]


class Rhythm:
    """The steps after which processes exchange flags with `agree`: about once a second, the same steps in each process.

    The exchange waits for all processes and their devices, which can take longer than a step.
    """

    LONGEST = 50  # most steps between two exchanges, in case the steps become slower

    def __init__(self) -> None:
        self.steps, self.interval, self.begun = 0, 1, time.monotonic()

    def is_due(self, trainer: Trainer, half_done: bool) -> bool:
        """Count a step, and return whether the processes exchange flags after it; never while gradients accumulate."""
        self.steps += 1
        return not half_done and (trainer.world_size == 1 or self.steps >= self.interval)

    def restart(self, trainer: Trainer) -> None:
        """Set the number of steps until the next exchange from the time of the slowest process since the last one."""
        (seconds,) = largest(trainer, time.monotonic() - self.begun)
        self.interval = max(1, min(self.LONGEST, int(self.steps / max(seconds, 0.001))))
        self.steps, self.begun = 0, time.monotonic()


@contextmanager
def evaluating_each_sample_once(trainer: Trainer) -> Iterator[None]:
    """Make several processes validate as one would: each sample once, with the buffers of the first process.

    DistributedSampler would repeat samples to make the shares equal. With unequal shares, no forward pass may wait for
    the other processes, so the buffers are sent once, before validation.
    """
    if trainer.world_size == 1:
        yield
        return
    val_loop, model = trainer.fit_loop.epoch_loop.val_loop, trainer.strategy.model
    val_loop.setup_data()
    loaders = [] if val_loop._combined_loader is None else val_loop._combined_loader.flattened
    for loader in loaders:
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, DistributedSampler) and not sampler.drop_last:
            sampler.total_size = len(sampler.dataset)  # type: ignore[arg-type]
            sampler.num_samples = len(range(sampler.rank, sampler.total_size, sampler.num_replicas))
    for buffer in trainer.lightning_module.buffers():
        torch.distributed.broadcast(buffer, 0)
    if isinstance(model, DistributedDataParallel):
        model.require_forward_param_sync = False
    yield
    if isinstance(model, DistributedDataParallel):
        model.require_forward_param_sync = True


def follow_launcher(config: Namespace, parser: LightningArgumentParser) -> None:
    """Set the number of devices and nodes to those of torchrun or SLURM if one of them started several processes."""
    total, local = ("WORLD_SIZE", "LOCAL_WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else ("SLURM_NTASKS",) * 2
    processes = int(os.environ.get(total, "1"))
    if processes > 1:
        nodes = int(os.environ.get("SLURM_NNODES", "1")) if total == local else processes // int(os.environ[local])
        if str(config.devices) not in ("auto", "1", str(processes // nodes)):
            here = f"the launcher started {processes // nodes} processes on this machine"
            parser.error(f"trainer.devices {config.devices} does not fit, {here}: remove the setting")
        config.devices, config.num_nodes = processes // nodes, nodes
        if total == local:  # Lightning requires this variable, which SLURM sets only for --ntasks-per-node
            os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(processes // nodes))


def rejoin_launcher(trainer: Trainer) -> None:
    """Connect processes that torchrun has restarted, with a new prefix for their keys in its store.

    torchrun keeps its store over a restart, including the addresses of the processes that have exited. PyTorch would
    connect to these (pytorch/pytorch#135712).
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or trainer.world_size == 1:
        return
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    backend = "gloo" if trainer.strategy.root_device.type == "cpu" else "nccl"
    own = PrefixStore(f"restart_{attempt}", store)
    torch.distributed.init_process_group(backend, store=own, rank=trainer.global_rank, world_size=trainer.world_size)
