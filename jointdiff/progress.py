"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """Show done, rate and time left of ``total`` units of work.

    Args:
        label: what is being done, such as ``train joint phantom 200 seed 0``.
        total: units in all; None where nobody knows.
        unit: name of a unit, in the plural.
        done: units finished earlier, as after a resume; they do not count for the rate.
        every: seconds between lines where there is no terminal.
        silent: show nothing, as in all processes of a job but one.
        times: processes that do as much at the same time, for which this one speaks.
        patience: seconds before anything is shown: of work that is mostly done at once.
    """

    def __init__(
        self,
        label: str,
        *,
        total: int | None,
        unit: str,
        done: int = 0,
        every: float = 15.0,
        silent: bool = False,
        times: int = 1,
        patience: float = 0.0,
    ) -> None:
        self.label, self.total, self.unit, self.every, self.silent, self.times = (
            label,
            total,
            unit,
            every,
            silent,
            times,
        )
        self.patience = patience
        self.done = self.first = done
        self.started = self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.done > self.first:
            self._show(end=True)

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count finished units and show where the work stands, at most every so often."""
        self.done += units * self.times
        if self.times > 1 and self.total is not None:  # the last round may be of fewer
            self.done = min(self.done, self.total)
        now = time.monotonic()
        if now - self.shown >= (0.2 if self.terminal else self.every):
            self.shown = now
            self._show(note)

    def _show(self, note: str = "", *, end: bool = False) -> None:
        if self.silent:
            return
        seconds = max(time.monotonic() - self.started, 1e-9)
        if seconds < self.patience:
            return
        rate = max(self.done - self.first, 1e-9) / seconds
        of = "" if self.total is None else f"/{self.total}"
        text = f"{self.label}: {self.done}{of} {self.unit}, {rate:.3g}/s"
        if end:
            text += f", took {_clock(seconds)}"
        elif self.total is not None:
            text += f", {_clock((self.total - self.done) / rate)} left"
        if note:
            text += f", {note}"
        if self.terminal:
            sys.stderr.write(f"\r\x1b[K{text}" + ("\n" if end else ""))
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
