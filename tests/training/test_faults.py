"""What may happen to a long run: kills, full disks, bad and missing files; nothing is lost."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from io import FileIO
from pathlib import Path

import pytest
import torch

from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.files import alone_in, write_row
from fastrcnn_engine.training import load_checkpoint, load_network, loop, train
from fastrcnn_engine.training.distributed import Processes
from fastrcnn_engine.training.log import Meter, TrainLog
from fastrcnn_engine.training.validation import Validation

from .small import assert_same_checkpoint, lines_of, own_network


def run(config, **options):
    return train(config, model=own_network(), progress=False, **options)


def at(iteration, action):
    """An on_log that does something after an iteration."""
    return lambda line: action() if line["iteration"] == iteration else None


KILLED = """
import os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fastrcnn_engine.training import TrainConfig, train

folder = Path(sys.argv[2])
config = TrainConfig(
    data=folder / "voc", proposals=folder / "proposals.npz", output=folder / "whole",
    split="train", network="tiny", iterations=14, warmup=0, learning_rate=0.01, short_side=72,
    max_side=96, log_every=3, checkpoint_every=1, keep=2,
)

def start(config):  # everything is imported already, so a start is quick
    child = os.fork()
    if child == 0:
        train(config, progress=False)
        os._exit(0)
    return child

assert os.waitpid(start(config), 0)[1] == 0
config = replace(config, output=folder / "killed")
kills, rng = 0, random.Random(4)
while True:
    resume = (config.output / "checkpoint.pt").exists()
    child = start(replace(config, resume=resume))
    if kills < 7:
        time.sleep(rng.uniform(0.1, 0.9))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        assert status == 0
        break
    kills += 1
print(kills)
"""


def test_killed_at_any_moment_a_run_ends_as_if_nothing_had_happened(voc, tmp_path):
    tests = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tests), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3, "hardly anything was interrupted"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert_same_checkpoint(whole / "checkpoint.pt", killed / "checkpoint.pt")
    assert lines_of(whole / "log.jsonl") == lines_of(killed / "log.jsonl")
    names = {"checkpoint.pt", "checkpoint-13.pt", "checkpoint-14.pt", "log.jsonl"}
    assert names == {path.name for path in whole.iterdir()}
    # What was being written when the last kill came may still lie there; nothing reads it.
    assert names == {p.name for p in killed.iterdir() if not p.name.endswith(".partial")}


def test_the_next_run_takes_away_what_a_killed_one_left(voc):
    voc.output.mkdir()
    names = ("checkpoint.pt", "best.pt", "log.jsonl")
    left = [voc.output / f".{name}.0123abcd.partial" for name in names]
    for path in left:
        path.touch()
        os.utime(path, (0, 0))
    run(replace(voc, iterations=2))
    assert not [path for path in left if path.exists()]


@pytest.fixture
def file_size():
    """Sets how large a file may become; to whoever writes it looks like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("full", ["checkpoint.pt", "log.jsonl", "checkpoint-6.pt"])
def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(
    voc, tmp_path, file_size, full, monkeypatch
):
    voc = replace(voc, iterations=8, log_every=1, checkpoint_every=3)
    whole = run(replace(voc, output=tmp_path / "whole"))
    out = voc.output
    if full == "checkpoint-6.pt":  # where a file system has no links, it is a copy
        voc = replace(voc, keep=1)

        def no_link(*_):
            file_size(1000)
            raise OSError("no links here")

        press = at(5, lambda: monkeypatch.setattr(os, "link", no_link))
    else:
        log = out / "log.jsonl"  # ten bytes of a line still fit
        press = at(4, lambda: file_size(20_000 if log.name != full else log.stat().st_size + 10))
    with pytest.raises(OSError, match=rf"cannot write .*{full}: File too large") as error:
        run(voc, on_log=press)
    kept = 6 if full == "checkpoint-6.pt" else 3
    monkeypatch.undo()
    file_size(resource.RLIM_INFINITY)
    assert "\n" not in str(error.value)
    assert not list(out.glob("*.partial"))
    assert load_checkpoint(out / "checkpoint.pt")["iteration"] == kept
    resumed = run(replace(voc, resume=True, keep=0))
    assert_same_checkpoint(whole.checkpoint, resumed.checkpoint, "/config/keep")
    assert lines_of(whole.log) == lines_of(resumed.log)


def test_a_second_run_in_the_folder_of_one_at_work_is_refused(voc):
    def again():
        for resume in (False, True):
            with pytest.raises(ValueError, match=f"another run is at work in {voc.output}; wait"):
                run(replace(voc, resume=resume), on_start=lambda: pytest.fail("began"))

    whole = run(replace(voc, checkpoint_every=1), on_log=at(2, again))
    assert [line["iteration"] for line in lines_of(whole.log)] == [2, 4, 6]


def test_a_checkpoint_is_read_when_the_folder_is_the_run_s(voc, monkeypatch):
    run(replace(voc, iterations=2))
    read = loop.checked_to_resume

    def first_asked(*arguments):
        with pytest.raises(ValueError, match="another run is at work"), alone_in(voc.output):
            pytest.fail("another run might write a checkpoint after this one was read")
        return read(*arguments)

    monkeypatch.setattr(loop, "checked_to_resume", first_asked)
    whole = run(replace(voc, resume=True))
    assert load_checkpoint(whole.checkpoint)["iteration"] == voc.iterations


def test_an_output_that_cannot_be_written_is_told_before_the_training(voc, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/run"):
        run(replace(voc, output=tmp_path / "file" / "run"), on_log=lambda _: pytest.fail("trained"))


def test_a_missing_image_stops_the_run_where_it_can_go_on(voc, tmp_path):
    voc = replace(voc, iterations=9, log_every=1, checkpoint_every=4, cache_megabytes=0)
    whole = run(replace(voc, output=tmp_path / "whole"))
    images, away = voc.data / "JPEGImages", tmp_path / "away"
    with pytest.raises(OSError, match=r"\w+.png: no such image file; stopped after iter") as error:
        run(voc, on_log=at(2, lambda: images.rename(away)))
    done = load_checkpoint(voc.output / "checkpoint.pt")["iteration"]
    assert 2 <= done < 9 and f"stopped after iteration {done}, --resume goes on" in str(error.value)
    away.rename(images)
    resumed = run(replace(voc, resume=True))
    assert_same_checkpoint(whole.checkpoint, resumed.checkpoint)
    assert lines_of(whole.log) == lines_of(resumed.log)


@pytest.mark.parametrize("left", ["header", "name", "nothing"])
def test_bad_images_stop_the_run_or_are_replaced_and_told(voc, tmp_path, left):
    header = left == "header"  # which tells the size
    voc = replace(voc, iterations=9, log_every=2, checkpoint_every=5, cache_megabytes=0)
    good = run(replace(voc, output=tmp_path / "good"))
    path = voc.data / "JPEGImages" / "third.png"
    path.write_bytes(path.read_bytes()[:5000] if header else b"")
    if left == "nothing":
        path.unlink()
    with pytest.raises((OSError, ValueError), match=r"third\.png"):
        run(voc)
    skip = replace(voc, on_bad_image="skip")
    whole = run(replace(skip, output=tmp_path / "whole"))
    assert len(whole.bad_images) == 1 and whole.bad_images[0].startswith("third: ")
    told = [line["bad_images"] for line in lines_of(whole.log) if "bad_images" in line]
    assert told == [["third"]]
    # Another image takes the place, so batches are whole; until then nothing is different.
    first = next(i for i, line in enumerate(lines_of(whole.log)) if "bad_images" in line)
    assert lines_of(whole.log)[:first] == lines_of(good.log)[:first]
    # A run that a bad image has stopped goes on without it, to the same end.
    resumed = run(replace(skip, resume=(voc.output / "checkpoint.pt").exists()))
    assert_same_checkpoint(whole.checkpoint, resumed.checkpoint)
    assert lines_of(whole.log) == lines_of(resumed.log)
    assert resumed.bad_images == whole.bad_images
    why = "third.png: no such image file" if left == "nothing" else "third.png: not readable"
    assert [problem for problem in whole.problems if why in problem] == (
        [] if header else whole.problems
    )
    assert header or whole.problems[0].endswith("the stated size, 96x72, is used")
    for path in (voc.data / "JPEGImages").iterdir():
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="none of the 4 images can be read"):
        run(replace(skip, output=tmp_path / "none"))


def scalars(folder):
    """name -> [(iteration, value)] of the only event file in a folder, as TensorBoard reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = folder.iterdir()
    events = EventAccumulator(str(path))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


@pytest.mark.parametrize(
    "line", [b'{"iter', b"{}\n", b"[2]\n", b"7\n", b"\xff\n", b"[" * 10**5 + b"\n"]
)
def test_a_log_goes_on_after_its_last_good_line(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"iteration": 1}\n' + line)
    with TrainLog(path, start=5) as log:
        log.write({"iteration": 6})
    assert [row["iteration"] for row in lines_of(path)] == [1, 6]


def test_a_line_that_is_taken_in_pieces_is_whole(tmp_path):
    class Slow(FileIO):
        def write(self, data):
            return super().write(data[:3])

    with Slow(tmp_path / "log.jsonl", "w") as file:
        for iteration in (1, 2):
            write_row(file, {"iteration": iteration}, "the log")
    assert lines_of(tmp_path / "log.jsonl") == [{"iteration": 1}, {"iteration": 2}]


def test_the_first_line_of_a_resumed_run_knows_what_came_before():
    meter, resumed = Meter(), Meter()
    meter.add(1.0, 0.5, images=1000, rois=64, foreground=16)
    meter.add_bad_images(["a: why"])
    resumed.restore(json.loads(json.dumps(meter.state())))
    resumed.add(0.0, 0.5, images=0, rois=32, foreground=0)
    line = resumed.read()
    assert (line["loss"], line["loss_cls"], line["rois"], line["foreground"]) == (1.0, 0.5, 48, 8)
    assert line["images_per_second"] == 0, "those of before took other seconds"
    assert line["bad_images"] == ["a"]


def test_tensorboard_shows_the_log_also_after_a_kill(voc, tmp_path):
    voc = replace(voc, iterations=8, log_every=1, checkpoint_every=3, val_split="train",
                  val_every=4)  # fmt: skip

    def stop():
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(replace(voc, tensorboard=True), on_log=at(5, stop))
    shown = scalars(voc.output / "tensorboard")
    assert [step for step, _ in shown["loss"]] == [1, 2, 3, 4, 5]
    result = run(replace(voc, resume=True, tensorboard=True))
    shown = scalars(voc.output / "tensorboard")
    lines = [json.loads(line) for line in result.log.read_text().splitlines()]
    assert shown.keys() == set().union(*lines) - {"iteration"}
    for name, values in shown.items():
        expected = [(line["iteration"], line[name]) for line in lines if name in line]
        assert [step for step, _ in values] == [step for step, _ in expected]
        # TensorBoard keeps float32.
        assert [v for _, v in values] == pytest.approx([v for _, v in expected], rel=1e-6)
    plain = run(replace(voc, output=tmp_path / "plain"))
    assert not (tmp_path / "plain" / "tensorboard").exists()
    assert_same_checkpoint(plain.checkpoint, result.checkpoint, "/config/tensorboard")
    # A new run shows itself alone.
    run(replace(voc, iterations=2, val_split=None, tensorboard=True))
    assert [step for step, _ in scalars(voc.output / "tensorboard")["loss"]] == [1, 2]


def test_a_missing_tensorboard_is_told_before_the_training(voc, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        run(replace(voc, tensorboard=True), on_log=lambda _: pytest.fail("trained"))
    assert not voc.output.exists()


def test_sigterm_is_a_ctrl_c(voc):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    kill = at(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt, match="resume goes on from iteration 4") as stopped:
        run(replace(voc, checkpoint_every=100), on_log=kill)
    assert stopped.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert load_checkpoint(voc.output / "checkpoint.pt")["iteration"] == 4


def test_kept_checkpoints_are_those_of_their_iterations(voc):
    (voc.output).mkdir()
    mine = {"checkpoint-mine.pt", "checkpoint-1.pt.old"}
    for name in mine:
        (voc.output / name).touch()
    voc = replace(voc, iterations=13, checkpoint_every=4, keep=3)
    result = run(voc)
    numbered = {p.name for p in voc.output.glob("checkpoint-*")}
    assert numbered == {"checkpoint-8.pt", "checkpoint-12.pt", "checkpoint-13.pt"} | mine
    for iteration in (8, 12, 13):
        kept = load_checkpoint(voc.output / f"checkpoint-{iteration}.pt")
        assert kept["iteration"] == iteration
    assert_same_checkpoint(result.checkpoint, voc.output / "checkpoint-13.pt")
    assert lines_of(result.log)[-1]["iteration"] == 13, "the last line, though not due"
    # A kill between the two files, the second one begun.
    last = voc.output / "checkpoint-13.pt"
    last.rename(last.with_name("checkpoint-13.pt.partial"))
    run(replace(voc, resume=True))
    assert_same_checkpoint(result.checkpoint, last)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_the_log_before_it(
    voc, monkeypatch
):
    """What a power cut leaves is a whole checkpoint, and no line of the log is older than it."""
    steps, fsync, put = [], os.fsync, os.replace

    def synced(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append(re.sub(r"^\.(.*)\.\w{8}\.partial$", r"unfinished \1", path.name))
        fsync(descriptor)
        whole[path.name] = os.fstat(descriptor).st_size

    def moved(source, target):
        assert os.stat(source).st_size == whole[Path(source).name], "all of it was synced"
        steps.append(Path(target).name)
        put(source, target)

    whole = {}
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    run(replace(voc, iterations=2, checkpoint_every=2))
    assert steps == [
        "unfinished log.jsonl", "log.jsonl", "run",  # what is left of one there was
        "log.jsonl", "unfinished checkpoint.pt", "checkpoint.pt", "run",
    ]  # fmt: skip


def test_a_validation_split_without_objects_is_refused_before_the_training(voc):
    """It has no mAP, and the second None could not be compared with the first."""
    (voc.data / "ImageSets/Main/bare.txt").write_text("empty\n")
    (voc.data / "ImageSets/Main/hard.txt").write_text("second\n")  # none that a test counts
    hard = voc.data / "Annotations" / "second.xml"
    hard.write_text(hard.read_text().replace("<difficult>0", "<difficult>1"))
    for split in ("bare", "hard"):
        with pytest.raises(ValueError, match=f"val_split is '{split}': none of its 1 images has"):
            train(replace(voc, val_split=split), progress=False)
    assert not (voc.output / "checkpoint.pt").exists()


def test_a_validation_image_without_proposals_is_named_before_the_training(voc):
    (voc.data / "ImageSets/Main/more.txt").write_text("first\nfourth\n")
    for folder, suffix in (("JPEGImages", ".png"), ("Annotations", ".xml")):
        path = voc.data / folder / f"first{suffix}"
        path.with_stem("fourth").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="no proposals for image 'fourth'"):
        train(replace(voc, val_split="more"), progress=False)
    assert not (voc.output / "log.jsonl").exists()


def test_an_image_of_the_validation_split_that_cannot_be_read_loses_no_iteration(voc):
    voc = replace(voc, iterations=6, checkpoint_every=6, val_split="train", val_every=6,
                  log_every=1)  # fmt: skip
    path = voc.data / "JPEGImages" / "third.png"
    good = path.read_bytes()
    path.write_bytes(good[:5000])  # the size is there, pixels are not
    broken = replace(voc, val_every=2, on_bad_image="skip")
    with pytest.raises(ValueError, match=r"third\.png: not.*after iteration 2, --resume goes on"):
        run(broken)
    assert load_checkpoint(voc.output / "checkpoint.pt")["iteration"] == 2
    path.write_bytes(good)
    resumed = run(replace(voc, on_bad_image="skip", resume=True))
    assert load_checkpoint(resumed.checkpoint)["iteration"] == 6
    lines = lines_of(resumed.log)
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert ["val_mAP" in line for line in lines] == [False] * 5 + [True]


def test_processes_that_test_together_all_go_to_the_end(voc):
    """They wait for each other on the way, whichever image is bad."""
    seen = []

    class Two(Processes):
        def share(self, items):
            for item in items:
                seen.append(item.image_id)
                yield item

        def gathered(self, value):
            return [value, ({}, None)]

    two = Two(0, 2, torch.device("cpu"))
    own = Validation(voc.data, "train", own_network().classes, ProposalStore(voc.proposals), two)
    (voc.data / "JPEGImages" / f"{own.dataset.records[0].image_id}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="png: not readable"):
        own.mean_ap(own_network())
    assert seen == [record.image_id for record in own.dataset.records] and len(seen) == 4


def test_the_best_network_on_a_validation_split_is_kept(voc, tmp_path):
    voc = replace(voc, network="tiny", iterations=10, log_every=4, checkpoint_every=5,
                  val_split="train", val_every=3)  # fmt: skip
    plain = train(replace(voc, val_split=None, output=tmp_path / "plain"), progress=False)
    whole = train(replace(voc, output=tmp_path / "whole"), progress=False)
    # Testing changes nothing of the training, and what was found is in the log.
    assert_same_checkpoint(
        plain.checkpoint, whole.checkpoint, "/config/val_split", "/best", "/meter"
    )
    rows = [row for row in lines_of(whole.log) if "val_mAP" in row]
    assert [row["iteration"] for row in rows] == [3, 6, 9, 10]  # and at the end
    best = max(rows, key=lambda row: row["val_mAP"])
    assert whole.best == {"split": "train", "iteration": best["iteration"], "mAP": best["val_mAP"]}
    content = load_checkpoint(whole.checkpoint.with_name("best.pt"))
    assert content["iteration"] == best["iteration"] and content["best"] == whole.best
    assert load_network(whole.checkpoint.with_name("best.pt")).name == "tiny"

    parts = replace(voc, output=tmp_path / "parts")

    def stop():
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(parts, progress=False, on_log=at(8, stop))
    resumed = train(replace(parts, resume=True), progress=False)
    assert_same_checkpoint(whole.checkpoint, resumed.checkpoint)
    assert lines_of(whole.log) == lines_of(resumed.log)
    assert json.dumps(resumed.best) == json.dumps(whole.best)
    # The best on another split is another question.
    (voc.data / "ImageSets/Main/one.txt").write_text("third\n")
    other = train(replace(parts, iterations=11, learning_rate_steps=(7,), val_split="one",
                          resume=True), progress=False)  # fmt: skip
    assert (other.best["split"], other.best["iteration"]) == ("one", 11)
