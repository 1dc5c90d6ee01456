"""What the report's first page says, held against hand-made score rows."""

from __future__ import annotations

from jointdiff.evaluate.scores import Row
from jointdiff.questions import QUESTIONS
from jointdiff.report.landing import landing_page
from jointdiff.report.paper import SECTIONS


def row(method: str, labels: str, seed: int, value: float, dataset: str = "phantom") -> Row:
    return Row(
        dataset=dataset, labels=labels, method=method, seed=seed, split="test", metric="auroc", finding="macro",
        value=value, ci_low=value, ci_high=value, n=10, protocol="", run_id="", code_version="", config_digest="",
    )  # fmt: skip


def test_it_names_the_leader_of_each_budget() -> None:
    rows = [
        row("joint", "50", 0, 0.9), row("joint", "50", 1, 0.7), row("fixmatch", "50", 0, 0.81),
        row("fixmatch", "50", 1, 0.81), row("joint", "200", 0, 0.93), row("fixmatch", "200", 0, float("nan")),
        row("random", "200", 0, 0.99), row("fully_supervised", "all", 0, 1.0), row("joint", "all", 0, 0.5, "busi"),
    ]  # fmt: skip
    assert landing_page(rows) == {
        "Phantom, 50 labels: FixMatch": 0.81,
        "Phantom, 200 labels: Joint diffusion": 0.93,
        "BUSI, all labels: Joint diffusion": 0.5,
    }


def test_every_section_of_the_paper_asks_a_question_of_the_report() -> None:
    assert {heading for heading, *_ in SECTIONS} <= set(QUESTIONS)
