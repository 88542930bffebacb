"""What other programs say: wrk's report and the kernel's account of memory."""

from __future__ import annotations

import os

import pytest

from benchmarks import memory, wrk
from benchmarks.children import ChildFailed

REPORT = """\
Running 3s test @ http://127.0.0.1:8080/hello
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     4.11ms    1.02ms  14.20ms   90.20%
    Req/Sec    15.60k     1.10k   17.02k    70.00%
  Latency Distribution
     50%  812.00us
     75%    4.20ms
     90%    5.01ms
     99%    1.20s
  46712 requests in 3.00s, 8.11MB read
"""


def test_a_report_of_wrk_is_read_in_one_unit():
    """Whatever unit wrk chooses, figures are in microseconds."""
    figures = wrk.read(REPORT + "Requests/sec:  15570.12\nTransfer/sec:      2.70MB\n")
    assert figures == {"requests_per_s": 15570.12, "p50_us": 812.0, "p99_us": 1.2e6, "bad": 0.0}


def test_what_was_not_answered_well_is_counted():
    """Speed bought with errors shows."""
    errors = "  Socket errors: connect 0, read 3, write 0, timeout 2\n  Non-2xx or 3xx responses: 10\n"
    assert wrk.read(REPORT + errors + "Requests/sec:  15570.12\n")["bad"] == 15


def test_what_is_no_report_is_an_error_with_its_words():
    """wrk writes to stdout that it cannot connect."""
    with pytest.raises(ChildFailed, match="unable to connect"):
        wrk.read("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_memory_is_read_in_megabytes():
    """Pss and Rss of the rollup, not of their parts."""
    text = "5580 ---p 00000000 00:00 0 [rollup]\nRss:  40000 kB\nPss:  30000 kB\nPss_Anon:  20000 kB\n"
    assert memory.read(text) == {"pss_mb": 30.72, "rss_mb": 40.96}
    assert memory.of_process(os.getpid())["pss_mb"] > 1
