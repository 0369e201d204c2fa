"""What every benchmark promises of its figures, whichever machine it runs on."""

from __future__ import annotations

import weakref
from types import ModuleType

import pytest
import torch


@pytest.fixture
def harness(benchmarks_on_the_path) -> ModuleType:
    import harness

    return harness


def test_every_timed_call_comes_after_an_untimed_one_and_something_else(harness, monkeypatch):
    """Whatever its job is called, and whichever row came before: two rows have the same chances."""
    done = []
    monkeypatch.setattr(harness, "something_else", lambda: done.append("something else"))
    rows = [
        harness.Row(who, job, lambda who=who: done.append(who))
        for who, job in ((harness.OURS, "values, fresh"), ("peer", "values, kept"))
    ]
    harness.interleave(rows, rounds=4)
    calls = [done[i : i + 3] for i in range(0, len(done), 3)]
    assert sorted(who for who, *_ in calls) == 5 * [harness.OURS] + 5 * ["peer"]
    assert all(call == [call[0], "something else", call[0]] for call in calls)


def test_a_plain_call_forward_has_no_floor(harness):
    """It gets huge pages, memory that torch makes does not: what is written there is no floor."""
    import roipool_bench as bench

    problem = bench.Problem(bench.Workload("small", 1, 4, 8, 8, r=3, p=2))
    floors = {row.job for row in bench.forward_rows(problem) if row.who == harness.FLOOR}
    assert floors == {bench.VALUES_KEPT, bench.VALUES_16_BIT, bench.ARGMAX_KEPT}


def test_the_box_loss_has_new_labels_in_every_call(harness):
    import small_calls_bench as bench

    section = bench.box_loss(128, "cpu")
    for row in section.rows:
        chosen = [row.run().ne(0) for _ in range(bench.LABEL_SETS + 1)]
        assert all(not torch.equal(a, b) for a, b in zip(chosen, chosen[1:], strict=False))
        assert torch.equal(chosen[0], chosen[-1])
    assert section.check() == "3 times the same"  # also in every later call


def test_openvinos_operator_finds_the_same_detections(harness):
    pytest.importorskip("openvino")
    import detections_bench as bench

    for section in bench.sections([bench.OpenVino(1)], "cpu"):
        assert [row.who for row in section.rows] == [harness.OURS, "openvino"]
        assert "the same 100 detections" in section.check()


@pytest.mark.parametrize("wrong", range(3))
def test_other_detections_are_not_timed(harness, wrong):
    import detections_bench as bench

    found = torch.ones(2, 4), torch.ones(2), torch.ones(2, dtype=torch.int64)
    other = [t.clone() for t in found]
    other[wrong][1] += 1
    rows = [bench.Row(who, "detections", lambda r=r: r) for who, r in (("a", found), ("b", other))]
    with pytest.raises(SystemExit, match="b: other detections"):
        bench.check_detections(rows)


def test_calls_that_take_long_are_timed_fewer_times(harness, monkeypatch):
    calls: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for seconds, count in ((1e-4, 30), (1.1e-3, 30), (0.005, 10), (0.2, 1)):
        calls.clear()
        monkeypatch.setattr(harness.time, "perf_counter", lambda s=seconds: s * len(calls))
        assert harness.synchronised_clock(lambda: calls.append(0)) == pytest.approx(seconds)
        assert len(calls) == 1 + count


def test_results_are_kept_so_that_the_next_is_not_made_in_the_cache(harness):
    from roipool_bench import floor, rotate

    x = torch.ones(3)
    run = rotate([lambda: floor([x], fresh=[x])[0] for _ in range(3)])
    results = [weakref.ref(run()) for _ in range(4)]
    assert [result() is not None for result in results] == [False, True, True, True]
