"""Write the commit into what is built: an installed package has no repository that could be asked."""

from __future__ import annotations

import tempfile
from pathlib import Path
from runpy import run_path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RecordCommit(BuildHookInterface):
    """Add ``jointdiff/COMMIT`` to wheels and source archives."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Ask git as the package itself does; where there is no repository, the source archive says it or nothing."""
        commit = run_path(str(Path(self.root, "jointdiff", "environment.py")))["commit_of"](Path(self.root))
        if commit and version != "editable":
            record = Path(tempfile.mkdtemp(), "COMMIT")
            record.write_text(f"{commit}\n", encoding="utf-8")
            build_data["force_include"][str(record)] = "jointdiff/COMMIT"
