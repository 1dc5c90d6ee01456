"""The report opened from its file: questions in order, captions, tables and pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from jointdiff.questions import QUESTIONS, numbered

pytestmark = [pytest.mark.workflow, pytest.mark.browser]


@pytest.fixture
def report(page: Page, tree: Path) -> Page:
    page.goto((tree / "results" / "smoke" / "report.html").as_uri())
    return page


def test_it_opens_with_the_questions_in_order(report: Page) -> None:
    menu = report.locator("nav li")
    expect(menu.filter(has_text="Is the split clean?")).to_be_visible()
    questions = [text for text in menu.all_inner_texts() if "?" in text]
    assert [text.strip() for text in questions] == [numbered(question) for question in QUESTIONS]
    landing = report.locator(".prose")
    expect(landing.get_by_role("heading", name="JointDiff Bench: smoke")).to_be_visible()
    expect(report.get_by_text("Phantom, 40 labels:")).to_be_visible()


def test_a_question_leads_to_its_table_and_caption(report: Page) -> None:
    report.locator(".prose").get_by_text("Which classifier with few labels?").click()
    row = report.get_by_role("row").filter(has_text="classification")
    row.locator("[iconname=eye]").click()
    table = report.frame_locator("iframe").get_by_role("table").first
    expect(table.get_by_role("row").filter(has_text="Joint diffusion")).to_be_visible()
    row.locator("[iconname=information-circle]").click()
    expect(report.get_by_text("Macro AUROC, macro average precision and accuracy on test images")).to_be_visible()


@pytest.mark.parametrize(
    ("question", "picture"),
    [("Which classifier with few labels?", "auroc"), ("Can its probabilities be trusted?", "reliability")],
)
def test_a_figure_is_shown(report: Page, question: str, picture: str) -> None:
    report.locator("nav").get_by_text(question).click()
    report.get_by_role("row").filter(has_text=picture).locator("[iconname=eye]").click()
    shown = report.locator("img[src^='data:image/png']")
    expect(shown).to_be_visible()
    assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300


def test_the_workflow_and_the_times_of_its_steps_are_at_hand(report: Page, tmp_path: Path) -> None:
    menu = report.locator("nav")
    menu.get_by_text("Workflow").click()
    graph = report.locator(".vega-embed :is(canvas, svg)")
    expect(graph.first).to_be_visible()
    report.screenshot(path=tmp_path / "workflow.png")
    menu.get_by_text("Statistics").click()
    expect(graph.nth(1)).to_be_visible()  # run times, and when each ran
