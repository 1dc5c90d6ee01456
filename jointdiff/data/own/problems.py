"""What is wrong with a user's data, gathered by kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """One kind of mistake with all the places where it was made."""

    severity: Severity
    what: str
    remedy: str
    places: tuple[str, ...]

    @property
    def summary(self) -> str:
        """Say what is wrong and how often, without places."""
        return self.what + (f" ({len(self.places):,} times)" if len(self.places) > 1 else "")

    def __str__(self) -> str:
        places = f": {'; '.join(self.places[:5])}" if self.places else ""
        more = f"; and {len(self.places) - 5:,} more" if len(self.places) > 5 else ""
        return f"{self.summary}{places}{more}" + (f". {self.remedy}" if self.remedy else "")


class Problems:
    """Gathers problems by kind: ten thousand bad rows are one problem with ten thousand places."""

    def __init__(self) -> None:
        self._found: dict[tuple[Severity, str, str], list[str]] = {}

    def add(self, what: str, remedy: str, at: str = "", *, severity: Severity = "error") -> None:
        """Note a problem and, if it has one, its place."""
        self._found.setdefault((severity, what, remedy), []).extend([at] if at else [])

    def __iter__(self) -> Iterator[Problem]:
        """Iterate over errors first, then warnings, then notes."""
        order = ("error", "warning", "note")
        for (severity, what, remedy), places in sorted(self._found.items(), key=lambda item: order.index(item[0][0])):
            yield Problem(severity, what, remedy, tuple(places))

    @property
    def errors(self) -> list[Problem]:
        """Those that must be mended first."""
        return [problem for problem in self if problem.severity == "error"]
