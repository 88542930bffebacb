#!/usr/bin/python
"""Switches a host to a release, or goes back when that fails. See DOCUMENTATION."""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.mesh_alone import Alone, working
from ansible.module_utils.mesh_place import TOLD_CHARACTERS, TRIED, Place, Refused, do

DOCUMENTATION = """
module: mesh_turn
short_description: Switch a host to a release, and roll back when it fails
description:
  - C(current) moves; C(mesh roll) replaces each process, also hub and store; everything answers; the gates open.
  - When one of these fails, the host goes back to the release that it had; where it had none, all is stopped.
  - It runs on the host from one end to the other, so also when the machine that asked for it goes away.
  - A release that did not hold is no failure of this module. C(failure) says why; the playbook takes other hosts back.
options:
  prefix: {type: path, required: true, description: The directory that the host keeps the mesh in.}
  release: {type: str, required: true, description: The release to run; with C(undo), the one before.}
  undo: {type: bool, default: false, description: Roll back, because another host failed.}
  ran: {type: bool, default: true, description: "With C(undo): whether anything ran before."}
  stay: {type: bool, default: false, description: "Do not roll back, but fail, when something does not answer."}
  unit: {type: str, default: "", description: The unit of supervisord, where systemd runs.}
  ready_s: {type: float, required: true, description: How long one process, and all of them, may take to be ready.}
  settle_s: {type: float, required: true, description: How long a replaced process must run before the next step.}
  gates: {type: list, elements: str, default: [], description: URLs that must answer 200.}
  gate_tries: {type: int, default: 10, description: How often each is requested, once a second.}
  gate_s: {type: float, default: 0, description: How long to compare error rates with those before.}
  gate_percent: {type: float, default: 5, description: Share of calls that may fail, in percent.}
  gate_calls: {type: int, default: 10, description: With fewer calls, error rates are not compared.}
"""

RETURN = """
before: {description: The release that was current., returned: always, type: str}
ran: {description: Whether supervisord ran before., returned: always, type: bool}
switched: {description: Whether the release differs from the one before., returned: always, type: bool}
failure: {description: Why it failed; empty when it did not., returned: always, type: str}
now: {description: What runs now., returned: always, type: str}
"""

EXAMPLES = """
- name: Switch to the release
  mesh_turn:
    prefix: /srv/mesh
    release: 0.1.0-35665e3a-8f12
    ready_s: 30
    settle_s: 1
"""

#: The exit code of `mesh roll` when it went back by itself.
ROLL_WENT_BACK = 1
#: Used instead when not everything could go back.
ROLL_DID_NOT = -1


class Step(Exception):
    """A step failed; the message contains the step and its error."""

    def __init__(self, name: str, cause: Exception) -> None:
        super().__init__(f"{name}:\n{cause}")
        self.cause = cause


class Turn:
    """The switch of one host from one release to another."""

    def __init__(self, asked: dict[str, Any], place: Place, before: str, ran: bool) -> None:
        self._asked = asked
        self._place = place
        self._before = before
        self._ran = ran
        self._patience = str(asked["ready_s"])
        #: Whether all processes run from the same release.
        self.sound = True

    def forward(self, release: str, switched: bool) -> bool:
        """Run the release; whether anything had to be done.

        Args:
            switched: processes may run from another release.

        Raises:
            Step: a step failed.
        """
        if switched:
            self._place.begin(self._before)
            self._step("let current lead to it", lambda: self._place.lead(release))
        if self._ran and switched:
            self._replace(release, gate=True)
        elif not self._ran and self._asked["unit"]:
            self._step("start supervisord by systemd", lambda: self._systemd("start"))
        already = self._up()
        self._step("wait for the gates", self._gates)
        self._place.done()
        return switched or not already

    def back(self, rolled: bool) -> str:
        """Go back; returns a description of what runs then.

        Args:
            rolled: every process already runs from the earlier release.
        """
        try:
            if not self._ran:
                self.stop()
            self._step("let current lead back", lambda: self._place.lead(self._before))
            if self._ran and not rolled:
                self._replace(self._before)
            if self._ran:
                self._up()
        except Step as exc:
            self.sound = False
            return (
                f"it could not be rolled back to {self._before or 'nothing'}: {exc}\n"
                "check this host now: processes of both releases may be running"
            )
        self._place.done()
        return f"{self._before} runs" if self._ran else "nothing runs"

    def stop(self) -> None:
        if self._asked["unit"]:
            self._step("stop supervisord by systemd", lambda: self._systemd("stop"))
        # Also when systemd has stopped it: `mesh down` removes leftovers of dead processes.
        if self._place.current:
            self._step("stop everything", lambda: self._place.do("mesh", "down", "--json"))

    def _replace(self, release: str, *, gate: bool = False) -> None:
        """Replace each process in turn with that of the current release; `gate`: fail when it answers with errors."""
        asked = self._asked
        words = ["roll", "--json", "--timeout", self._patience, "--settle", str(asked["settle_s"])]
        if os.path.exists(self._place.path(release, TRIED)):
            words += ["--no-preflight", "--gate", str(asked["gate_s"] if gate else 0)]
            words += ["--gate-errors", str(asked["gate_percent"]), "--gate-calls", str(asked["gate_calls"])]
        self._step("replace each process", lambda: _readable(lambda: self._place.do("mesh", *words)))

    def _up(self) -> bool:
        """Start missing processes, end those that mesh.toml does not name any more, wait until everything answers."""
        told: list[str] = []
        words = ["up", "--json", "--timeout", self._patience]
        self._step("bring it up", lambda: told.append(_readable(lambda: self._place.do("mesh", *words))))
        return bool(json.loads(told[0])["already"])

    def _gates(self) -> None:
        for url in self._asked["gates"]:
            for left in reversed(range(self._asked["gate_tries"])):
                trouble = _answer(url)
                if not trouble:
                    break
                if not left:
                    raise Refused(f"GET {url}: {trouble}")
                time.sleep(1)

    def _systemd(self, verb: str) -> None:
        do(["systemctl", verb, self._asked["unit"]])
        # systemd considers supervisord started before it listens; `mesh up` would start another one.
        until = time.monotonic() + self._asked["ready_s"]
        while verb == "start" and not self._place.runs:
            if time.monotonic() > until:
                raise Refused(f"supervisord does not listen; journalctl -u {self._asked['unit']} shows why")
            time.sleep(0.05)

    def _step(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except (Refused, OSError) as exc:
            raise Step(name, exc) from exc


class History:
    """The results of all deployments on this host, a line of JSON for each; lines are never removed.

    Args:
        holder: the deployment that holds the lock.
    """

    def __init__(self, place: Place, holder: dict[str, Any]) -> None:
        self._place = place
        self._who = {"who": holder.get("who", ""), "playbook": holder.get("what", "")}
        self._began = time.monotonic()

    def add(self, result: str, release: str, before: str, why: str = "") -> None:
        """Add a line.

        Args:
            result: live, started, went back, taken back, mixed or cut off.
            why: the reason; only its first line is stored.
        """
        seconds = round(time.monotonic() - self._began, 1)
        entry = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "result": result, "release": release}
        entry |= {"before": before, "seconds": seconds, **self._who, "why": " ".join(why.split("\n")[:2])[:300]}
        self._place.remember({key: value for key, value in entry.items() if value != ""})


def _readable(act: Callable[[], str]) -> str:
    """Convert the error of a command with --json to readable text."""
    try:
        return act()
    except Refused as exc:
        try:
            said = [line for line in str(exc).splitlines() if line.startswith('{"error"')]
            error = json.loads(said[-1])["error"]
            details = error.get("details", {})
            lines = [str(error["message"])]
            if details.get("tail"):
                lines += [f"the end of {details.get('log', 'its log')}:", *(f"  | {line}" for line in details["tail"])]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            raise exc from None
        # Releases without this field went back, or reported that they did not.
        code = exc.code if details.get("undone", True) else ROLL_DID_NOT
        raise Refused("\n".join(lines)[-TOLD_CHARACTERS:], code) from exc


def _answer(url: str) -> str:
    """ "" when the URL answers 200; else a description of the answer or the error."""
    try:
        # No proxy: the request goes to this host. Its certificate is for public names.
        unchecked = ssl.create_default_context()
        unchecked.check_hostname = False
        unchecked.verify_mode = ssl.CERT_NONE
        handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unchecked)
        with urllib.request.build_opener(*handlers).open(url, timeout=10) as answer:
            return "" if answer.status == 200 else f"{answer.status}"
    except urllib.error.HTTPError as exc:
        return f"{exc.code} {exc.reason}\n{exc.read(2000).decode('utf-8', 'replace')}".strip()
    except (urllib.error.URLError, OSError) as exc:
        return str(exc.reason if isinstance(exc, urllib.error.URLError) else exc)


def main() -> None:
    module = AnsibleModule(
        {
            "prefix": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            "undo": {"type": "bool", "default": False},
            "ran": {"type": "bool", "default": True},
            "stay": {"type": "bool", "default": False},
            "unit": {"type": "str", "default": ""},
            "ready_s": {"type": "float", "required": True},
            "settle_s": {"type": "float", "required": True},
            "gates": {"type": "list", "elements": "str", "default": []},
            "gate_tries": {"type": "int", "default": 10},
            "gate_s": {"type": "float", "default": 0},
            "gate_percent": {"type": "float", "default": 5},
            "gate_calls": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    with working(module, module.params["prefix"]):
        turn(module)


def turn(module: AnsibleModule) -> None:
    """Switch the host, or, in a check run, report what would change."""
    asked = module.params
    place = Place(asked["prefix"])
    release, current, runs = asked["release"], place.current, place.runs
    # Resume an interrupted switch; the release before it is the one to go back to.
    unfinished = place.unfinished
    switched = release != current or unfinished is not None
    if unfinished is not None and unfinished != release:
        current, runs = unfinished, runs and unfinished != ""
    told: dict[str, Any] = {"before": current, "ran": runs, "switched": switched, "failure": ""}
    history = History(place, Alone(place.prefix).holder())
    if unfinished is not None and not module.check_mode:
        history.add("cut off", place.current, unfinished)
    if asked["undo"]:
        place.begin(release)
        way = Turn(asked, place, release, asked["ran"])
        now = way.back(rolled=False)
        history.add("taken back" if way.sound else "mixed", place.current, current)
        module.exit_json(**told, changed=True, now=now)
    if module.check_mode:
        what = "every process would be replaced, one by one" if runs else "it would be started"
        now = (
            f"{current} runs; {what}: {current or 'nothing'} → {release}"
            if runs
            else f"nothing runs; {what}: {release}"
        )
        module.exit_json(**told, changed=switched or not runs, now=now)
    way = Turn(asked, place, current, runs)
    try:
        changed = way.forward(release, switched)
    except Step as exc:
        # `mesh roll` goes back by itself, and reports it by its exit code; then nothing else has been changed yet.
        rolled = isinstance(exc.cause, Refused) and exc.cause.code == ROLL_WENT_BACK and str(exc).startswith("replace")
        if asked["stay"]:
            module.fail_json(msg=str(exc), **told)
        failure = f"{release} {'did not go live' if switched else 'does not work'}: {exc}"
        now = way.back(rolled=rolled or not switched)
        history.add("went back" if way.sound else "mixed", release, current, str(exc))
        module.exit_json(**{**told, "failure": failure}, changed=True, now=now)
    if changed:
        history.add("live" if switched else "started", release, current)
    module.exit_json(**told, changed=changed, now=f"{release} runs")


if __name__ == "__main__":
    main()
