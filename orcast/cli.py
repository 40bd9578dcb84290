"""The command line. Each command reads its input, calls one function and shows what came back."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from orcast.calibrate_cli import app as calibrate_app
from orcast.cli_version import version
from orcast.compare_cli import compare
from orcast.export_cli import export
from orcast.init_cli import init
from orcast.laws_cli import laws
from orcast.list_cli import app as list_app
from orcast.numerics_cli import numerics
from orcast.options import JsonOption, QuietOption, RunFolderOption, SetOption
from orcast.plan_cli import plan
from orcast.refine_cli import refine
from orcast.replay_cli import replay
from orcast.serve_cli import serve
from orcast.show_cli import app as show_app
from orcast.size_cli import size
from orcast.streams import standard_streams
from orcast.sweep_cli import sweep
from orcast.task_workers import with_ray_address
from orcast.trace_cli import trace
from orcast.ui_cli import ui
from orcast.validate_cli import validate
from scenarios.errors import InputError, one_line, reading

app = typer.Typer(
    name="orcast",
    help="Forecasts how an LLM serving deployment will behave before anyone pays for it.",
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},  # its commands take them over
)

ScenarioArgument = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A scenario file, a library name, or - for stdin.")
]


@app.callback()
def _orcast(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        print(f"orcast {version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(
    scenario: ScenarioArgument,
    set_: SetOption = None,
    out: RunFolderOption = None,
    as_json: JsonOption = False,
    step: Annotated[bool, typer.Option("--step", help="One event an iteration; slow.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Verify invariants as it runs.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Simulate a scenario; print the result and write a run folder with its report."""
    from orcast.running import run_loaded
    from scenarios.schema.load import load_scenario

    loaded, origin = load_scenario(scenario, set_ or [])
    run_loaded(loaded, origin, out=out, as_json=as_json, quiet=quiet, leap=not step, check=check)


@app.command()
def report(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a run, sweep, plan or sizing.")
    ],
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Rebuild report.html of a folder from its records."""
    from reports.export.result_folder import write_report

    with reading(directory):
        path = write_report(directory)
    print(f"Report: {path}")
    if open_:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


# In the order in which one meets them.
for command in (compare, replay, trace, sweep, plan, size, laws, ui, serve, export, init, validate):
    app.command()(command)
app.add_typer(list_app, name="list")
app.add_typer(show_app, name="show")
app.add_typer(calibrate_app, name="calibrate")
calibrate_app.command()(refine)
calibrate_app.command()(numerics)


UsageError: Any = typer.BadParameter.__base__  # typer gives it no name of its own
FAULT = 70  # sysexits.h's EX_SOFTWARE


def main() -> None:
    """Entry point: bad input is one line on stderr and exit status 2, never a traceback."""
    # Asked to end: unwind, so that a half-written folder is taken away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with standard_streams():
            given = with_ray_address(sys.argv[1:])
            status = app(args=given, prog_name="orcast", standalone_mode=False)
    except BrokenPipeError:
        sys.exit(128 + signal.SIGPIPE)  # who read it has enough, as `head` has
    except UsageError as error:
        sys.exit(_refuse(_usage(error)))
    except InputError as error:
        sys.exit(_refuse(str(error)))
    except OSError as error:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        sys.exit(_refuse(where + (error.strerror or str(error))))
    except MemoryError:
        what = " ".join(sys.argv[1:])
        sys.exit(_refuse(f"{what}: not enough memory on this machine; nothing was written"))
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except Exception as error:
        if os.environ.get("ORCAST_TRACEBACK"):
            raise
        sys.exit(_refuse(_fault(error), status=FAULT))
    if status == 130:
        _refuse("interrupted; nothing was written", status=status)
    sys.exit(status)


def _usage(error: Any) -> str:
    """What is wrong with how a command was called, and where its help is."""
    command = "orcast" if error.ctx is None else error.ctx.command_path
    words = (error.format_message() or "a command is missing").rstrip(".")
    return f"{command.removeprefix('orcast ')}: {words}; see {command} --help"


def _fault(error: Exception) -> str:
    """An exception that nobody foresaw, with where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{' '.join(sys.argv[1:3])}: a fault of Orcast's, not of what it was given: "
        f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno}); please "
        "report it with what ORCAST_TRACEBACK=1 shows"
    )


def _refuse(message: str, *, status: int = 2) -> int:
    print(f"orcast: {one_line(message)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
