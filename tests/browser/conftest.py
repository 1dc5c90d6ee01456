"""Chromium for the tests that look at pages as a person does. Debian's own: playwright brings the driver alone."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import require
from tests.workflow.flow import environment

PATIENCE = 100_000  # milliseconds: pages load slowly where other tests run beside this one


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Start the browser once."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=require("chromium"))
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, tmp_path: Path) -> Iterator[Page]:
    """Open a page that reaches this machine alone; leave its last picture, and fail on an error in a script."""
    context = chromium.new_context(viewport={"width": 1800, "height": 1400})
    context.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.screenshot(path=tmp_path / "page.png")
    context.close()
    assert errors == []


@pytest.fixture(scope="module")
def served(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Serve the smoke experiment with the documented command; return the addresses that it prints, by name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = tmp_path_factory.mktemp("served") / "said.txt"
    command = [sys.executable, "-m", "jointdiff.cli", "mlflow", "--results", str(tree / "results"), "--port", str(port)]
    with said.open("w") as out:
        server = subprocess.Popen(
            command, cwd=tree, env=environment(tree), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, said)
        yield dict(re.findall(r"^  (\S.*)\n    (http\S+)$", said.read_text(encoding="utf-8"), flags=re.MULTILINE))
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # nothing is lost, and MLflow's workers may outlive a kinder signal
        server.wait()


def _wait(address: str, server: subprocess.Popen[bytes], said: Path) -> None:
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert server.poll() is None, said.read_text(encoding="utf-8")
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:  # nobody answers yet, or not in time
            time.sleep(0.2)
    raise AssertionError(said.read_text(encoding="utf-8"))
