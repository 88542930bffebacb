"""Request smuggling: what two servers could read differently is refused, or read as exactly the requests that it is."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from gateway_front import Front
from gateway_shop import open_shop
from smuggling_shapes import LENIENT_IN_PYTHON, SHAPES, SMUGGLED, Shape, answers

HERE = Path(__file__).parent


def test_there_are_enough_shapes() -> None:
    assert len({shape.name for shape in SHAPES}) == len(SHAPES) > 100


@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
async def test_a_shape_has_the_answers_that_a_strict_proxy_expects(front: Front, shape: Shape) -> None:
    """A refused one has one answer, and the connection ends: nothing behind it is read."""
    open_shop(front.node)
    statuses, received, ended = await answers(front.address, shape)
    assert ended
    if shape.refused:
        assert (tuple(statuses), SMUGGLED in received) == (shape.answers, False)
    else:
        assert tuple(statuses) == (*shape.answers, 200)
        assert received.endswith(b'"Hello, last!"')


async def test_the_parser_in_python_lets_no_other_request_through() -> None:
    """It runs where aiohttp has no compiled parser. It reads a few shapes more leniently; these are known."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "smuggling_shapes.py"),
        env={
            **os.environ,
            "AIOHTTP_NO_EXTENSIONS": "1",
            "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parents[1]))),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    told, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    assert set(json.loads(told.splitlines()[-1])) <= LENIENT_IN_PYTHON
