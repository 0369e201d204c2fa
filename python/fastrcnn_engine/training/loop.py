"""The training loop of Fast R-CNN: one stage, one loss, nothing cached on disk (paper 2.3)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.data.records import Dataset, check_labels
from fastrcnn_engine.files import alone_in, forget_unfinished
from fastrcnn_engine.models import FastRCNN, LayerChange
from fastrcnn_engine.ops import smooth_l1
from fastrcnn_engine.training.amp import Amp
from fastrcnn_engine.training.batches import (
    Batch,
    ImageCache,
    Loader,
    make_batch,
    take_together,
)
from fastrcnn_engine.training.checkpoint import (
    PATHS,
    checkpoint_file,
    keep_checkpoints,
    load_checkpoint,
    random_state,
    save_checkpoint,
)
from fastrcnn_engine.training.config import ResolvedConfig, TrainConfig
from fastrcnn_engine.training.device import checked_device, the_same_on_every_run
from fastrcnn_engine.training.distributed import Processes, join, join_batch_norm, restarts
from fastrcnn_engine.training.interrupt import Interrupt, Stopped
from fastrcnn_engine.training.log import Meter, TrainLog, summary_writer
from fastrcnn_engine.training.progress import ProgressLine
from fastrcnn_engine.training.resume import (
    checked_to_resume,
    data_fingerprint,
    resume,
    starting_network,
)
from fastrcnn_engine.training.sampling import build_roidb
from fastrcnn_engine.training.stopwatch import Stopwatch
from fastrcnn_engine.training.targets import target_statistics
from fastrcnn_engine.training.validation import Validation


@dataclass(frozen=True)
class TrainResult:
    """Where a run left its files, and what a caller may want to show.

    Attributes:
        model: as trained, in evaluation mode.
        checkpoint: `checkpoint.pt` of the run.
        log: `log.jsonl` of the run.
        iterations: made in all, those before a `resume` too.
        problems: bad boxes of the data set, one line each.
        unusable: ids of images without any usable RoI.
        layers: what became of each pre-trained layer; empty without weights.
        bad_images: those skipped: "id: why".
        best: of `best.pt`: split, iteration, mAP.
        seconds: of an iteration, by its parts; None without profile.
    """

    model: FastRCNN
    checkpoint: Path
    log: Path
    iterations: int
    problems: list[str]
    unusable: list[str]
    layers: list[LayerChange]
    bad_images: list[str]
    best: dict[str, Any] | None
    seconds: dict[str, float] | None


def multi_task_loss(
    logits: torch.Tensor,
    deltas: torch.Tensor,
    labels: torch.Tensor,
    targets: torch.Tensor,
    tasks: str = "both",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Classification and localisation loss of R RoIs (paper equations 1 to 3, lambda = 1).

    Both are divided by R, background RoIs included, as in the author's code. A task that is not
    learned has the loss 0, without a gradient.

    Args:
        logits: (R, K+1). deltas: (R, 4(K+1)), normalised. labels: (R,) int64, 0 is background.
        targets: (R, 4), normalised; background rows do not count.
        tasks: as in TrainConfig.
    """
    none = logits.new_zeros(())
    return (
        none if tasks == "boxes" else F.cross_entropy(logits, labels),
        none if tasks == "classification" else smooth_l1(deltas, targets, labels),
    )


def build_optimiser(model: FastRCNN, config: ResolvedConfig) -> torch.optim.SGD:
    """SGD with momentum over everything that is neither frozen nor at rest (paper 2.3).

    Weights decay; biases learn at twice the rate and, as in the author's code, do not decay (the
    paper says both decay). Gains of normalisation layers learn at the base rate without decay.
    torch keeps the learning rate outside the velocity, Caffe inside: after a drop of the rate the
    step shrinks at once here, and over some ten iterations there.
    """
    weights, biases, gains = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith("bias"):
            biases.append(parameter)
        else:
            (gains if parameter.ndim < 2 else weights).append(parameter)
    groups = [
        {"params": weights, "rate_factor": 1.0, "weight_decay": config.weight_decay},
        {"params": biases, "rate_factor": 2.0, "weight_decay": 0.0},
        {"params": gains, "rate_factor": 1.0, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("nothing of the model learns: what tasks leaves to learn is frozen")
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)


def settled(config: TrainConfig) -> ResolvedConfig:
    """The settings a run will have: recipe values filled in, everything checked but the data.

    A run that is resumed keeps the steps of its learning rate unless ``config`` names others: a
    longer run must not move the drops that have been or were to come. A run that torchrun has
    started again is resumed if there is something to resume from.

    Raises:
        ValueError: a bad setting, no such device, no weights file, no checkpoint to resume.
        ImportError: TensorBoard is asked for and not installed.
    """
    checkpoint = config.output / "checkpoint.pt"
    if restarts() and checkpoint.is_file():
        config = dataclasses.replace(config, resume=True)
    if config.init is not None:
        config = dataclasses.replace(config, init=checkpoint_file(config.init))
    resolved = config.resolved()
    checked_device(config.device)
    if config.tensorboard:
        summary_writer()
    if config.resume:
        if not checkpoint.is_file():
            raise ValueError(
                f"resume: checkpoint {checkpoint} does not exist; no run there got so far as to "
                "write one: begin again without resume"
            )
        if config.learning_rate_steps is None:
            before = load_checkpoint(checkpoint, tensors=False).get("config", {})
            if isinstance(steps := before.get("learning_rate_steps"), list):  # else it is refused
                resolved = dataclasses.replace(resolved, learning_rate_steps=tuple(steps))
    elif config.weights is not None and not config.weights.is_file():
        raise ValueError(f"weights file {config.weights} does not exist")
    elif config.init is not None and not config.init.is_file():
        raise ValueError(f"init: checkpoint {config.init} does not exist")
    return resolved


def train(
    config: TrainConfig,
    *,
    model: FastRCNN | None = None,
    dataset: Dataset | None = None,
    progress: bool = True,
    on_start: Callable[[], None] | None = None,
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> TrainResult:
    """Train a detector and leave ``checkpoint.pt`` and ``log.jsonl`` in ``config.output``.

    Under torchrun all processes call this with the same arguments; the first alone writes, shows
    and calls ``on_start`` and ``on_log``.

    Args:
        config: all settings; see TrainConfig.
        model: a network of your own to train instead of ``config.network``, whose recipe has the
            numbers that ``config`` leaves None: by default VGG16's, for pre-trained weights; "tiny"
            for random ones. What is written down names the network by ``model.name``. Its image
            size is taken from ``config``; what ``config.tasks`` does not learn rests meanwhile.
        dataset: the split of ``config`` as ``load_dataset`` has read it, for who has it already.
        progress: show a live line with the losses, the speed and the time left.
        on_start: called when all has been checked and nothing been written but the folder.
        on_log: called with each line of the log, a dict: iteration, loss, loss_cls, loss_box,
            learning_rate, images_per_second, foreground, rois (the last two: mean per batch); after
            a test val_mAP, and bad_images, ids, where some were skipped.

    Raises:
        ValueError: a bad setting, missing proposals (image named), a checkpoint that does not
            belong to this run or is further, another run at work in the same folder, a model whose
            parts do not fit, an image that is none. Before the last a checkpoint is
            written.
        OSError: a missing image, after a checkpoint; a log or checkpoint that cannot be written;
            ConnectionError: another process is lost.
        FloatingPointError: the loss is not finite; the iteration and its images are named.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the iteration is done and a checkpoint is
            written.
    """
    config = settled(config)
    if model is not None and not isinstance(model, FastRCNN):
        raise ValueError(
            f"model must be a FastRCNN, got {type(model).__name__}; several GPUs are for torchrun"
        )
    if model is not None and config.weights is not None:
        raise ValueError(
            f"weights is {str(config.weights)!r}; load those of a model of your own before the "
            "training"
        )
    if model is not None and config.freeze_to is not None:
        raise ValueError(
            f"freeze_to is {config.freeze_to!r}; a model of your own has its frozen layers already"
        )
    if model is not None:  # what the recipe is for, settled, has done its part
        config = dataclasses.replace(config, network=cast(Any, model.name))
    with (
        torch.enable_grad(),
        join(config.device) as processes,
        the_same_on_every_run(processes.device),
    ):
        try:
            run = _Run(config, model, dataset, processes)
            model = run.model
            return _loop(run, progress, on_start, on_log)
        finally:
            if model is not None:
                model.rest(())  # in the next training all of it may have to learn


class _Run:
    """What a run works on, from the data set to the optimiser, and its progress so far."""

    def __init__(
        self,
        config: ResolvedConfig,
        model: FastRCNN | None,
        dataset: Dataset | None,
        processes: Processes,
    ):
        parts = processes.count * config.accumulate
        if config.images_per_batch % parts:
            raise ValueError(
                f"images_per_batch is {config.images_per_batch}; {processes.count} processes with "
                f"{config.accumulate} parts each need a multiple of {parts}"
            )
        self.config, self.processes, self.first = config, processes, processes.rank == 0
        self.checkpoint, self.log = config.output / "checkpoint.pt", config.output / "log.jsonl"
        self.dataset = _dataset(config, dataset)
        classes, store = self.dataset.classes, ProposalStore(config.proposals)
        self.entries, self.unusable = build_roidb(self.dataset.records, store, config)
        absolute = {name: str(getattr(config, name).absolute()) for name in PATHS}
        self.origin = {  # in its checkpoints; paths lead there from any folder
            "config": config.to_dict() | absolute,
            "proposals_made_with": store.settings,
            "learned_from": data_fingerprint(self.dataset.records, store),
        }
        self.validation = None
        if config.val_split is not None:
            self.validation = Validation(config.data, config.val_split, classes, store, processes)

        torch.manual_seed(config.seed)
        self.from_scratch = model is None and not (config.weights or config.init or config.resume)
        self.model, self.layers = starting_network(config, model, classes)
        mean, std = target_statistics(self.entries, len(classes), flip=config.flip)
        device = self.model.delta_mean.device
        self.model.renormalise(*(torch.from_numpy(x).flatten().to(device) for x in (mean, std)))
        if processes.count > 1:
            join_batch_norm(self.model)
        self.model.to(processes.device).train()
        self.optimiser = build_optimiser(self.model, config)
        self.amp = Amp(config.amp, processes.device)
        self.watch = Stopwatch(processes.device, enabled=config.profile)
        self.meter = Meter()
        self.best: dict[str, Any] | None = None
        self.saved = 0  # iterations that the checkpoint has behind it
        if not self.first:  # dropout of its own
            torch.manual_seed((config.seed * 1_000_003 + processes.rank) % 2**64)

    def resume(self) -> None:
        """Go on from the checkpoint."""
        # Read once the folder is this run's: another may write its last checkpoint until then.
        self.processes.gathered(None)
        content = checked_to_resume(
            self.checkpoint, self.config, self.dataset, self.origin["learned_from"]
        )
        resume(
            self.checkpoint, content, self.model, self.optimiser, self.amp, self.config,
            self.processes,
        )  # fmt: skip
        self.saved, self.best = content["iteration"], content.get("best")
        self.meter.restore(content["meter"])
        if self.best is not None and self.best["split"] != self.config.val_split:
            self.best = None

    def step(self, network: nn.Module, batch: Batch, iteration: int) -> list[float]:
        """Learn from a batch (paper 2.3): its two losses and its number of foreground RoIs.

        network: the model, as ``Processes.parallel`` has it called.
        """
        config, processes = self.config, self.processes
        rate = config.learning_rate_at(iteration)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.optimiser.zero_grad(set_to_none=True)
        losses = torch.zeros(2, dtype=torch.float64, device=processes.device)
        parts = batch.parts(config.accumulate)
        for part in parts:
            with nullcontext() if part is parts[-1] else processes.no_sync(network):
                with self.amp.forward():
                    logits, deltas = network(part.images, part.rois)
                self.watch.mark("fully connected layers")
                both = torch.stack(
                    multi_task_loss(
                        logits.float(), deltas.float(), part.labels, part.targets, config.tasks
                    )
                )
                share = len(part.labels) / sum(batch.counts)
                losses += share * both.detach().double()
                # Of several processes the gradients are averaged: of all RoIs, not of theirs.
                loss = both.sum() * (share * processes.count)
                self.watch.mark("loss")
                self.amp.scaled(loss).backward()
                self.watch.mark("backward")
        sums = processes.sums(torch.cat([losses, (batch.labels > 0).sum()[None]]))
        self.check_finite(sums[0], sums[1], batch, iteration)
        self.amp.step(self.optimiser)
        self.watch.mark("optimiser")
        return sums

    def check_rois(self, batch: Batch, iteration: int) -> None:
        """Statistics over a single RoI do not exist; a frozen layer keeps the ones it has."""
        if min(batch.counts) < 2 and any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
            for m in self.model.head.modules()
        ):
            one = f" in one of its {len(batch.counts)} parts" if len(batch.counts) > 1 else ""
            fewer = ", a smaller accumulate" if one else ""
            raise ValueError(
                f"iteration {iteration + 1}: the batch of {', '.join(batch.image_ids)} has "
                f"1 RoI{one}; {self.model.name} normalises over the RoIs and needs two. Give more "
                f"proposals{fewer}, a larger rois_per_batch or a lower background_low"
            )

    def check_finite(self, cls: float, box: float, batch: Batch, iteration: int) -> None:
        """A loss that is not finite must not get into the weights."""
        if not math.isfinite(cls + box):
            advice = "lower learning_rate, or look at these images and their boxes"
            if self.from_scratch and self.config.network != "tiny":
                advice = f"give {self.config.network} pre-trained weights, {advice}"
            raise FloatingPointError(
                f"the loss is {cls + box} in iteration {iteration + 1} "
                f"(classification {cls}, boxes {box}) on images "
                f"{', '.join(batch.image_ids)}; {advice}. {self.checkpoint} was not written to"
            )

    def keep_best(self, value: float, done: int) -> None:
        """The network with the highest mean AP on the validation split is kept as best.pt."""
        self.meter.start_clock()
        if self.best is None or value > self.best["mAP"]:
            self.best = {"split": self.config.val_split, "iteration": done, "mAP": value}
            if self.first:
                save_checkpoint(
                    self.config.output / "best.pt", self.model, iteration=done, best=self.best,
                    **self.origin,
                )  # fmt: skip

    def write_checkpoint(self, done: int, log: TrainLog | None) -> None:
        """All processes together, as the states of their generators are in it."""
        states = self.processes.gathered(random_state(self.processes.device))
        self.saved = done
        if log is None:  # not the first process
            return
        log.sync()
        save_checkpoint(
            self.checkpoint,
            self.model,
            optimiser=self.optimiser.state_dict(),
            iteration=done,
            # The sampler and the schedule are functions of config and iteration.
            **self.origin,
            random_state=states[0],
            **({"random_states": states} if len(states) > 1 else {}),
            **({"scaler": self.amp.scaler.state_dict()} if self.amp.scaler is not None else {}),
            meter=self.meter.state(),
            best=self.best,
        )
        if self.config.keep:
            keep_checkpoints(self.checkpoint, done, self.config.keep)


def _dataset(config: ResolvedConfig, dataset: Dataset | None) -> Dataset:
    """The split that is learned from, with the objects that are."""
    if dataset is None:
        # To batch and summary unreadable images are as others.
        skips = config.on_bad_image == "skip"
        dataset = load_dataset(config.data, config.split, config.classes, stated_sizes=skips)
    elif dataset.split != config.split:
        raise ValueError(f"dataset is of split {dataset.split!r}, config of {config.split!r}")
    else:
        for record in dataset.records:
            check_labels("dataset", record.image_id, record.labels, len(dataset.classes))
    return dataset if config.difficult else dataset.without_difficult()


def _loop(
    run: _Run,
    progress: bool,
    on_start: Callable[[], None] | None,
    on_log: Callable[[dict[str, Any]], None] | None,
) -> TrainResult:
    """All iterations of a run, and what happens before them and every so many of them."""
    config, processes, meter, watch = run.config, run.processes, run.meter, run.watch
    with ExitStack() as stack:
        if run.first:
            stack.enter_context(alone_in(config.output))
            for path in (run.checkpoint, config.output / "best.pt", run.log):
                forget_unfinished(path)
        if config.resume:
            run.resume()
        start = run.saved
        network = processes.parallel(run.model)
        prepare = partial(
            make_batch, entries=run.entries, cache=ImageCache(config.cache_megabytes * 2**20),
            model=run.model, config=config, process=processes.rank, processes=processes.count,
        )  # fmt: skip
        log = None
        if run.first:
            if on_start is not None:
                on_start()
            log = stack.enter_context(TrainLog(run.log, start, tensorboard=config.tensorboard))
            if start and config.keep:  # the run may have been killed between the two files
                keep_checkpoints(run.checkpoint, start, config.keep)
        line = stack.enter_context(
            ProgressLine(start, config.iterations, enabled=progress and run.first)
        )
        loader = stack.enter_context(
            Loader(prepare, start, config.iterations, threads=config.loader_threads)
        )
        interrupt = stack.enter_context(Interrupt())
        stack.enter_context(watch.watching(run.model))

        for iteration in range(start, config.iterations):
            watch.iterations += 1
            batch = take_together(loader, processes, config.accumulate, iteration, interrupt)
            if isinstance(batch, BaseException):
                if run.saved < iteration:
                    run.write_checkpoint(iteration, log)
                raise batch
            batch = batch.to(processes.device)
            run.check_rois(batch, iteration)
            watch.mark("waiting for data")
            loss_cls, loss_box, foreground = run.step(network, batch, iteration)

            done, rate = iteration + 1, config.learning_rate_at(iteration)
            meter.add_bad_images(batch.skipped)
            meter.add(
                loss_cls, loss_box, images=config.images_per_batch, rois=sum(batch.counts),
                foreground=int(foreground),
            )  # fmt: skip
            line.update(done, meter.loss, rate)
            ends = done == config.iterations
            validation = run.validation if done % config.val_every == 0 or ends else None
            if done % config.log_every == 0 or validation is not None or ends:
                entry = {"iteration": done, **meter.read(), "learning_rate": rate}
                untested = None
                if validation is not None:
                    try:
                        entry["val_mAP"] = validation.mean_ap(run.model)
                    except (OSError, ValueError) as error:  # of all processes together
                        untested = error
                    else:
                        run.keep_best(entry["val_mAP"], done)
                if log is not None:
                    log.write(entry)
                    if on_log is not None:
                        on_log(entry)
                if untested is not None:
                    run.write_checkpoint(done, log)
                    kind = OSError if isinstance(untested, OSError) else ValueError
                    raise kind(
                        f"{untested}; stopped after iteration {done}, --resume goes on from there "
                        "without this test"
                    ) from untested
            if done % config.checkpoint_every == 0 or ends:
                run.write_checkpoint(done, log)
            watch.mark("log, tests, checkpoints")
        if interrupt.asked:
            raise Stopped(f"resume goes on from iteration {config.iterations}", interrupt.asked)
    return TrainResult(
        run.model.eval(), run.checkpoint, run.log, config.iterations, run.dataset.problems,
        run.unusable, run.layers, list(meter.bad_images), run.best, watch.means(),
    )  # fmt: skip
