"""The part of `mesh roll` for releases by traffic share: its options, and what it prints.

Owns: both. Leaves to others: doing it (deploy.canary).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from mesh.cli import loop
from mesh.cli.arguments import Span
from mesh.cli.output import for_people, note, progress, wants_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.config import Settings
    from mesh.deploy.canary_plan import CanarySample, Plan, Promoted
    from mesh.deploy.error_gate import Limits
    from mesh.policy.canary import Calls
    from mesh.supervisord.layout import Layout

F = TypeVar("F", bound="Callable[..., Any]")

_OPTIONS = (
    click.option("--canary", metavar="PERCENT", help="Begin with this share of calls, such as 5%."),
    click.option(
        "--steps", default="5,25,50,100", show_default=True, metavar="PERCENT,…", help="The shares after the first one."
    ),
    click.option("--step-time", type=Span(), default=60.0, metavar="TIME", help="Least time at each share [60s]."),
    click.option("--max-time", type=Span(), default=600.0, metavar="TIME", help="Longest time at each share [10m]."),
    click.option("--mirror", metavar="PERCENT", help="Send copies of this share of calls, and compare the answers."),
    click.option(
        "--mirror-method",
        "mirror_methods",
        multiple=True,
        metavar="METHOD",
        help="Copy calls of this method although it may change something.",
    ),
    click.option(
        "--fault", "faults", multiple=True, metavar="CODE", help="Count this error of the service as a failure."
    ),
    click.option(
        "--tolerance",
        type=click.FloatRange(min=0, max=50),
        default=0.1,
        show_default=True,
        metavar="PERCENT",
        help="Calls that may fail more than before.",
    ),
    click.option(
        "--margin",
        type=click.FloatRange(min=0, min_open=True, max=50),
        default=2.0,
        show_default=True,
        metavar="PERCENT",
        help="Excess of failures that must be excluded before the next step.",
    ),
    click.option(
        "--slower",
        type=click.FloatRange(min=0, max=90),
        default=10.0,
        show_default=True,
        metavar="PERCENT",
        help="Calls that may exceed a latency more than before.",
    ),
    click.option(
        "--confidence",
        type=click.FloatRange(min=50, max=100, max_open=True),
        default=99.0,
        show_default=True,
        metavar="PERCENT",
        help="Of the verdicts.",
    ),
    click.option("--every", type=Span(), default=2.0, metavar="TIME", help="Period of the samples [2s]."),
    click.option("--abort", is_flag=True, help="End the canaries of this service, also those of a running command."),
)


def canary_options(command: F) -> F:
    """Add the options to a command, which passes their values on to `plan` and `run`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def is_asked(options: dict[str, Any]) -> bool:
    """Whether the command line asks for a canary, or for the end of one."""
    return any(options[name] for name in ("canary", "mirror", "mirror_methods", "faults", "abort"))


def service_of(names: tuple[str, ...]) -> str:
    """The only service of the command line."""
    if len(names) != 1:
        raise click.UsageError("--canary, --mirror and --abort take one service, like `mesh roll orders --canary 5%`")
    return names[0]


def plan(options: dict[str, Any], patience_s: float, settle_s: float, gate: Limits) -> Plan:
    """The plan that the options describe."""
    from mesh.deploy.canary_plan import Plan
    from mesh.policy.canary import Rules, percentage, steps

    try:
        shares = steps(options["steps"], percentage(options["canary"])) if options["canary"] else ()
        mirror = percentage(options["mirror"]) if options["mirror"] else 0.0
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    if options["canary"] and not shares:
        raise click.UsageError("--canary 100% would compare nothing; `mesh roll` without it replaces all processes")
    if options["mirror_methods"] and not mirror:
        raise click.UsageError("--mirror-method needs --mirror")
    if not (shares or mirror or options["abort"]):
        raise click.UsageError("--fault needs --canary or --mirror")
    if options["max_time"] < options["step_time"]:
        raise click.UsageError("--max-time is shorter than --step-time")
    rules = Rules(
        tolerance=options["tolerance"] / 100,
        margin=options["margin"] / 100,
        slower=options["slower"] / 100,
        confidence=options["confidence"] / 100,
        step_s=options["step_time"],
        hold_s=options["max_time"],
    )
    if rules.margin <= rules.tolerance:
        raise click.UsageError("--margin must exceed --tolerance")
    return Plan(
        shares,
        rules,
        mirror,
        options["mirror_methods"],
        options["faults"],
        max(0.25, options["every"]),
        patience_s,
        settle_s,
        gate,
    )


def run(layout: Layout, settings: Settings, name: str, wanted: Plan) -> None:
    """Roll by traffic share; print a line for each sample, and the result."""
    from mesh.deploy.canary import roll_canary

    def report(line: CanarySample) -> None:
        if wants_json():
            write_json({"sample": _plain(line)})
        else:
            note(shown(line))

    with progress("rolling") as tell:
        done = loop.run(roll_canary(layout, settings, name, wanted, tell=tell, report=report))
    if wants_json():
        write_json({"result": _plain(done)})
    else:
        note(_result(done))


def end(layout: Layout, settings: Settings, name: str) -> None:
    """End the canaries of a service, and print how many there were."""
    from mesh.deploy.canary import abort

    with progress("ending the canaries"):
        count = loop.run(abort(layout, settings, name))
    if wants_json():
        write_json({"ended": count})
    else:
        note(f"{name}: {count} canaries ended" if count else f"{name}: no canary was running")


def shown(line: CanarySample) -> str:
    """A sample for people."""
    found = (("worse", line.worse), ("slower", line.slower), ("harmless", line.harmless))
    evidence = " ".join(f"{name} {value:.0%}" for name, value in found)
    mirrored = ", ".join(f"{count} {result}" for result, count in sorted(line.mirrored.items()))
    parts = [
        f"{for_people(line.at_s):>6}  {line.share * 100:.4g} % of the calls",
        f"new {_calls(line.new)}",
        f"old {_calls(line.old)}",
        evidence,
        *([f"mirrored: {mirrored}"] if mirrored else []),
    ]
    # Where calls are only mirrored, the end of the time promotes nothing.
    silent = line.verdict == "hold" or (line.verdict == "promote" and not line.share)
    return "  ".join(parts) + ("" if silent else f"  → {line.verdict.replace('_', ' ')}")


def _calls(calls: Calls) -> str:
    return f"{calls.failed}/{calls.calls} failed"


def _result(done: Promoted) -> str:
    compared = f"new {_calls(done.new)}, old {_calls(done.old)}"
    mirrored = ", ".join(f"{count} {result}" for result, count in sorted(done.mirrored.items()))
    if not done.replaced:
        return f"{done.name}: calls were mirrored for {done.seconds:.0f} s: {mirrored or 'none'}; {compared}"
    more = f"; mirrored: {mirrored}" if mirrored else ""
    return f"{done.name}: promoted, {done.replaced} replaced in {done.seconds:.0f} s; {compared}{more}"


def _plain(value: CanarySample | Promoted) -> dict[str, Any]:
    plain = value._asdict()
    for name in ("old", "new"):
        plain[name] = {"calls": plain[name].calls, "failed": plain[name].failed}
    return {name: round(each, 4) if isinstance(each, float) else each for name, each in plain.items()}
