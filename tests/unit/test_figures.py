"""The figures from made-up results: they exist, they are the same again, their colours are consistent."""

import subprocess
import sys

import numpy as np
import pytest

from jointdiff.evaluate.scores import Identity, format_protocol, read_rows, score_row, write_rows
from jointdiff.report.evidence import Evidence, read_curves
from jointdiff.report.figures import FIGURES, FORMATS, draw_figures
from jointdiff.report.figures._drawing import PAGE, PALETTE, STYLE, colours
from jointdiff.report.figures.auroc import CROWDED, GREY, draw_auroc
from jointdiff.report.figures.reliability import reliability
from jointdiff.report.figures.risk import draw_risk
from jointdiff.report.figures.votes import draw_votes
from jointdiff.report.statistics import Scores, read_cells
from tests.unit.made_results import make_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    scores, predictions, metrics = make_results(root, n=120, draws=20)
    draw_figures(scores, predictions, metrics, root / "figures")
    return root, scores, predictions, metrics


def test_every_figure_is_a_pdf_and_a_picture_that_is_not_empty(results):
    from PIL import Image

    names = {path.name for path in (results[0] / "figures").iterdir()}
    assert names == {f"{figure}.{suffix}" for figure in FIGURES for suffix in FORMATS}
    for figure in FIGURES:
        pixels = np.asarray(Image.open(results[0] / "figures" / f"{figure}.png").convert("RGB")).reshape(-1, 3)
        assert len(np.unique(pixels, axis=0)) > 20, figure


def test_another_process_draws_the_same_bytes(results, tmp_path):
    root, scores, predictions, metrics = results
    code = "import sys; from jointdiff.report.figures import draw_figures as d; a = sys.argv; n = int(a[3])\n"
    code += "d(a[1], a[4:4 + n], a[4 + n:], a[2])"
    arguments = [scores, tmp_path, len(predictions), *predictions, *metrics]
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (root / "figures" / path.name).read_bytes(), path.name


def test_what_there_is_no_data_for_is_a_figure_that_says_so(tmp_path):
    identity = Identity("d", "50", "m", 0, "c", "f", "r")
    write_rows([score_row(identity, metric="accuracy", value=0.5)], tmp_path / "s.parquet")
    assert len(draw_figures(tmp_path / "s.parquet", [], [], tmp_path / "figures")) == len(FIGURES) * len(FORMATS)


def test_a_method_keeps_its_colour_whoever_else_takes_part():
    few, many = colours(["joint", "supervised"]), colours(["acpl", "vat", "supervised", "joint", "random"])
    assert few["joint"] == many["joint"] == (PALETTE[0], "o") and few["supervised"] == many["supervised"]
    assert len(set(many.values())) == len(many) == 4  # a control has no colour of its own


def test_curves_are_read_by_split(results):
    curves = read_curves(results[3])
    (steps, loss), (checks, auroc) = (curves["phantom", "50", "joint"][0][name] for name in ("loss", "auroc"))
    assert len(steps) == len(loss) == 20 and list(checks) == [100, 200, 300, 400] and (np.diff(auroc) > 0).all()
    assert len(curves["phantom", "50", "random"][0]["loss"][0]) == 0


def test_reliability_is_mean_probability_against_frequency(results):
    cell = read_cells(results[2])["phantom", "50"]["random", 0]
    mean, share = reliability([cell])
    p, y = cell.scores.ravel(), cell.labels.ravel()
    inside = (p >= 0.5) & (p < 0.6)
    where = np.flatnonzero((mean >= 0.5) & (mean < 0.6))[0]
    assert (mean[where], share[where]) == pytest.approx((p[inside].mean(), y[inside].mean()))


def test_the_race_is_marked_by_what_it_saves(results):
    figure = draw_votes(Evidence(Scores(read_rows(results[1])), ["diffusion_classifier"]))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["Phantom: 50 labels", "Phantom: 200 labels"]
    axis = figure.axes[0]
    assert axis.get_xscale() == "log" and axis.get_ylabel() == "macro AUROC"  # of findings
    majority, _, race = axis.lines
    assert majority.get_xdata()[-1] == 306 and race.get_xdata()[-1] == pytest.approx(6 * 51**0.55)
    assert "race: 5.9 times fewer calls\nat +0.0 points" in [text.get_text() for text in axis.texts]


def test_votes_on_classes_are_drawn_by_their_accuracy_and_need_no_majority():
    rows = [
        score_row(
            Identity(dataset, "50", method, 0, "c", "f", "r"),
            metric=metric,
            value=value,
            protocol=format_protocol(rule="race", trials=trials),
        )
        for dataset, method in (("cifar10", "diffusion_classifier"), ("svhn", "dit"))
        for trials, calls, share in ((1, 10, 0.3), (501, 600, 0.8))
        for metric, value in (("vote_accuracy", share), ("vote_calls", calls))
    ]
    figure = draw_votes(Evidence(Scores(rows), ["dit", "diffusion_classifier"]))
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "CIFAR-10: Diffusion classifier\n50 labels",
        "SVHN: Dit\n50 labels",
    ]
    assert all(len(axis.lines) == 1 and axis.get_ylabel() == "accuracy" for axis in figure.axes)


def test_a_risk_far_above_the_competitors_is_named_and_not_drawn(results):
    order = ["joint", "random", "fully_supervised"]
    figure = draw_risk(Evidence(Scores(read_rows(results[1])), order, cells=read_cells(results[2])))
    (axis,) = figure.axes
    drawn = {line.get_label().partition(" (")[0] for line in axis.lines}
    assert drawn == {"Joint diffusion", "Fully supervised"}
    assert "random scores: 0." in axis.texts[0].get_text()


def test_many_methods_have_a_panel_each_in_front_of_the_others(tmp_path):
    methods = ["supervised", *(f"m{i}" for i in range(CROWDED))]
    rows = [
        score_row(Identity("d", labels, method, 0, "c", "f", "r"), metric="auroc", value=0.6 + 0.02 * i + gain)
        for i, method in enumerate(methods)
        for labels, gain in (("50", 0.0), ("200", 0.1))
    ]
    write_rows(rows, tmp_path / "s.parquet")
    figure = draw_auroc(Evidence(Scores(read_rows(tmp_path / "s.parquet")), methods))
    assert sum(axis.get_visible() for axis in figure.axes) == len(methods) and len(figure.legends) == 1
    own = figure.axes[methods.index("m3")].containers[0].lines[0].get_ydata()
    assert list(own) == pytest.approx([0.68, 0.78])
    assert len({axis.get_ylim() for axis in figure.axes if axis.get_visible()}) == 1  # can be compared
    assert sum(line.get_color() == GREY for line in figure.axes[0].lines) == CROWDED  # behind supervised, all others
    write_rows([row for row in rows if row["method"] != "supervised"], tmp_path / "few.parquet")
    few = draw_auroc(Evidence(Scores(read_rows(tmp_path / "few.parquet")), methods[1:]))
    assert len(few.axes) == 1 and len(few.axes[0].containers) == CROWDED


def test_a_method_looks_alike_in_all_figures_and_is_readable_on_a_page(results):
    import matplotlib as mpl
    from matplotlib.colors import to_hex
    from matplotlib.text import Text

    rows = Scores(read_rows(results[1]))
    order = ["joint", "fixmatch", "supervised", "fully_supervised"]
    evidence = Evidence(rows, order, cells=read_cells(results[2]), curves=read_curves(results[3]))
    look, drawn = colours(order), {}
    for name, draw in FIGURES.items():
        with mpl.rc_context(STYLE):
            figure = draw(evidence)
        assert figure.get_figwidth() <= PAGE, name
        sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
        assert min(sizes) >= 8, name
        for legend in figure.legends:
            for line, text in zip(legend.get_lines(), legend.get_texts(), strict=False):
                drawn.setdefault(text.get_text().partition(" (")[0], set()).add(to_hex(line.get_color()).upper())
    assert drawn["Joint diffusion"] == {look["joint"][0]} and drawn["FixMatch"] == {look["fixmatch"][0]}
    assert drawn["Fully supervised"] == {"#000000"}


def test_fonts_are_in_the_file_and_nothing_is_a_bitmap(results):
    for figure in FIGURES:
        content = (results[0] / "figures" / f"{figure}.pdf").read_bytes()
        assert b"/FontFile2" in content and b"/Subtype /Image" not in content, figure
