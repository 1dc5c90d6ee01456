# /// script
# requires-python = ">=3.11"
# ///
"""Resolve all versions anew and pin them: `uv run .ci/refresh_constraints.py [DATE]`.

Every package that the project and its groups need gets the newest version of DATE (YYYY-MM-DD, today by default) that
fits. constraints.txt then holds names and versions alone, for pip (`-c constraints.txt`); pyproject.toml holds the same
for uv, which reads constraints nowhere else. Addresses stay out of both: a lock file would name one registry's.
"""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
START, END = "constraint-dependencies = [\n", "]\n"
PIN = re.compile(r"[\w.-]+==[\w.+!-]+( ; [\w .'<>=!()]+)?")
DATE = re.compile(r'(?<=^exclude-newer = ")[^"]+', flags=re.MULTILINE)


def resolve(pyproject: str) -> list[str]:
    """Return a pin of every package that a project may need, on any platform and Python that it allows.

    Raises:
        ValueError: uv gives something else than a name and a version.
    """
    options = ["--no-hashes", "--no-header", "--no-annotate", "--no-emit-project", "--all-groups", "--all-extras"]
    with TemporaryDirectory() as folder:
        Path(folder, "pyproject.toml").write_text(pyproject, encoding="utf-8")
        command = ["uv", "export", "--quiet", "--project", folder, *options]
        pins = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    if odd := [pin for pin in pins if not PIN.fullmatch(pin)]:
        raise ValueError(f"uv export gave {odd[0]!r}, which is no name with a version")
    return pins


def main(day: date) -> None:
    """Write both files."""
    path = ROOT / "pyproject.toml"
    before, _, rest = DATE.sub(f"{day}T00:00:00Z", path.read_text(encoding="utf-8")).partition(START)
    _, _, after = rest.partition(END)
    pins = resolve(before + START + END + after)
    listed = "".join(f'  "{pin}",\n' for pin in pins)
    path.write_text(before + START + listed + END + after, encoding="utf-8")
    (ROOT / "constraints.txt").write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")


if __name__ == "__main__":
    main(date.fromisoformat(sys.argv[1]) if sys.argv[1:] else datetime.now(UTC).date())
