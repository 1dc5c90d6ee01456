"""How a rule's script ends."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = """
import atexit, sys
from pathlib import Path
from snakemake.iocontainers import Snakemake
{imports}
from jointdiff.logs import to_rule_log

class Rule(Snakemake):  # as Snakemake hands one to a script, as far as a log needs it
    def __init__(self):
        self.log, self.output, self.rule = [{log!r}], [], "a_rule"

Rule.__module__ = Snakemake.__module__
atexit.register(print, "taken down")
with to_rule_log(Rule()):
    print("work done", end="")
    {work}
"""


@pytest.mark.parametrize(
    ("imports", "work", "code", "taken_down"),
    [
        ("import torch", "pass", 0, False),  # whose objects take half a second to go
        ("", "pass", 0, True),
        ("import torch; sys.modules['mlflow'] = sys", "pass", 0, True),  # it tells its server as the interpreter exits
        ("import torch", "raise ValueError('no such column')", 1, True),
        ("import torch", "sys.exit(75)", 75, True),
    ],
)
def test_a_script_that_has_done_its_work_ends_at_once_where_torch_is_loaded(
    tmp_path: Path, imports: str, work: str, code: int, taken_down: bool
) -> None:
    log = tmp_path / "a.log"
    text = textwrap.dedent(SCRIPT).format(imports=imports, work=work, log=str(log))
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)
    assert ended.returncode == code, ended.stderr
    assert ended.stdout.startswith("work done")
    assert ("taken down" in ended.stdout) is taken_down
    assert log.read_text().startswith("work done")
