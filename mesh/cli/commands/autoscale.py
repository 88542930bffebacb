"""`mesh autoscale`. Owns: its options and what it prints. Leaves to others: looking, deciding, scaling
(deploy.autoscale)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from mesh.cli import exits, loop, process, setting
from mesh.cli.output import json_option, note, wants_json, write_json
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from mesh.config import Settings
    from mesh.deploy.autoscale import Advice
    from mesh.policy.scaling import Rule
    from mesh.supervisord.layout import Layout


@click.command("autoscale")
@click.option("--dry-run", is_flag=True, help="Change nothing; print each measurement and its decision.")
@click.option("--looks", type=click.IntRange(min=1), metavar="N", help="With --dry-run: exit after N measurements.")
@click.option("--conf", metavar="FILE", help="The supervisord.conf; the project's own by default.")
@json_option
def command(dry_run: bool, looks: int | None, conf: str | None) -> int:
    """Adjust the number of workers to the load, for each service that has a `maximum` in mesh.toml.

    supervisor runs this command when a service has a `maximum`. To see what it would do, and why:

    \b
      mesh autoscale --dry-run
    """
    if looks and not dry_run:
        raise click.UsageError("--looks requires --dry-run")
    layout = setting.layout(conf)
    settings = setting.settings()
    _check(settings)
    if dry_run:
        process.quiet()
        return loop.run(_explain(layout, settings, looks))
    from mesh.deploy import autoscale
    from mesh.telemetry.logs import get_logger

    process.prepare(settings, "autoscale")
    while True:
        loop.run(autoscale.run(layout, settings))
        log = get_logger("mesh.autoscale")
        try:
            fresh = setting.settings()
        except ConfigError as exc:
            log.error("config.rejected", reason=exc.message, remedy="fix mesh.toml; the previous settings apply")
            time.sleep(settings.autoscale.every_s)
        else:
            log.info("config.reloaded")
            settings = fresh


def _check(settings: Settings) -> None:
    from mesh.deploy.autoscale import scaled_services

    if not scaled_services(settings):
        raise ConfigError("no [services.NAME] has a maximum, so there is nothing to scale; add `maximum = 8` to one")


async def _explain(layout: Layout, settings: Settings, looks: int | None) -> int:
    from mesh.deploy.autoscale import advise, rule_of, scaled_services

    if not wants_json():
        for name, service in scaled_services(settings).items():
            note(_rule(name, rule_of(service, settings)))
        note("Measured → workers needed, the decision and its reason. Nothing is changed.")
    done = 0
    async for advices in advise(layout, settings):
        if not advices:
            note("nothing runs here; `mesh up` starts everything")
        for advice in advices:
            _tell(advice)
        done += 1
        if looks and done >= looks:
            break
    return exits.OK


def _rule(name: str, rule: Rule) -> str:
    """The rule of a service in mesh.toml, as readable text."""
    targets = [f"{rule.cpu:g} of a core"]
    if rule.in_flight:
        targets.append(f"{rule.in_flight} calls in flight")
    if rule.latency_s:
        targets.append(f"answers within {rule.latency_s * 1000:g} ms")
    return (
        f"{name}: {rule.minimum} to {rule.maximum} workers, each with a target of {', '.join(targets)}; more after "
        f"{rule.up_after_s:g} s, fewer after {rule.down_after_s:g} s, {rule.cooldown_s:g} s between changes"
    )


def _tell(advice: Advice) -> None:
    look, decision = advice.look, advice.decision
    if wants_json():
        write_json(
            {
                "service": advice.service,
                **look._asdict(),
                "advised": decision.workers,
                "why": decision.why,
            }
        )
        return
    mark = f" → {decision.workers}" if advice.changes else ""
    click.echo(f"{time.strftime('%H:%M:%S')}  {advice.service}: {look.workers}{mark}  {decision.why}")
