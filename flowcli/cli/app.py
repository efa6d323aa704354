"""The ``flowcli`` command: its switches, its subcommands, and nothing heavy."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from flowcli import __version__
from flowcli.cli import console

app = typer.Typer(
    name="flowcli",
    help="Learn a probability density from a table or images; score rows, draw new ones, find the odd ones.",
    epilog="Start with: flowcli init DATA -o recipe.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        console.result(f"flowcli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


_SWITCHES: dict[str, tuple[Any, Any]] = {
    "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")], False),
    "verbose": (Annotated[bool, typer.Option("--verbose", "-v", help="Say what time and memory it took.")], False),
    "color": (Annotated[bool | None, typer.Option("--color/--no-color", help="Colours, or none.")], None),
    "no_progress": (Annotated[bool, typer.Option("--no-progress", help="No progress display.")], False),
    "debug": (Annotated[bool, typer.Option("--debug", help="Show tracebacks.")], False),
}


def _took(began: float) -> str:
    """The time since ``began``, the most memory that this process has had, and what computed."""
    try:
        with open("/proc/self/status") as status:  # getrusage knows there of what the process was before it was ours
            most = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except OSError:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    by = f"flowcli {__version__}"
    if torch := sys.modules.get("torch"):
        by += f", torch {torch.__version__}, {console.counted(torch.get_num_threads(), 'thread', 'threads')}"
    return f"{time.monotonic() - began:.1f} s, {most / 1e6:,.0f} MB of memory at most; {by}"


def command(group: typer.Typer = app, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command that also has the switches of every command."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> None:
            switches = {switch: options.pop(switch) for switch in _SWITCHES}
            console.settings.quiet, console.settings.verbose = switches["quiet"], switches["verbose"]
            console.settings.color, console.settings.debug = switches["color"], switches["debug"]
            console.settings.progress = not switches["no_progress"]
            began = time.monotonic()
            try:
                function(*args, **options)
            except typer.Exit:
                raise
            except BaseException as error:
                if isinstance(error, SystemExit):
                    raise
                console.leave(error)
            finally:
                if console.settings.verbose:
                    console.note(_took(began))

        own = inspect.signature(function, eval_str=True)
        switches = [
            inspect.Parameter(switch, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for switch, (annotation, default) in _SWITCHES.items()
        ]
        signature = own.replace(parameters=[*own.parameters.values(), *switches])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        group.command(name or function.__name__.rstrip("_"), no_args_is_help=False)(run)
        return function

    return register


def main() -> None:
    """Run the command line."""
    from flowcli.cli import (  # noqa: F401, I001 (they register)
        compare, evaluate, fit, init, inspect_, predict, recipe, report, sample, score, tune, validate,
    )  # fmt: skip

    signal.signal(signal.SIGTERM, _terminated)
    app(prog_name="flowcli")


def run() -> NoReturn:
    """:func:`main` as a process of its own, which leaves without running native libraries' destructors: threads of
    theirs that are still winding down have been seen to abort the process, and with it the exit code."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: no file that is opened now may take its place
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout:  # whatever the locale: programs read it
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 (until the end)
    # glibc takes the first large block that is freed for a sign of how large blocks will be, and does not give the
    # memory of smaller ones back to the system each time: a third of the time of scoring was page faults.
    bytes(31 << 20)
    code: object = 0
    try:
        try:
            main()
        except Exception as error:  # noqa: BLE001 (what typer itself lets through, such as a full disk)
            console.leave(error)
    except SystemExit as error:
        code = error.code
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _terminated(number: int, frame: FrameType | None) -> None:
    """Leave as an exception does, so that what is half written is removed."""
    sys.exit(console.TERMINATED)
