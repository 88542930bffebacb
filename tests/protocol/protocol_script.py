"""Scripts of two protocol machines: who does what, line by line, as a table.

Nothing moves by itself. What an end writes waits on the wire until the other end `hears` it, so a script says exactly
what crosses what. A line is `end | verb arguments`:

    connected              the connection stands
    call TARGET [BODY]     open TARGET WINDOW      cancel ID      grant ID ITEMS      ping NUMBER      (caller)
    reply ID [BODY]        error ID CODE           refuse ID CODE                                      (callee)
    item ID [BODY]         end ID                  goodbye REASON                                      (callee)
    raw [kind, …]          write this message, whatever the machine thinks of it
    hears A, B, …          everything on the wire arrives; exactly these come out of the machine, in order
    hears nothing
    breaks WORDS           everything on the wire arrives and is a ProtocolViolation whose message has these words
    wrote A, B, …          what it has written and not yet sent, which stays where it is
    owes 1, 2              the ids in its `calls`; `owes nothing`
    is STATE               of its link
    loses 1, 2             the connection goes; these calls are reported; `loses nothing`
    parted yes|no          whether the goodbye has been acknowledged                                   (callee)

A message is shown as its kind and its required fields: `reply 1 hello`, `refused 2 draining`, `-` for an empty body.
After `hears` the last of them may be left out.
"""

from __future__ import annotations

import ast
from typing import Any

import pytest

from mesh.errors import BY_CODE, MeshError, ProtocolViolation, ServiceError
from mesh.protocol.callee import Callee
from mesh.protocol.caller import Caller
from mesh.protocol.codec import Buffer, Reader, one
from mesh.protocol.messages import ERROR, GRAMMAR, NAMES, REFUSED

MIB = 1024 * 1024


def shown(message: list[Any]) -> str:
    """A message as scripts write it: bodies as text, an error map as its code, optional fields left out."""
    kind, *fields = message
    _, required, _ = GRAMMAR[kind]
    words = [NAMES[kind]]
    if kind in (ERROR, REFUSED):
        return f"{NAMES[kind]} {fields[0]} {fields[1]['code']}"
    for field in fields[:required]:
        if isinstance(field, (bytes, bytearray, memoryview)):
            words.append(bytes(field).decode("utf-8", "replace") or "-")
        else:
            words.append(str(field))
    return " ".join(words)


def _error(code: str) -> MeshError:
    return BY_CODE[code]("as scripted") if code in BY_CODE else ServiceError("as scripted")


class Script:
    """A caller and a callee, and what is on the wire between them."""

    def __init__(self, *, credit: int = 4, max_body: int = MIB) -> None:
        self.caller = Caller("ann-1", 100, max_body)
        self.callee = Callee("bob-1", 200, credit, max_body)
        self._ends: dict[str, Caller | Callee] = {"caller": self.caller, "callee": self.callee}
        self._wire: dict[str, list[list[Buffer]]] = {"caller": [], "callee": []}  # to that end

    def play(self, text: str) -> None:
        """Do what the lines say; an AssertionError names the line that went otherwise."""
        for line in text.strip().splitlines():
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            who, _, rest = line.partition("|")
            verb, _, words = rest.strip().partition(" ")
            try:
                self._step(who.strip(), verb, words.strip())
            except AssertionError as failure:
                raise AssertionError(f"{line!r}: {failure}") from None

    def _step(self, who: str, verb: str, words: str) -> None:
        end = self._ends[who]
        other = "callee" if who == "caller" else "caller"
        expectation = getattr(self, f"_{verb}", None)
        if expectation is not None:
            # What the other end wrote so far is on its way.
            self._wire[who] += self._ends[other].data_to_send()
            expectation(who, end, words)
            return
        getattr(self, f"_{who}_{verb}")(*words.split(" ") if words else ())

    # --- what both may do and be asked ------------------------------------------------------------

    def _connected(self, who: str, end: Any, words: str) -> None:
        end.connected()

    def _raw(self, who: str, end: Any, words: str) -> None:
        other = "callee" if who == "caller" else "caller"
        self._wire[other] += [*end.data_to_send(), [one(*ast.literal_eval(words))]]

    def _hear(self, who: str, end: Any) -> list[str]:
        arrived, self._wire[who] = self._wire[who], []
        return [shown(message) for frames in arrived for message in end.receive(frames)]

    def _hears(self, who: str, end: Any, words: str) -> None:
        expected = [] if words == "nothing" else [part.strip() for part in words.split(",")]
        heard = self._hear(who, end)
        assert len(heard) == len(expected), f"heard {heard}"
        for message, wanted in zip(heard, expected, strict=True):
            assert f"{message} ".startswith(f"{wanted} "), f"heard {heard}"

    def _breaks(self, who: str, end: Any, words: str) -> None:
        with pytest.raises(ProtocolViolation) as caught:
            self._hear(who, end)
        assert words in caught.value.message, caught.value.message

    def _wrote(self, who: str, end: Any, words: str) -> None:
        other = "callee" if who == "caller" else "caller"
        self._wire[other] += end.data_to_send()
        written = [shown(message) for frames in self._wire[other] for message in Reader().read(list(frames))]
        assert ", ".join(written) == ("" if words == "nothing" else words)

    def _owes(self, who: str, end: Any, words: str) -> None:
        assert list(end.calls) == _ids(words), f"it owes {list(end.calls)}"

    def _is(self, who: str, end: Any, words: str) -> None:
        assert end.state.value == words, end.state.value

    def _loses(self, who: str, end: Any, words: str) -> None:
        self._wire[who] = []
        reported = end.lost()
        assert reported == _ids(words), reported

    def _parted(self, who: str, end: Any, words: str) -> None:
        assert end.parted is (words == "yes")

    # --- the caller -------------------------------------------------------------------------------

    def _caller_call(self, target: str, body: str = "") -> None:
        self.caller.call(target, 1000, body.encode())

    def _caller_open(self, target: str, window: str) -> None:
        self.caller.open(target, 1000, b"", int(window))

    def _caller_cancel(self, call: str) -> None:
        self.caller.cancel(int(call))

    def _caller_grant(self, call: str, items: str) -> None:
        self.caller.grant(int(call), int(items))

    def _caller_ping(self, number: str) -> None:
        self.caller.ping(int(number))

    # --- the callee -------------------------------------------------------------------------------

    def _callee_reply(self, call: str, body: str = "") -> None:
        self.callee.reply(int(call), body.encode())

    def _callee_error(self, call: str, code: str) -> None:
        self.callee.error(int(call), _error(code))

    def _callee_refuse(self, call: str, code: str) -> None:
        self.callee.refuse(int(call), _error(code))

    def _callee_item(self, call: str, body: str = "") -> None:
        self.callee.item(int(call), body.encode())

    def _callee_end(self, call: str) -> None:
        self.callee.end(int(call))

    def _callee_goodbye(self, reason: str) -> None:
        self.callee.goodbye(reason)


def _ids(words: str) -> list[int]:
    return [] if words == "nothing" else [int(word) for word in words.split(",")]
