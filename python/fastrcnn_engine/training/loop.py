"""The training loop of Fast R-CNN: one stage, one loss, nothing cached on disk (paper 2.3)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.data.records import Dataset
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
    checkpoint_file,
    keep_checkpoints,
    load_checkpoint,
    random_state,
    save_checkpoint,
)
from fastrcnn_engine.training.config import (
    ResolvedConfig,
    TrainConfig,
    checked_device,
    the_same_on_every_run,
)
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
    """Where a run left its files, and what a caller may want to show."""

    model: FastRCNN
    checkpoint: Path
    log: Path
    iterations: int
    problems: list[str]  # bad boxes of the data set, one line each
    unusable: list[str]  # ids of images without any usable RoI
    layers: list[LayerChange]  # what became of each pre-trained layer; empty without weights
    bad_images: list[str]  # those skipped: "id: why"
    best: dict[str, Any] | None  # of best.pt: split, iteration, mAP
    seconds: dict[str, float] | None  # of an iteration, by its parts; None without profile


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
    """SGD with momentum over everything that is not frozen (paper 2.3).

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
            raise ValueError(f"resume: checkpoint {checkpoint} does not exist")
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
        model: a network of your own to train instead of ``config.network``, whose recipe is used
            all the same. Its image size is taken from ``config``, and what ``config.tasks`` does
            not learn is frozen.
        dataset: the split of ``config`` as ``load_dataset`` has read it, for who has it already.
        progress: show a live line with the losses, the speed and the time left.
        on_start: called when all has been checked and nothing been written but the folder.
        on_log: called with each line of the log, a dict: iteration, loss, loss_cls, loss_box,
            learning_rate, images_per_second, foreground, rois (the last two: mean per batch); after
            a test val_mAP, and bad_images, ids, where some were skipped.

    Raises:
        ValueError: a bad setting, missing proposals (image named), a checkpoint that does not
            belong to this run or is further, another run at work in the same folder, a model whose
            stride is not its backbone's, an image that is none. Before the last a checkpoint is
            written.
        OSError: a missing image, after a checkpoint; a log or checkpoint that cannot be written;
            ConnectionError: another process is lost.
        FloatingPointError: the loss is not finite; the iteration and its images are named.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the iteration is done and a checkpoint is
            written.
    """
    config = settled(config)
    if model is not None and config.weights is not None:
        raise ValueError(
            f"weights is {str(config.weights)!r}; load those of a model of your own before the "
            "training"
        )
    if model is not None and config.freeze_to is not None:
        raise ValueError(
            f"freeze_to is {config.freeze_to!r}; a model of your own has its frozen layers already"
        )
    with join(config.device) as processes, the_same_on_every_run(processes.device):
        return _train(config, model, dataset, processes, progress, on_start, on_log)


def _train(
    config: ResolvedConfig,
    model: FastRCNN | None,
    dataset: Dataset | None,
    processes: Processes,
    progress: bool,
    on_start: Callable[[], None] | None,
    on_log: Callable[[dict[str, Any]], None] | None,
) -> TrainResult:
    device, first = processes.device, processes.rank == 0
    if config.images_per_batch % (processes.count * config.accumulate):
        raise ValueError(
            f"images_per_batch is {config.images_per_batch}; {processes.count} processes with "
            f"{config.accumulate} parts each need a multiple of "
            f"{processes.count * config.accumulate}"
        )
    checkpoint, log = config.output / "checkpoint.pt", config.output / "log.jsonl"
    settings = config.to_dict()
    for name in ("data", "proposals", "output"):  # as they are found from any folder
        settings[name] = str(Path(settings[name]).absolute())
    if dataset is None:
        # To batch and summary unreadable images are as others.
        skips = config.on_bad_image == "skip"
        dataset = load_dataset(config.data, config.split, config.classes, stated_sizes=skips)
    elif dataset.split != config.split:
        raise ValueError(f"dataset is of split {dataset.split!r}, config of {config.split!r}")
    if not config.difficult:
        dataset = dataset.without_difficult()
    store = ProposalStore(config.proposals)
    entries, unusable = build_roidb(dataset.records, store, config)
    learned_from = data_fingerprint(dataset.records, store)
    validation = None
    if config.val_split is not None:
        validation = Validation(config.data, config.val_split, dataset.classes, store, processes)

    torch.manual_seed(config.seed)
    from_scratch = model is None and not (config.weights or config.init or config.resume)
    model, layers = starting_network(config, model, dataset.classes)
    mean, std = target_statistics(entries, len(dataset.classes), flip=config.flip)
    model.delta_mean.copy_(torch.from_numpy(mean).flatten())
    model.delta_std.copy_(torch.from_numpy(std).flatten())
    if processes.count > 1:
        join_batch_norm(model)
    model.to(device).train()
    optimiser = build_optimiser(model, config)
    # Statistics over a single RoI do not exist; a frozen layer keeps the ones it has.
    normalises_rois = any(
        isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.training
        for m in model.head.modules()
    )
    amp = Amp(config.amp, device)

    start, meter, best = 0, Meter(), None
    if not first:  # dropout of its own
        torch.manual_seed(config.seed * 1_000_003 + processes.rank)
    with ExitStack() as stack:
        if first:
            stack.enter_context(alone_in(config.output))
            for path in (checkpoint, config.output / "best.pt", log):
                forget_unfinished(path)
        if config.resume:
            # Read once the folder is this run's: another may write its last checkpoint until then.
            processes.gathered(None)
            content = checked_to_resume(checkpoint, config, dataset, learned_from)
            resume(checkpoint, content, model, optimiser, amp, config, processes)
            start, best = content["iteration"], content.get("best")
            meter.restore(content["meter"])
            if best is not None and best["split"] != config.val_split:
                best = None
        network = processes.parallel(model)
        cache = ImageCache(config.cache_megabytes * 2**20)
        watch = Stopwatch(device, enabled=config.profile)

        def prepare(iteration: int) -> Batch:
            return make_batch(
                iteration, entries, cache, model, config,
                process=processes.rank, processes=processes.count,
            )  # fmt: skip

        log_file = None
        if first:
            if on_start is not None:
                on_start()
            log_file = stack.enter_context(TrainLog(log, start, tensorboard=config.tensorboard))
            if start and config.keep:  # the run may have been killed between the two files
                keep_checkpoints(checkpoint, start, config.keep)
        line = stack.enter_context(
            ProgressLine(start, config.iterations, enabled=progress and first)
        )
        loader = stack.enter_context(
            Loader(prepare, start, config.iterations, threads=config.loader_threads)
        )
        interrupt = stack.enter_context(Interrupt())
        stack.enter_context(watch.watching(model))

        def save(done: int) -> None:
            states = processes.gathered(random_state(device))
            if log_file is None:  # not the first process
                return
            log_file.sync()
            save_checkpoint(
                checkpoint,
                model,
                optimiser=optimiser.state_dict(),
                iteration=done,
                # The sampler and the schedule are functions of config and iteration.
                config=settings,
                proposals_made_with=store.settings,
                learned_from=learned_from,
                random_state=states[0],
                **({"random_states": states} if len(states) > 1 else {}),
                **({"scaler": amp.scaler.state_dict()} if amp.scaler is not None else {}),
                meter=meter.state(),
                best=best,
            )
            if config.keep:
                keep_checkpoints(checkpoint, done, config.keep)

        saved = start
        for iteration in range(start, config.iterations):
            watch.iterations += 1
            batch = take_together(loader, processes, config.accumulate, iteration, interrupt)
            if isinstance(batch, BaseException):
                if saved < iteration:
                    save(iteration)
                raise batch
            batch, rois = batch.to(device), sum(batch.counts)
            if normalises_rois and min(batch.counts) < 2:
                one = f" in one of its {len(batch.counts)} parts" if len(batch.counts) > 1 else ""
                fewer = ", a smaller accumulate" if one else ""
                raise ValueError(
                    f"iteration {iteration + 1}: the batch of {', '.join(batch.image_ids)} has "
                    f"1 RoI{one}; {model.name} normalises over the RoIs and needs two. Give more "
                    f"proposals{fewer}, a larger rois_per_batch or a lower background_low"
                )
            watch.mark("waiting for data")

            rate = config.learning_rate_at(iteration)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["rate_factor"]
            optimiser.zero_grad(set_to_none=True)
            losses = torch.zeros(2, dtype=torch.float64, device=device)
            parts = batch.parts(config.accumulate)
            for number, part in enumerate(parts, start=1):
                last = number == len(parts)
                with nullcontext() if last else processes.no_sync(network):
                    with amp.forward():
                        logits, deltas = network(part.images, part.rois)
                    watch.mark("fully connected layers")
                    # Of several processes the gradients are averaged: of all RoIs, not of theirs.
                    share = len(part.labels) / rois
                    both = torch.stack(
                        multi_task_loss(
                            logits.float(), deltas.float(), part.labels, part.targets, config.tasks
                        )
                    )
                    losses += share * both.detach().double()
                    loss = both.sum() * (share * processes.count)
                    watch.mark("loss")
                    amp.scaled(loss).backward()
                    watch.mark("backward")
            loss_cls, loss_box, foreground = processes.sums(
                torch.cat([losses, (batch.labels > 0).sum()[None]])
            )
            if not math.isfinite(loss_cls + loss_box):
                advice = "lower learning_rate, or look at these images and their boxes"
                if from_scratch and config.network != "tiny":
                    advice = f"give {config.network} pre-trained weights, {advice}"
                raise FloatingPointError(
                    f"the loss is {loss_cls + loss_box} in iteration {iteration + 1} "
                    f"(classification {loss_cls}, boxes {loss_box}) on images "
                    f"{', '.join(batch.image_ids)}; {advice}. {checkpoint} was not written to"
                )
            amp.step(optimiser)
            watch.mark("optimiser")

            done = iteration + 1
            meter.add_bad_images(batch.skipped)
            meter.add(
                loss_cls, loss_box, images=config.images_per_batch, rois=rois,
                foreground=int(foreground),
            )  # fmt: skip
            line.update(done, meter.loss, rate)
            ends = done == config.iterations
            tests = validation is not None and (done % config.val_every == 0 or ends)
            if done % config.log_every == 0 or tests or ends:
                entry = {"iteration": done, **meter.read(), "learning_rate": rate}
                if validation is not None and tests:
                    entry["val_mAP"] = value = validation.mean_ap(model)
                    meter.start_clock()
                    if best is None or value > best["mAP"]:
                        best = {"split": config.val_split, "iteration": done, "mAP": value}
                        if first:
                            save_checkpoint(
                                config.output / "best.pt", model, iteration=done, best=best,
                                config=settings, proposals_made_with=store.settings,
                                learned_from=learned_from,
                            )  # fmt: skip
                if log_file is not None:
                    log_file.write(entry)
                    if on_log is not None:
                        on_log(entry)
            if done % config.checkpoint_every == 0 or ends:
                save(done)
                saved = done
            watch.mark("log, tests, checkpoints")
        if interrupt.asked:
            raise Stopped(f"resume goes on from iteration {config.iterations}", interrupt.asked)
    return TrainResult(
        model.eval(), checkpoint, log, config.iterations, dataset.problems, unusable, layers,
        list(meter.bad_images), best, watch.means(),
    )  # fmt: skip
