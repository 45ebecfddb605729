"""How the command line speaks: results on stdout, progress and messages on stderr, one line for an error."""

import functools
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from foretrace.ir import ForetraceError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_TOLERANCE = 3

F = TypeVar("F", bound=Callable[..., Any])


def _stderr() -> "Console":
    from rich.console import Console  # not at start: a script that asks for --json needs none of it

    return Console(stderr=True, highlight=False, emoji=False)


def show(page: "RenderableType") -> None:
    """Print a page on stdout."""
    from rich.console import Console

    Console(highlight=False, emoji=False).print(page)


def fail(message: str, code: int = EXIT_FAILURE) -> NoReturn:
    """Print one error on stderr and leave with *code*."""
    _stderr().print(f"[bold red]error:[/] {_escaped(message)}", soft_wrap=True)
    raise typer.Exit(code)


def warn(message: str) -> None:
    """Print one warning on stderr."""
    _stderr().print(f"[yellow]warning:[/] {_escaped(message)}", soft_wrap=True)


def note(message: str) -> None:
    """Say on stderr what was done."""
    _stderr().print(_escaped(message), soft_wrap=True)


def _escaped(message: str) -> str:
    from rich.markup import escape

    return escape(printable(message).replace("\n", " "))


def printable(text: str) -> str:
    """*text* with control characters made visible: a stranger's file writes no escape sequence to the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def command(function: F) -> F:
    """A command that turns every error of ours into one line and exit code 1."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            _open_streams()
            result = function(*args, **kwargs)
            sys.stdout.flush()
            return result
        except ForetraceError as e:
            fail(str(e))
        except KeyboardInterrupt:
            fail("interrupted", 130)
        except BrokenPipeError:  # the reader of our output left: nothing more to say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_FAILURE) from None
        except RecursionError:
            fail("the input is nested too deeply")
        except MemoryError:
            fail("out of memory")
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except SystemExit as e:  # a model's own code called sys.exit
            fail(f"the model's code left the program (sys.exit, code {e.code})")
        except OSError as e:
            fail(f"cannot print: {e.strerror or e}" if e.filename is None else f"{e.filename}: {e.strerror}")
        except Exception as e:
            if os.environ.get("FORETRACE_DEBUG"):
                raise
            fail(f"a fault of ours, please report it: {type(e).__name__}: {e} (FORETRACE_DEBUG=1 shows where)")

    return run  # type: ignore[return-value]


def _open_streams() -> None:
    """Streams that were closed become the null device; characters a stream cannot encode are replaced."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open while the process lives
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


@contextmanager
def stages(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar of *total* stages on stderr, where that is a terminal; call the yielded function at each."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), BarColumn(20), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=_stderr(), transient=True) as progress:
        task = progress.add_task("starting", total=total)
        first = True

        def advance(what: str) -> None:
            nonlocal first
            progress.update(task, description=what, advance=0 if first else 1)
            first = False

        yield advance


@contextmanager
def portions(what: str) -> Iterator[Callable[[float], None]]:
    """A progress bar on stderr, where that is a terminal; call the yielded function with the part done, 0 to 1."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(30), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_stderr(), transient=True) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda part: progress.update(task, completed=part)
