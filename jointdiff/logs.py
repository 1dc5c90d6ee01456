"""A rule's log: all that a step says, and one clear message where a user can mend what went wrong."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from jointdiff.files import remove_leftovers


class Tee:
    """A text stream that writes to several, as far as they take it.

    A daemon's thread may outlive a log, and what a full disk does not take is still on the terminal.
    """

    encoding = "utf-8"

    def __init__(self, *streams: TextIO) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        """Write text to every stream."""
        for stream in self.streams:
            if not stream.closed:
                with suppress(OSError):
                    stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush every stream."""
        for stream in self.streams:
            if not stream.closed:
                with suppress(OSError):
                    stream.flush()

    def isatty(self) -> bool:
        """Say no: jobs share the terminal, so that a moving line would be overwritten by another's."""
        return False


def show_any_text(*streams: TextIO) -> None:
    """Let streams of the terminal write letters that its encoding lacks as escapes instead of raising an error."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def to_rule_log(rule: Any) -> Iterator[None]:
    """Send output, warnings and logging of a Snakemake script to its log file as well as to the terminal.

    A mistake that a user can mend (``ValueError``, ``OSError``) ends the script with its message alone and exit code 1;
    the traceback is in the log. What killed jobs left half beside the outputs is removed first.
    A script that has done its work ends here, see ``leave``.
    """
    path = Path(rule.log[0])
    show_any_text(sys.stdout, sys.stderr)
    with _opened(path) as log:
        out, err = Tee(sys.stdout, log), Tee(sys.stderr, log)
        with redirect_stdout(out), redirect_stderr(err):
            logging.basicConfig(
                level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=err, force=True
            )
            logging.getLogger("jointdiff").setLevel(logging.INFO)
            warnings.simplefilter("default")
            logging.captureWarnings(True)
            try:
                for output in rule.output:
                    remove_leftovers(output)
                yield
            except (ValueError, OSError) as error:
                _note(log)
                print(f"\n{rule.rule} stopped: {error}\n(The traceback is in {path}.)\n", file=sys.stderr, flush=True)
                sys.exit(1)
            except SystemExit:  # said already
                raise
            except BaseException:
                _note(log)
                raise
    if type(rule).__module__.partition(".")[0] == "snakemake":  # as a script's is
        leave()


def leave() -> None:
    """End a process whose work is written without taking its objects down, for which torch needs half a second.

    Nothing is done where torch is not imported, or where MLflow is, which has a say as the interpreter exits.
    """
    if "torch" in sys.modules and "mlflow" not in sys.modules:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(0)


def _opened(path: Path) -> TextIO:
    """Open a log, of which nothing waits in memory: closing it on a full disk is no further error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return io.TextIOWrapper(io.FileIO(path, "w"), encoding="utf-8", write_through=True)
    except OSError as error:
        print(f"{path} cannot be written ({error.strerror}): the log is on the terminal alone", file=sys.stderr)
        return io.StringIO()


def _note(log: TextIO) -> None:
    with suppress(OSError):
        log.write(traceback.format_exc())
