"""AIPerf's report beside the service's own figures of the same run, from known reports."""

from __future__ import annotations

import pytest

from benchmarks.aiperf_load import phase_seconds, report_row, table

METRICS = """\
# TYPE stillmotion_phase_seconds histogram
stillmotion_phase_seconds_bucket{le="1.0",model="a",phase="denoise"} 1.0
stillmotion_phase_seconds_count{model="a",phase="denoise"} 2.0
stillmotion_phase_seconds_sum{model="a",phase="denoise"} 3.0
stillmotion_phase_seconds_count{model="b",phase="denoise"} 1.0
stillmotion_phase_seconds_sum{model="b",phase="denoise"} 0.5
"""
REPORT = {
    "request_latency": {"avg": 2500.0, "p50": 2400.0, "p99": 3000.0},
    "video_inference_time": {"avg": 2200.0},
    "request_error_rate": {"avg": 0.0},
    "completed_request_count": {"avg": 2.0},
    "request_throughput": {"avg": 0.5},
}


def test_phases_are_summed_over_models() -> None:
    assert phase_seconds(METRICS)["denoise"] == (3.5, 3.0)
    assert phase_seconds("")["mux"] == (0.0, 0.0)


def test_a_row_has_only_what_the_run_added() -> None:
    after = METRICS.replace('_count{model="a",phase="denoise"} 2.0', '_count{model="a",phase="denoise"} 4.0')
    after = after.replace('_sum{model="a",phase="denoise"} 3.0', '_sum{model="a",phase="denoise"} 5.0')
    jobs = [
        {"created_at": 10.0, "started_at": 10.5, "completed_at": 12.0},
        {"created_at": 11.0, "started_at": 12.5, "completed_at": 14.0},
    ]
    row = report_row(2, REPORT, METRICS, after, jobs)
    assert row["service_phases_s"]["denoise"] == pytest.approx(1.0)
    assert (row["service_latency_s"], row["service_queued_s"]) == (2.5, 1.0)
    assert (row["aiperf_latency_s"], row["aiperf_videos_per_minute"]) == ([2.5, 2.4, 3.0], 30.0)
    assert "| 2 | 2 | 0% | 2.50, 2.40, 3.00 s | 2.20 s | 30.0 | 2.50 s | 1.00 s | 0.00, 1.00, 0.00, 0.00 s |" in table(
        [row]
    )
