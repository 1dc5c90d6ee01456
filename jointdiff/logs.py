"""A rule's log: all that a step says, and one clear message where a user can mend what went wrong."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO


class Tee:
    """A text stream that writes to several, as far as they are open: a daemon's thread may outlive a log."""

    encoding = "utf-8"

    def __init__(self, *streams: TextIO) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        """Write text to every stream."""
        for stream in self.streams:
            if not stream.closed:
                stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush every stream."""
        for stream in self.streams:
            if not stream.closed:
                stream.flush()

    def isatty(self) -> bool:
        """Say no: jobs share the terminal, so that a moving line would be overwritten by another's."""
        return False


@contextmanager
def to_rule_log(rule: Any) -> Iterator[None]:
    """Send output, warnings and logging of a Snakemake script to its log file as well as to the terminal.

    A mistake that a user can mend (``ValueError``, ``OSError``) ends the script with its message alone and exit code 1;
    the traceback is in the log.
    """
    path = Path(rule.log[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", buffering=1) as log:
        out, err = Tee(sys.stdout, log), Tee(sys.stderr, log)
        with redirect_stdout(out), redirect_stderr(err):
            logging.basicConfig(
                level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=err, force=True
            )
            logging.getLogger("jointdiff").setLevel(logging.INFO)
            warnings.simplefilter("default")
            logging.captureWarnings(True)
            try:
                yield
            except (ValueError, OSError) as error:
                log.write(traceback.format_exc())
                print(f"\n{rule.rule} stopped: {error}\n(The traceback is in {path}.)\n", file=sys.stderr, flush=True)
                sys.exit(1)
            except BaseException:
                log.write(traceback.format_exc())
                raise
