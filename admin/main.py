"""`manatee-adm`: what operators see of a shard and ask of it.

Each command lives in a module of its group, which is imported when the command is called and not before.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, cast

import click

from admin.target import Options, resolve

# The command, the module that has it (as a function of the same name), and what `--help` says of it.
COMMANDS = {
    "show": ("admin.status", "Show the shard: state, peers, PostgreSQL's status, problems."),
    "peers": ("admin.status", "List the shard's peers."),
    "pg-status": ("admin.status", "Show PostgreSQL's status on each peer, once or every PERIOD seconds."),
    "verify": ("admin.status", "Report problems; the exit status is 0 if there are none."),
    "history": ("admin.history", "Show what happened to the shard, state by state."),
    "freeze": ("admin.maintenance", "Freeze the shard: no takeover until it is unfrozen."),
    "unfreeze": ("admin.maintenance", "Unfreeze the shard."),
    "promote": ("admin.maintenance", "Move a peer one place up in the chain."),
    "clear-promote": ("admin.maintenance", "Withdraw a request to promote that nobody acted on."),
    "reap": ("admin.maintenance", "Take a peer that is gone for good off the deposed list."),
    "rebuild": ("admin.rebuild", "Set the local peer's data aside and restore them from another peer."),
    "force-primary": ("admin.force", "Break glass: go on with one peer's data, where the shard cannot by itself."),
    "restart-setup": ("admin.setup", "Give the set-up of a new shard that was never finished to another peer."),
    "zk-state": ("admin.raw", "Print the cluster state as it stands in ZooKeeper."),
    "zk-active": ("admin.raw", "Print the peers that are connected to ZooKeeper."),
    "set-onwm": ("admin.superseded", "Explain how one-node-write mode is entered and left."),
    "state-backfill": ("admin.superseded", "Explain what to do where there is no cluster state."),
    "version": ("admin.main", "Print the version."),
}


class Commands(click.Group):
    """Imports a command's module when it is asked for, so that `version` loads no database driver."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _shard_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("-z", "--zk", metavar="ZK_IPS", help="ZooKeeper: HOST[:PORT][,...]. Or set ZK_IPS."),
        click.option(
            "-s", "--shard", metavar="SHARD", help="The shard's name, or its path in ZooKeeper. Or set SHARD."
        ),
        click.option(
            "-c",
            "--config",
            metavar="FILE",
            help="This peer's settings file, which has both. Or set MANATEE_SITTER_CONFIG.",
        ),
    ):
        function = option(function)
    return function


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@_shard_options
@click.pass_context
def cli(ctx: click.Context, zk: str | None, shard: str | None, config: str | None) -> None:
    """Inspect and administer a Manatee shard."""
    ctx.obj = Options(zk, shard, config)


def command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A subcommand about a shard: its function's first argument is the `Target`."""

    def register(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(ctx: click.Context, zk: str | None, shard: str | None, config: str | None, **arguments: Any) -> Any:
            before = ctx.find_object(Options) or Options()
            target = resolve(Options(zk, shard, config).over(before), os.environ)
            return function(target, **arguments)

        entry: Callable[..., Any] = _shard_options(click.pass_context(cast(Callable[..., Any], run)))
        return click.command(name, help=function.__doc__, short_help=COMMANDS[name][1])(entry)

    return register


@click.command("version", short_help=COMMANDS["version"][1])
def version() -> None:
    """Print the version of this program, and so of the software on this peer."""
    from manatee import __version__

    click.echo(__version__)


def main() -> None:
    """The console script."""
    cli(prog_name="manatee-adm")


if __name__ == "__main__":
    main()
