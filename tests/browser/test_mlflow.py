"""MLflow as a person finds it behind the printed addresses."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

pytestmark = [pytest.mark.workflow, pytest.mark.browser]

AUROC = "metrics.`test/auroc`"


@pytest.fixture(scope="module")
def runs(tree: Path) -> list[Any]:
    """The trainings, as the store holds them."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tree / 'results' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'smoke'")
    return client.search_runs([experiment.experiment_id], "tags.kind = 'training'")


def address(served: dict[str, str], run: Any, rest: str) -> str:
    server = served["smoke, phantom"].split("#")[0]
    return f"{server}#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/{rest}"


def of(runs: list[Any], method: str) -> Any:
    (found,) = [run for run in runs if run.data.tags["method"] == method]
    return found


def numbers(page: Page, name: str) -> list[float]:
    """Read a column of the table of runs from top to bottom; a group's says that it is an average."""
    cells = page.locator(f".ag-center-cols-container [row-index] [col-id='{name}']")
    # They are drawn in any order, each at its place.
    index = "+cell.closest('[row-index]').getAttribute('row-index')"
    by_row = cells.evaluate_all(f"cells => cells.map(cell => [{index}, cell.innerText.trim()])")
    return [float(text.removesuffix("(average)")) for _, text in sorted(by_row, key=lambda cell: int(cell[0]))]


def naturally_wide(image: Locator) -> int:
    expect(image).to_be_visible()
    return image.evaluate("image => image.decode().then(() => image.naturalWidth)")


def test_the_printed_address_shows_which_method_is_best_at_which_budget(
    page: Page, served: dict[str, str], runs: list[Any]
) -> None:
    page.goto(served["smoke, phantom"])
    expect(page.get_by_text("method: joint, labels: 40")).to_be_visible()
    expect(page.locator(f".ag-center-cols-container [col-id='{AUROC}']")).to_have_count(2 * len(runs))
    means: dict[str, list[float]] = {}
    for run in runs:
        means.setdefault(run.data.tags["method"], []).append(run.data.metrics["test/auroc"])
    expected = sorted(map(fmean, means.values()), reverse=True)
    shown = numbers(page, AUROC)
    # Each group stands above its only run.
    assert shown[::2] == shown[1::2] == pytest.approx(expected, abs=1e-6)

    page.locator(f".ag-header-cell[col-id='{AUROC}']").click()
    expect(page).to_have_url(re.compile("orderByAsc=true"))
    first = page.locator(f".ag-center-cols-container [row-index='0'] [col-id='{AUROC}']")
    expect(first).to_contain_text(str(expected[-1])[:5])
    shown = numbers(page, AUROC)
    assert shown[::2] == pytest.approx(expected[::-1], abs=1e-6)


def test_two_runs_are_compared(page: Page, served: dict[str, str]) -> None:
    page.goto(served["smoke, phantom"])
    names = ["joint · 40 labels · seed 0", "fixmatch · 40 labels · seed 0"]
    for name in names:
        page.get_by_role("row").filter(has_text=name).locator(".ag-selection-checkbox input").check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible()
    for name in names:
        expect(page.get_by_text(name).first).to_be_visible()


def test_a_run_shows_its_curves(page: Page, served: dict[str, str], runs: list[Any]) -> None:
    page.goto(address(served, of(runs, "joint"), "model-metrics"))
    page.get_by_placeholder("Search metric charts").fill("train/loss")
    line = page.locator(".js-plotly-plot .scatterlayer .trace path.js-line").first
    expect(line).to_be_attached()
    assert line.get_attribute("d").count("L") >= 2, "points at several steps"
    expect(page.get_by_text("Step", exact=True).first).to_be_visible()


def test_a_run_shows_its_pictures_and_its_card(page: Page, served: dict[str, str], runs: list[Any]) -> None:
    page.goto(address(served, of(runs, "joint"), "artifacts"))
    page.get_by_text("explanations.png").click()
    assert naturally_wide(page.locator("img[src*='explanations.png'], img[src^='blob:']").first) > 300
    page.goto(address(served, of(runs, "joint"), ""))
    expect(page.get_by_text("Trained by JointDiff Bench for research")).to_be_visible()


def test_pictures_of_runs_stand_side_by_side(page: Page, served: dict[str, str]) -> None:
    page.goto(served["smoke, phantom, pictures"])
    expect(page.get_by_text("images/generated")).to_be_visible()
    images = page.locator("img[src*='images']")
    expect(images.nth(4)).to_be_visible()
    assert min(naturally_wide(image) for image in images.all()[:4]) > 100


def test_tables_open_where_they_are(page: Page, served: dict[str, str], runs: list[Any], tree: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tree / 'results' / 'mlflow.db'}")
    (summary,) = client.search_runs([runs[0].info.experiment_id], "tags.kind = 'summary'")
    page.goto(address(served, summary, "artifacts/tables/classification.html"))
    expect(page.frame_locator("iframe").get_by_text("Joint diffusion").first).to_be_visible()


def test_the_best_model_is_registered_with_its_card(page: Page, served: dict[str, str]) -> None:
    page.goto(served["smoke, phantom"].split("#")[0] + "#/models/smoke-phantom/versions/1")
    expect(page.get_by_text("Trained by JointDiff Bench for research")).to_be_visible()
    expect(page.get_by_text(re.compile(r"^@\s*best\s*$")).first).to_be_visible()
