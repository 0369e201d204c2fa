"""What every writer of a file promises, whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fastrcnn_engine import files
from fastrcnn_engine.commands import bulk
from fastrcnn_engine.commands.detection import expand_folders
from fastrcnn_engine.data.proposals import Search, compute_proposals, write_proposals
from fastrcnn_engine.evaluation.export import export_onnx
from fastrcnn_engine.files import crc32_of, forget_unfinished, whole_file, write_json, write_whole
from fastrcnn_engine.models import build_network
from fastrcnn_engine.training import save_checkpoint
from fastrcnn_engine.training.checkpoint import keep_checkpoints
from fastrcnn_engine.training.log import TrainLog

MODEL = build_network("tiny", ["cat"]).eval()


def write_log(path):
    with TrainLog(path, 0):
        pass


WRITERS = {
    "page.html": lambda path: write_whole(path, "<p>"),
    "metrics.json": lambda path: write_json(path, {"mAP": 1}),
    "proposals.npz": lambda path: write_proposals(path, [("a", np.zeros((1, 4)))]),
    "detector.onnx": lambda path: export_onnx(MODEL, path),
    "checkpoint.pt": lambda path: save_checkpoint(path, MODEL),
    "log.jsonl": write_log,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_on_the_disk_before_it_takes_the_place_of_another(name, tmp_path, monkeypatch):
    path, write = tmp_path / "new" / name, WRITERS[name]
    write(path)
    whole = path.read_bytes()
    assert list(path.parent.iterdir()) == [path]
    path.write_text("old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error:
        write(path)
    told = f"cannot write {path}: No space left on device; what was there is untouched"
    assert str(error.value) == told
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    monkeypatch.undo()
    write(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", WRITERS)
def test_who_may_read_and_write_a_file_stays(name, tmp_path):
    path = tmp_path / name
    for mode in (0o664, 0o600):
        path.touch()
        path.chmod(mode)
        WRITERS[name](path)
        assert path.stat().st_mode & 0o777 == mode and path.stat().st_size + (name == "log.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_that_is_full_is_named():
    with pytest.raises(OSError, match="^cannot write /dev/full: No space left on device$"):
        write_whole(Path("/dev/full"), "page")


def test_what_is_left_beside_the_target_of_a_link_is_found(tmp_path):
    (tmp_path / "link.npz").symlink_to(tmp_path / "there" / "proposals.npz")
    left = tmp_path / "there" / ".proposals.npz.0123abcd.partial"
    left.parent.mkdir()
    left.touch()
    os.utime(left, (0, 0))
    forget_unfinished(tmp_path / "link.npz")
    assert not left.exists()


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "page")
    assert os.read(reader, 10) == b"page" and pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]
    os.close(reader)


def test_a_part_of_parquet_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    parts = bulk.ParquetParts(tmp_path / "parts")
    parts.add({"image": "a", "error": "none"})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt), parts:
        pass
    assert not list((tmp_path / "parts").iterdir())
    monkeypatch.undo()
    with parts:
        pass
    assert bulk.ParquetParts(tmp_path / "parts").known == {"a": True}


def test_what_goes_wrong_for_another_reason_is_told_as_it_is(tmp_path):
    path = tmp_path / "file"
    for error in (ValueError("no"), FileNotFoundError("a.jpg: no such image file"),
                  PermissionError(errno.EACCES, "no", "other")):  # fmt: skip
        with pytest.raises(type(error)) as raised, whole_file(path) as file:
            file.write(b"half")
            raise error
        assert raised.value is error and not list(tmp_path.iterdir())


def test_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([65 + i]) * 300_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_whole(path, content), contents))
    assert path.read_bytes() in contents and list(tmp_path.iterdir()) == [path]


def test_a_folder_without_locks_is_nobody_s_alone(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with files.alone_in(tmp_path / "run"), files.alone_in(tmp_path / "run"):
        pass
    monkeypatch.setattr(files, "fcntl", None)  # Windows
    with files.alone_in(tmp_path / "other"), files.alone_in(tmp_path / "other"):
        assert (tmp_path / "other").is_dir()
    with files.one_at_a_time(tmp_path / "a", None), files.one_at_a_time(tmp_path / "a", None):
        pass  # nobody waits


def test_whoever_waited_locks_out_the_next_too(tmp_path):
    """The first takes the locked file away, while the second waits for it and the third comes."""
    inside, most, done = [], [], []

    def work(number):
        for _ in range(50):
            with files.one_at_a_time(tmp_path / "a", lambda: None):
                inside.append(number)
                most.append(len(inside))
                time.sleep(1e-4)
                inside.remove(number)
        done.append(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(done) == 4 and max(most) == 1 and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_makes_nobody_wait(tmp_path):
    (tmp_path / "file").touch()
    with files.one_at_a_time(tmp_path / "file" / "a", lambda: None):
        pass


@pytest.mark.parametrize("name", ["a" * 255, "\u00fc" * 127, "a[b]*.npz"])
def test_any_name_will_do(name, tmp_path):
    write_whole(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_that_is_no_utf8_is_spelt_out_in_a_text(tmp_path):
    name = os.fsdecode(b"a\xff.png")  # as Linux may have them
    write_whole(tmp_path / "page", f"<p>{name} \u00fc")
    assert (tmp_path / "page").read_bytes() == b"<p>a\\udcff.png \xc3\xbc"


KILLED = """
import os, pathlib, signal, sys
from fastrcnn_engine.files import whole_file

with whole_file(pathlib.Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_is_no_image_and_is_taken_away_in_time(tmp_path):
    path, other = tmp_path / "a[1].png", tmp_path / ".a[1].png.of-somebody"
    for one in (path, other):
        one.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert done.returncode == -signal.SIGKILL and path.read_text() == "old"
    (left,) = set(tmp_path.iterdir()) - {path, other}
    assert left.name.startswith(".a[1].png.") and left.read_text() == "half"
    assert expand_folders([tmp_path]) == [path]
    forget_unfinished(path)
    assert left.exists()  # another process may be writing it
    hours_ago = time.time() - 2 * 3600
    for one in (left, other):
        os.utime(one, (hours_ago, hours_ago))
    forget_unfinished(tmp_path / "a1.png")
    assert left.exists()
    forget_unfinished(path)
    assert set(tmp_path.iterdir()) == {path, other}


def test_the_next_search_takes_away_what_a_killed_one_left(tmp_path):
    left = tmp_path / ".p.npz.0123abcd.partial"
    left.touch()
    os.utime(left, (0, 0))
    compute_proposals([], tmp_path / "p.npz", Search("grid"), progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


@pytest.mark.parametrize("name", sorted(set(WRITERS) - {"checkpoint.pt", "log.jsonl"}))
def test_what_a_link_leads_to_is_written(name, tmp_path):
    path = tmp_path / name
    path.symlink_to(tmp_path / "elsewhere" / name)
    for _ in range(2):
        WRITERS[name](path)
        assert path.is_symlink() and path.stat().st_size
    assert len(list(tmp_path.rglob(f"*{name}*"))) == 2


def test_a_link_to_the_checkpoint_of_another_run_leaves_that_one_alone(tmp_path):
    first, second = tmp_path / "first/checkpoint.pt", tmp_path / "second/checkpoint.pt"
    save_checkpoint(first, MODEL, iteration=1)
    before = first.read_bytes()
    second.parent.mkdir()
    second.symlink_to(first)
    keep_checkpoints(second, 1, keep=2)
    save_checkpoint(second, MODEL, iteration=2)
    keep_checkpoints(second, 2, keep=2)
    assert first.read_bytes() == before != second.read_bytes()
    save_checkpoint(first, MODEL, iteration=3)
    kept = [Path(second.parent, f"checkpoint-{i}.pt").read_bytes() for i in (1, 2)]
    assert kept == [before, second.read_bytes()]


def test_the_newest_checkpoint_is_kept_beside_later_ones_of_another_run(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for iteration in (40, 50):
        path.with_name(f"checkpoint-{iteration}.pt").touch()
    for iteration in (10, 20, 30):
        save_checkpoint(path, MODEL, iteration=iteration)
        keep_checkpoints(path, iteration, keep=2)
    assert sorted(int(p.stem[11:]) for p in tmp_path.glob("checkpoint-*")) == [20, 30, 40, 50]


def test_a_link_to_the_log_of_another_run_leaves_that_one_alone(tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text('{"iteration": 1}\n{"iteration": 2}\n')
    second.symlink_to(first)
    with TrainLog(second, 1) as log:
        log.write({"iteration": 2, "loss": 0.5})
    assert first.read_text() == '{"iteration": 1}\n{"iteration": 2}\n'
    assert second.read_text() == '{"iteration": 1}\n{"iteration": 2, "loss": 0.5}\n'


def test_the_checksum_of_a_file_is_that_of_all_its_parts(tmp_path):
    for content in (b"", b"a", bytes(range(256)) * 2**13):
        (tmp_path / "file").write_bytes(content)
        assert crc32_of(tmp_path / "file") == f"{zlib.crc32(content):08x}"
