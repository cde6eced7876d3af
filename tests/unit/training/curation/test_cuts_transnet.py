"""Runs of probabilities to cuts."""

import numpy as np

from training.curation.cuts_transnet import to_cuts

TIMES = [k / 10 for k in range(40)]


def test_a_short_run_is_a_hard_cut_after_its_peak_and_a_long_one_a_transition() -> None:
    likely = np.zeros(40, np.float32)
    likely[9] = 0.9
    likely[20:26] = 0.7
    hard, slow = to_cuts(likely, TIMES, "s")
    assert (hard.kind, hard.time_s, hard.start_s, hard.end_s) == ("hard", 1.0, 1.0, 1.0)
    assert (slow.kind, slow.start_s, slow.end_s) == ("dissolve", 2.1, 2.6)
    assert {hard.level, slow.level} == {"transnet"}


def test_a_run_that_lasts_to_the_end_is_no_cut() -> None:
    likely = np.zeros(40, np.float32)
    likely[38:] = 0.9
    assert to_cuts(likely, TIMES, "s") == []
    assert to_cuts(np.zeros(40, np.float32), TIMES, "s") == []
