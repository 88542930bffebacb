"""Names that are made: never twice, whoever draws them."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor

from mesh import ids


def some(count: int) -> list[str]:
    return [ids.job_id() for _ in range(count)]


def test_job_ids_are_unique_and_in_order_of_time():
    """Also when many threads draw from one heap at once."""
    with ThreadPoolExecutor(4) as pool:
        drawn = [id for each in pool.map(some, [2_000] * 8) for id in each]
    assert len(set(drawn)) == len(drawn)
    assert all(re.fullmatch(r"[0-9a-f]{28}", id) for id in drawn)
    times = [id[:12] for id in some(2_000)]
    assert times == sorted(times)


def test_a_forked_process_draws_for_itself():
    """What was drawn ahead belongs to the parent."""
    ids.job_id()
    there, here = os.pipe()
    child = os.fork()
    if not child:
        os.write(here, "".join(id[12:] for id in some(100)).encode())
        os._exit(0)
    os.close(here)
    with os.fdopen(there) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    theirs = {text[at : at + 16] for at in range(0, len(text), 16)}
    assert len(theirs) == 100
    assert not theirs & {id[12:] for id in some(300)}
