"""Lightning's training loop, with a point after each step and each epoch at which a run can stop and resume.

At that point the step is complete, including validation, schedules and logging, so a checkpoint needs no correction.
To resume within an epoch, the batches of that epoch are read again up to the checkpoint. They are the same batches
because data is read with a separate random state, which is seeded anew in each epoch.
"""

import random
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from itertools import islice
from math import isfinite
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.fabric.utilities.data import _auto_add_worker_init_fn
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch.loops.fetchers import _DataFetcher, _profile_nothing
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch.utils.data import DataLoader, IterableDataset

from training.engine.checkpoints import Checkpoints
from training.engine.interrupts import Interrupts
from training.engine.processes import Rhythm, agree, evaluating_each_sample_once, gather
from training.engine.reports import print_epoch
from training.engine.resumed_epoch import say_what_is_inexact, start_epoch_again


class EpochLoop(_TrainingEpochLoop):
    """The loop over the steps of an epoch."""

    seed: int  # of the order of the training data
    checkpoints: Checkpoints
    interrupts: Interrupts
    rhythm: Rhythm
    wrong_loss = ""  # description of a loss that is NaN or infinite

    def reset(self) -> None:
        within_epoch = self.restarting and self.trainer.fit_loop.restarted_mid_epoch
        # The checkpoint was saved between two steps, so no step is half done.
        self.trainer.fit_loop._restarting = self.restarting = False
        if not within_epoch:
            super().reset()

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        # Reading data has a random state of PyTorch of its own. A loader without length is read one batch ahead, so
        # reading then needs its own states of Python and NumPy, too.
        ahead = data_fetcher.length is None
        self.get_state: Callable[[], Any] = _collect_rng_states if ahead else torch.get_rng_state
        self.set_state: Callable[[Any], None] = _set_rng_states if ahead else torch.set_rng_state
        resumed, self.checkpoints.random = self.checkpoints.random, None
        state = resumed or _collect_rng_states()
        self.seed_reading()
        self.trainer.fit_loop._load_combined_loader_states()
        data_fetcher._start_profiler = data_fetcher._stop_profiler = _profile_nothing  # not those of the last epoch
        iter(data_fetcher)
        for _ in range(self.batch_progress.current.ready):
            next(data_fetcher)
        self.reading_state = self.get_state()
        _set_rng_states(state)
        data_fetcher._start_profiler = self._on_before_fetch
        data_fetcher._stop_profiler = self._on_after_fetch
        if resumed:
            loaders = data_fetcher.combined_loader.flattened
            say_what_is_inexact(loaders, bool(self.batch_progress.current.ready and self.checkpoints.averages))

    def seed_reading(self) -> None:
        """Make the order of the training data depend only on the seed and the epoch."""
        epoch = self.trainer.fit_loop.epoch_progress.current.processed
        seed = int.from_bytes(sha256(f"{self.seed} {epoch}".encode()).digest()[:4], "big")
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        for loader in self.trainer.fit_loop._combined_loader.flattened:  # type: ignore[union-attr]
            for holder in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
                if isinstance(generator := getattr(holder, "generator", None), torch.Generator):
                    generator.manual_seed(seed)

    def _on_before_fetch(self) -> None:
        super()._on_before_fetch()
        self.model_state = self.get_state()
        self.set_state(self.reading_state)

    def _on_after_fetch(self) -> None:
        self.reading_state = self.get_state()
        self.set_state(self.model_state)
        super()._on_after_fetch()

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        if self._should_check_val_fx(data_fetcher):
            with evaluating_each_sample_once(self.trainer):
                super().on_advance_end(data_fetcher)
        else:
            super().on_advance_end(data_fetcher)
        if self.checkpoints in self.trainer.callbacks:  # not while the learning-rate finder searches
            self.end_step()

    def end_step(self) -> None:
        """Save checkpoints or end the run after a complete step, where necessary; raise an error for a NaN loss."""
        self.watch_loss()
        complete, half_done = self._num_ready_batches_reached(), self.checkpoints.pending or self._should_accumulate()
        interrupted = due = False
        if self.rhythm.is_due(self.trainer, half_done) or complete or self.done or self.checkpoints.validated:
            interrupted, due, failed = agree(
                self.trainer, self.interrupts.signal is not None, self.checkpoints.is_due, bool(self.wrong_loss)
            )
            if failed:
                raise FloatingPointError(next(filter(None, gather(self.trainer, self.wrong_loss))))
            self.rhythm.restart(self.trainer)
        if complete or (half_done and not self.done):
            return  # FitLoop saves a complete epoch; within accumulation, a checkpoint would lack the gradients
        if self.checkpoints.validated:
            self.checkpoints.keep_best(self.trainer)
        if interrupted or due or self.done:
            self.checkpoints.save_last(self.trainer)
        if interrupted:
            self.interrupts.leave(self.checkpoints.run)

    def watch_loss(self) -> None:
        """Record the first NaN or infinite loss; on a GPU only in logged steps, as reading it waits for the GPU."""
        loss, self.checkpoints.loss = self.checkpoints.loss, None
        if loss is None or (loss.device.type != "cpu" and self.global_step % self.trainer.log_every_n_steps):
            return
        if not (self.wrong_loss or isfinite(loss.item())):
            self.wrong_loss = self.explain_loss(loss.item())

    def explain_loss(self, loss: float) -> str:
        """Describe where a loss was NaN or infinite, with the indices of the training samples if they are known."""
        loader, samples = self.trainer.train_dataloader, ""
        if isinstance(loader, DataLoader) and loader.batch_sampler and not isinstance(loader.dataset, IterableDataset):
            self.seed_reading()
            # DataLoader draws the seed of its workers before its sampler begins.
            torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
            indices = next(islice(loader.batch_sampler, self.batch_idx, None), [])
            samples = f", training samples {list(indices)}"
        return (
            f"the loss is {loss} at step {self.global_step}, batch {self.batch_idx} of epoch"
            f" {self.trainer.current_epoch}{samples}: check these samples or use a lower learning rate;"
            f" {self.checkpoints.last} is unchanged"
        )


class FitLoop(_FitLoop):
    """The loop over the epochs."""

    epoch_loop: EpochLoop

    def run(self) -> None:
        loop = self.epoch_loop
        loop.interrupts.listen()
        loop.interrupts.deferred = True
        if self.trainer.world_size > 1:
            if len(set(gather(self.trainer, loop.global_step))) > 1:
                raise OSError("not every process finds last.ckpt: all machines must share logs/ to resume a run")
            torch.manual_seed(loop.seed + self.trainer.global_rank)  # dropout and augmentation differ by process
        super().run()
        loop.interrupts.deferred = False
        if loop.checkpoints in self.trainer.callbacks:
            loop.checkpoints.finish(self.trainer)

    def on_advance_start(self) -> None:
        super().on_advance_start()
        if self.restarted_mid_epoch:
            start_epoch_again(self.trainer)

    def on_advance_end(self) -> None:
        super().on_advance_end()
        loop = self.epoch_loop
        if loop.checkpoints not in self.trainer.callbacks:
            return
        print_epoch(self.trainer)
        loop.checkpoints.keep_best(self.trainer)
        if loop._num_ready_batches_reached():  # otherwise the epoch was ended early, after its last step was saved
            loop.checkpoints.save_last(self.trainer)
        (interrupted,) = agree(self.trainer, loop.interrupts.signal is not None)
        if interrupted:
            loop.interrupts.leave(loop.checkpoints.run)


def install_loops(trainer: Trainer, seed: int, checkpoints: Checkpoints, interrupts: Interrupts) -> None:
    """Replace the loops of a trainer, whose callbacks must include `checkpoints`."""
    old = trainer.fit_loop
    trainer.fit_loop = fit_loop = FitLoop(trainer, old.min_epochs, old.max_epochs)
    fit_loop.epoch_loop = loop = EpochLoop(trainer, old.min_steps, old.max_steps)
    loop.seed, loop.checkpoints, loop.interrupts, loop.rhythm = seed, checkpoints, interrupts, Rhythm()
    process = trainer.strategy.process_dataloader  # Lightning calls it for each loader, before workers start

    def process_dataloader(loader: Any) -> Any:
        _auto_add_worker_init_fn(loader, trainer.global_rank)
        start = getattr(loader, "worker_init_fn", None)
        if isinstance(loader, DataLoader) and getattr(start, "func", None) != interrupts.start_worker:
            loader.worker_init_fn = partial(interrupts.start_worker, start)
        return process(loader)

    trainer.strategy.process_dataloader = process_dataloader  # type: ignore[method-assign, assignment]
