"""The tables and the document made of them, from made-up results."""

import csv
import math
import re
import shutil
import subprocess

import pytest

from jointdiff.evaluate.scores import MACRO, Identity, collect, format_protocol, read_rows, score_row, write_rows
from jointdiff.paths import PUBLISHED
from jointdiff.report import paper
from jointdiff.report.figures import draw_figures
from jointdiff.report.layout import Cell, Column, Line, Section, Table, number, rank, to_latex, write_html
from jointdiff.report.paper import TexError, TexMissingError, compile_paper, compile_tex
from jointdiff.report.published import Reported, matching, read_published
from jointdiff.report.statistics import Summary
from jointdiff.report.tables import FORMATS, TABLES, draw_tables
from jointdiff.report.wording import budget_axis, change_name, dataset_name, method_name, tex
from tests.conftest import require
from tests.unit.made_results import CHANGES, make_results

needs_tex = pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    scores, predictions, metrics = make_results(root)
    draw(scores, predictions, root / "tables")
    return root, scores, predictions, metrics


def draw(scores, predictions, out):
    order = ["joint", "supervised"]
    draw_tables(scores, predictions, out, published=PUBLISHED, methods=order, changes=CHANGES, draws=100)


def lines_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_table_comes_in_every_format(results):
    names = {path.name for path in (results[0] / "tables").iterdir()}
    assert names == {f"{table}.{suffix}" for table in TABLES for suffix in FORMATS}


def test_the_classification_table_marks_the_best_and_sets_controls_apart(results):
    lines = lines_of(results[0] / "tables" / "classification.csv")
    assert [line["line"] for line in lines[:2]] == ["Joint diffusion", "Supervised"]  # the order asked for
    competing = [line for line in lines if not line["section"]]
    controls = {line["line"] for line in lines if line["section"] == "Controls"}
    assert controls == {"Fully supervised (all labels)", "Random scores"}
    for column in ("Macro AUROC 50 labels", "Accuracy 200 labels"):
        best = max(competing, key=lambda line: float(line[column]))
        assert f"{column}: best" in best["notes"]
        assert sum(f"{column}: best" in line["notes"] for line in lines) == 1
    assert not any("not different" in line["notes"] for line in lines if line["section"])
    worst = min(competing, key=lambda line: float(line["Macro AUROC 50 labels"]))
    assert "Macro AUROC 50 labels: not different" not in worst["notes"]
    text = (results[0] / "tables" / "classification.tex").read_text()
    assert r"\bfseries" in text and r"\underline" in text and r"\multicolumn{2}{c}{\num{" in text
    assert "Reported elsewhere" not in text  # nothing published is comparable


def test_usefulness_holds_synthetic_images_against_real_ones(results):
    lines = {(line["section"], line["line"]): line for line in lines_of(results[0] / "tables" / "usefulness.csv")}
    base, both, alone = (
        lines["200 labels", name]
        for name in (
            "Supervised: real labelled images",
            "Both: real and images drawn by joint diffusion",
            "Images drawn by joint diffusion",
        )
    )
    for metric in ("Macro AUROC", "Accuracy"):
        for line in (both, alone):
            gap = float(line[f"{metric} value"]) - float(base[f"{metric} value"])
            assert float(line[f"{metric} difference"]) == pytest.approx(gap)
            low, high = (float(line[f"{metric} difference {end}"]) for end in ("low", "high"))
            assert low < gap < high
        assert float(both[f"{metric} difference"]) > 0 > float(alone[f"{metric} difference"])
    assert "drawn" not in (results[0] / "tables" / "ablation.csv").read_text(), "what is said here is not said twice"


def test_images_are_judged_by_every_measure_beside_real_ones(results):
    lines = [line for line in lines_of(results[0] / "tables" / "images.csv") if line["section"] == "200 labels"]
    quality, real, private = (lines[i] for i in (0, 2, 3))
    assert (quality["line"], real["line"], private["line"]) == (
        "Joint diffusion", "Real training images", "Joint diffusion",
    )  # fmt: skip
    assert float(quality["Variety Recall"]) == 0.45 and float(real["Variety Recall"]) == 0.91
    assert "weights absent" in quality["notes"]
    assert float(private["Pixels Near copies (%)"]) == pytest.approx(2.0)
    text = (results[0] / "tables" / "images.tex").read_text()
    assert r"(\num{e-3})" in text, "the unit of KID"


def test_what_a_data_set_cannot_vouch_for_stands_below_its_numbers(results):
    assert "Of these data: drawn, not photographed." in (results[0] / "tables/classification.md").read_text()


def test_captions_say_which_network_each_method_has_where_rows_tell(results, tmp_path):
    told = (
        "Networks: U-Net 16 x (1, 2, 4) (0.61 M parameters) for Joint diffusion; "
        "WRN-10-2 (0.61 to 0.63 M) for Supervised, FixMatch."
    )
    for table in ("classification", "cost"):
        assert told in (results[0] / "tables" / f"{table}.md").read_text()
    rows = [row for row in read_rows(results[1]) if row["metric"] in ("auroc", "parameters")]
    sizes = {row["method"]: row["protocol"] for row in rows if row["metric"] == "parameters"}
    assert "network=WRN-10-2" in sizes["fixmatch"] and "network" not in sizes["random"] + sizes["mean_teacher"]
    untold = [{**row, "protocol": format_protocol(device="cpu")} for row in rows]
    for name, kept in {"untold": untold, "unmeasured": [row for row in untold if row["metric"] == "auroc"]}.items():
        write_rows(kept, tmp_path / f"{name}.parquet")
        draw_tables(tmp_path / f"{name}.parquet", [], tmp_path / name)
        assert "compete with nobody." in (tmp_path / name / "classification.md").read_text()
        assert "Networks" not in (tmp_path / name / "classification.md").read_text()


def test_a_network_of_many_methods_is_that_of_all_others(results, tmp_path):
    rows = [row for row in read_rows(results[1]) if row["metric"] in ("auroc", "parameters")]
    more = [{**row, "method": name} for name in ("vat", "uda") for row in rows if row["method"] == "fixmatch"]
    write_rows([*rows, *more], tmp_path / "rows.parquet")
    draw_tables(tmp_path / "rows.parquet", [], tmp_path / "many")
    told = (tmp_path / "many" / "classification.md").read_text()
    assert "for Joint diffusion; WRN-10-2 (0.61 to 0.63 M) for all others that learn." in told


def test_all_systems_stand_side_by_side_with_what_they_cost(results):
    lines = lines_of(results[0] / "tables" / "systems.csv")
    quality, cost = (
        [line for line in lines if line["table"] == name] for name in ("systems-phantom", "systems-phantom-2")
    )
    names = [line["line"] for line in quality]
    assert names[:2] == ["Joint diffusion", "Supervised"] and names == [line["line"] for line in cost]
    assert {line["line"] for line in quality if line["section"]} == {"Fully supervised (all labels)", "Random scores"}
    of = {line["line"]: line for line in quality}
    assert float(of["Joint diffusion"]["Localisation Pointing"]) > float(of["Random scores"]["Localisation Pointing"])
    assert "Localisation Pointing: Change less control" in of["Joint diffusion"]["notes"]
    assert "Localisation Pointing: Grad-CAM" in of["Fully supervised (all labels)"]["notes"]
    assert "Generation FD-fully supervised: best" in of["Joint diffusion"]["notes"]
    assert float(cost[0]["Network calls Edit"]) == 24 and cost[1]["Network calls Edit"] == ""
    assert "best" not in cost[0]["notes"].split("Prediction")[0]  # alone with an edit, and equal in all calls


def test_a_system_with_all_labels_is_nobodys_rival(tmp_path):
    rows = [
        score_row(Identity("d", labels, method, 0, "c", method, method), metric="auroc", value=value)
        for method, labels, value in (("a", "50", 0.8), ("b", "50", 0.7), ("all_of_them", "all", 0.9))
    ]
    write_rows(rows, tmp_path / "s.parquet")
    draw_tables(tmp_path / "s.parquet", [], tmp_path / "tables")
    lines = {line["line"]: line for line in lines_of(tmp_path / "tables" / "systems.csv")}
    assert "best" in lines["A"]["notes"] and lines["All of them (all labels)"]["section"] == "Controls"
    assert r"\label{tab:systems-d-2}" not in (tmp_path / "tables" / "systems.tex").read_text()  # nobody's cost is known


def test_where_all_labels_are_the_only_budget_they_compete(tmp_path):
    rows = [
        score_row(Identity("d", "all", method, 0, "c", method, method), metric="auroc", value=value)
        for method, value in (("a", 0.8), ("b", 0.7), ("random", 0.5))
    ]
    write_rows(rows, tmp_path / "s.parquet")
    draw_tables(tmp_path / "s.parquet", [], tmp_path / "tables")
    lines = {line["line"]: line for line in lines_of(tmp_path / "tables" / "classification.csv")}
    assert "best" in lines["A"]["notes"] and not lines["B"]["section"]
    assert lines["Random scores"]["section"] == "Controls"


def test_without_regions_only_what_edits_do_is_told_and_one_finding_needs_no_mean(tmp_path):
    rows = [
        score_row(
            Identity("d", "50", "a", 0, "c", "a", "a"),
            metric=metric,
            value=value,
            finding=finding,
            protocol=format_protocol(map=place, reason="no regions in data set" if math.isnan(value) else None),
        )
        for finding in ("x", MACRO)
        for place, metric, value in (
            ("counterfactual", "pointing", math.nan),
            ("counterfactual", "flip_rate", 0.5),
            ("counterfactual_control", "pointing", math.nan),
        )
    ]
    write_rows(rows, tmp_path / "s.parquet")
    draw_tables(tmp_path / "s.parquet", [], tmp_path / "tables")
    (line,) = lines_of(tmp_path / "tables" / "localisation.csv")
    assert (line["section"], line["line"], float(line["Flips own"])) == ("X", "A: change", 0.5)


def test_votes_are_told_with_their_calls(results):
    lines = lines_of(results[0] / "tables" / "votes.csv")
    few = [line for line in lines if line["section"].startswith("Diffusion classifier, 50 labels; 51 trials are 306")]
    rules = [line["line"] for line in few]
    assert rules[:4] == [f"Majority of {n}" for n in ("1 trial", "5 trials", "25 trials", "51 trials")]
    assert rules[-2:] == ["Race over at most 51 trials", "As predicted"] and len(lines) == 2 * len(few)
    calls, fewer = "Network calls per image", "Network calls times fewer"
    assert float(few[3][calls]) == 306 and float(few[3][fewer]) == 1
    assert float(few[-2][calls]) == pytest.approx(6 * 51**0.55)
    assert float(few[-2][fewer]) == pytest.approx(51**0.45)
    gained = [line["Points gained"] for line in few]
    assert float(gained[0]) < -5 and float(few[0]["Points gained high"]) == pytest.approx(float(gained[0]) + 3)
    assert not gained[3] and not gained[-1]  # what the others are held against, and what has thresholds of its own
    last = few[-1]
    assert 0 < float(last["Risk-coverage AURC"]) < 1 - float(last["Accuracy"]) and "best" not in last["notes"]
    assert float(last["Risk-coverage surest 80 %"]) > float(last["Accuracy"])
    assert few[0]["Risk-coverage AURC"] == ""


def test_votes_that_stopped_early_are_told_as_far_as_they_go(tmp_path):
    identity = Identity("d", "50", "diffusion_classifier", 0, "c", "f", "r")
    rows = [
        score_row(identity, metric=metric, value=value, protocol=format_protocol(rule=rule, trials=trials))
        for rule, trials, calls in (("majority", 1, 10), ("race", 1, 10), ("race", 501, 100))
        for metric, value in (("vote_accuracy", 0.5), ("vote_calls", calls))
    ]
    write_rows(rows, tmp_path / "s.parquet")
    draw_tables(tmp_path / "s.parquet", [], tmp_path / "tables")
    lines = {line["line"]: line for line in lines_of(tmp_path / "tables" / "votes.csv")}
    assert float(lines["Race over at most 501 trials"]["Network calls times fewer"]) == pytest.approx(50.1)
    assert "Macro AUROC" not in lines["As predicted"]


def test_an_ablation_is_a_difference_to_the_base(results):
    lines = lines_of(results[0] / "tables" / "ablation.csv")
    found = {(line["table"], line["section"], line["line"]): line for line in lines}
    name = "pooling: max instead of both; autoencoder: kl instead of none"
    base, worse = (found["ablation-phantom", "50 labels", n] for n in ("Joint diffusion", "Joint diffusion, max"))
    assert worse["notes"].startswith(name) and base["Macro AUROC difference"] == ""
    gap = float(worse["Macro AUROC value"]) - float(base["Macro AUROC value"])
    assert float(worse["Macro AUROC difference"]) == pytest.approx(gap)
    assert float(worse["Macro AUROC difference low"]) < gap < float(worse["Macro AUROC difference high"]) < 0
    assert "Macro AUROC difference: different" in worse["notes"]
    even = found["ablation-phantom", "50 labels", "Joint diffusion, long"]
    assert "different" not in even["notes"] and "training steps: 900 instead of 500" in even["notes"]
    drawn = found["ablation-phantom-images", "50 labels", "Joint diffusion, max"]
    assert float(drawn["Frechet distance difference"]) == pytest.approx(3)
    assert ("ablation-phantom-images", "50 labels", "Joint diffusion, long") not in found  # it draws no images
    latex = (results[0] / "tables" / "ablation.tex").read_text()
    assert re.search(r"\$-\$\\num\{0\.\d+\} \[\$-\$\\num", latex) and r"\rlap{\textsuperscript{*}}" in latex


def test_the_joint_table_says_why_a_number_is_missing(results):
    text = (results[0] / "tables" / "joint.tex").read_text()
    assert r"weights absent: set x\_y" in text and "fewer images than the 256 features" in text
    assert "Real training images" in text and "FD-fully supervised" in text
    assert "<sup>b</sup> weights absent: set x_y" in (results[0] / "tables" / "joint.html").read_text()


def test_the_localisation_table_has_every_map_and_finding(results):
    lines = lines_of(results[0] / "tables" / "localisation.csv")
    assert {line["table"] for line in lines} == {
        f"localisation-phantom-{budget}{part}" for budget in (50, 200) for part in ("", "-boxes")
    }
    sections = {line["section"].partition(";")[0] for line in lines}
    assert sections == {"Nodule", "Large heart", "Effusion", "All findings (macro)"}
    nodule = [line for line in lines if line["section"].startswith("Nodule") and line["table"].endswith("-50")]
    assert [line["line"] for line in nodule] == [
        "Joint diffusion: change",
        "Joint diffusion: change less control",
        "Fully supervised: Grad-CAM",
        "Fully supervised: Occlusion",
        "Random map",
        "Centre prior",
    ]
    assert nodule[0]["Flips judge"] and not nodule[4]["Mean change inside (%)"]
    assert all("best" not in line["notes"] for line in nodule if line["line"] in ("Random map", "Centre prior"))


def test_the_table_of_boxes_says_what_a_map_costs(results):
    lines = lines_of(results[0] / "tables" / "localisation.csv")
    boxes = {
        line["line"]: line
        for line in lines
        if line["table"] == "localisation-phantom-200-boxes" and line["section"].startswith("Effusion")
    }
    scored = [
        row["value"]
        for row in read_rows(results[1])
        if (row["labels"], row["metric"], row["finding"]) == ("all", "box_iobb_above_0.25", "effusion")
        and "map=occlusion" in row["protocol"]
    ]
    assert len(scored) == 2  # seeds
    occlusion, change = boxes["Fully supervised: Occlusion"], boxes["Joint diffusion: change less control"]
    assert float(occlusion["Box IoBB > 0.25"]) == pytest.approx(sum(scored) / 2)
    assert (float(occlusion["Cost of a map Calls"]), float(occlusion["Cost of a map Time (ms)"])) == (26, 30)
    assert (float(change["Cost of a map Calls"]), float(change["Cost of a map Time (ms)"])) == (24, 301)
    assert boxes["Random map"]["Cost of a map Calls"] == "" and float(boxes["Random map"]["Box IoU mean"]) > 0


def test_the_counterfactual_table_says_whether_edits_convince_and_what_they_change(results):
    lines = lines_of(results[0] / "tables" / "counterfactual.csv")
    names = [f"counterfactual-phantom-{budget}{part}" for budget in (50, 200) for part in ("", "-size")]
    assert list(dict.fromkeys(line["table"] for line in lines)) == names
    convince, change = ([line for line in lines if line["table"] == name] for name in names[:2])
    sections = ["All findings (macro)", "Effusion", "Large heart", "Nodule"]
    for part in (convince, change):  # macro first; only who edits
        assert [line["section"] for line in part] == sections
        assert {line["line"] for line in part} == {"Joint diffusion"}
    scores = {
        (row["metric"], row["finding"]): []
        for row in read_rows(results[1])
        if row["labels"] == "50" and row["method"] == "joint"
    }
    for row in read_rows(results[1]):
        if row["labels"] == "50" and row["method"] == "joint" and "rule=" not in row["protocol"]:
            scores[row["metric"], row["finding"]].append(row["value"])
    for line, finding in zip(convince, ("macro", "effusion", "large_heart", "nodule"), strict=True):
        for column, metric in (
            ("Removed own", "flip_rate"),
            ("Removed control", "control_flip_rate"),
            ("Probability after", "probability_after"),
            ("Judge's probability before", "judge_probability_before"),
            ("Judge's probability after", "judge_probability_after"),
            ("Judge's probability control", "control_probability"),
            ("Enforced own", "enforce_rate"),
            ("Enforced judge", "judge_enforce_rate"),
            ("Side effect judge", "judge_side_effect"),
        ):
            assert float(line[column]) == pytest.approx(sum(scores[metric, finding]) / 2), (column, finding)
    for line, finding in zip(change, ("macro", "effusion", "large_heart", "nodule"), strict=True):
        for column, metric in (("COUT own", "cout"), ("COUT judge", "judge_cout")):
            assert float(line[column]) == pytest.approx(sum(scores[metric, finding]) / 2), (column, finding)
    for column, metric in (("edited", "edit_frechet_distance"), ("unedited", "unedited_frechet_distance")):
        # Of all edits together, and so said once.
        cells = [line[f"Frechet distance {column}"] for line in change]
        assert float(cells[0]) == pytest.approx(sum(scores[metric, "macro"]) / 2) and cells[1:] == [""] * 3
    assert "fewer images than the 30 features" in change[0]["notes"]
    assert float(change[0]["Edit size (%)"]) < float(change[0]["Proximity (%)"])
    assert 0 < float(change[0]["Sparsity"]) < 1 and float(change[0]["Spread (%)"]) == pytest.approx(0.5, abs=0.1)
    assert [float(line["Calls"]) for line in change] == [24] * 4
    assert not any("best" in line["notes"] for line in change)  # nothing is the smallest change


def test_where_nothing_was_put_in_there_are_no_such_columns(tmp_path):
    identity = Identity("d", "50", "joint", 0, "c", "f", "r")
    rows = [
        score_row(identity, metric=metric, value=value, finding=finding, protocol="map=counterfactual")
        for metric, value in (("flip_rate", 0.7), ("judge_flip_rate", 0.4), ("proximity", 2.0))
        for finding in ("lesion", "macro")
    ]
    write_rows(rows, tmp_path / "s.parquet")
    draw_tables(tmp_path / "s.parquet", [], tmp_path / "tables")
    convince, change = lines_of(tmp_path / "tables" / "counterfactual.csv")
    assert convince["section"] == change["section"] == "Lesion"  # a single finding is its own mean
    assert not any(column.startswith(("Enforced", "Calls")) for column in convince)
    assert (float(convince["Removed judge"]), float(change["Proximity (%)"])) == (0.4, 2)


def test_the_cost_table_leaves_no_cost_as_zero(results):
    lines = {line["line"]: line for line in lines_of(results[0] / "tables" / "cost.csv")}
    assert lines["Supervised"]["Time per image Sample (ms)"] == ""
    assert float(lines["Joint diffusion"]["Time per image Sample (ms)"]) == pytest.approx(41.7)
    assert float(lines["Joint diffusion"]["Parameters (M)"]) == pytest.approx(0.612345)
    assert float(lines["Joint diffusion"]["Training Compute (TFLOP)"]) == pytest.approx(4.321)


def test_two_runs_write_the_same_bytes(results, tmp_path):
    root, scores, predictions, _ = results
    draw(scores, predictions, tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (root / "tables" / path.name).read_bytes(), path.name


def test_a_table_that_would_be_too_wide_becomes_several(tmp_path):
    scores, predictions, _ = make_results(tmp_path, budgets=("50", "100", "200", "400"), seeds=(0,), n=90, draws=20)
    draw_tables(scores, predictions, tmp_path / "tables", draws=20)
    text = (tmp_path / "tables" / "classification.tex").read_text()
    assert text.count(r"\begin{table}") == 3 and "of one seed" in text
    assert len(set(re.findall(r"\\label\{(.*?)\}", text))) == 3


def test_an_experiment_without_generators_or_maps_still_has_its_files(tmp_path):
    identity = Identity("d", "50", "m", 0, "c", "f", "r")
    write_rows([score_row(identity, metric="auroc", value=0.5, n=3)], tmp_path / "a.parquet")
    collect([tmp_path / "a.parquet"], tmp_path / "s.parquet", tmp_path / "s.csv")
    draw_tables(tmp_path / "s.parquet", [], tmp_path / "tables")
    for table, missing in (
        ("joint", "No method of this experiment draws images."),
        ("counterfactual", "No method of this experiment makes counterfactuals."),
        ("votes", "No method of this experiment votes."),
        ("ablation", "No variant of this experiment changes another one."),
    ):
        assert missing in (tmp_path / "tables" / f"{table}.md").read_text()
    source = paper.write_source(
        tmp_path / "p.tex",
        tmp_path / "tables",
        tmp_path,
        rows=read_rows(tmp_path / "s.parquet"),
        title="t",
        pictures={},
    ).read_text()
    for empty in ("joint.tex", "votes", "ablation", "ranks", "change.pdf", "Are its images useful and safe to share?"):
        assert empty not in source
    assert "classification.tex" in source and "systems.tex" in source and "auroc.pdf" in source


def test_a_failed_cell_is_a_gap_with_its_reason(tmp_path):
    rows = []
    for method, value, reason in (("good", 0.9, None), ("failed", math.nan, "training diverged & stopped")):
        identity = Identity("d", "50", method, 0, "c", method, method)
        rows.append(score_row(identity, metric="auroc", value=value, protocol=format_protocol(reason=reason)))
    write_rows(rows, tmp_path / "s.parquet")
    draw_tables(tmp_path / "s.parquet", [], tmp_path / "tables")
    assert r"training diverged \& stopped" in (tmp_path / "tables" / "classification.tex").read_text()
    failed = next(line for line in lines_of(tmp_path / "tables" / "classification.csv") if line["line"] == "Failed")
    assert failed["Macro AUROC 50 labels"] == "" and "training diverged" in failed["notes"]


def test_ranks_follow_the_direction_of_the_metric():
    def line(value, **more):
        return Line("x", (Cell(Summary(mean=value)),), **more)

    section = Section("", (line(3.0), line(1.0), line(2.0), line(0.0, competes=False), line(math.nan)))
    for metric, ranks in (("fid", [0, 1, 2, 0, 0]), ("auroc", [1, 0, 2, 0, 0])):
        marked = rank(section, [Column("c", metric)])
        assert [one.cells[0].rank for one in marked.lines] == ranks
    alone = rank(Section("", (line(1.0),)), [Column("c", "auroc")])
    assert alone.lines[0].cells[0].rank == 0  # nobody to be better than


def test_numbers_keep_a_deviation_of_zero():
    column = Column("c", "auroc", digits=3)
    assert number(Cell(Summary(mean=0.95, sd=0.0)), column) == "0.950 ± 0.000"
    assert number(Cell(Summary(mean=0.95, sd=0.0124)), column, compact=True) == "0.950 (12)"
    assert number(Cell(Summary(mean=0.95)), column) == "0.950"
    gap = Column("c", "auroc", signed=True)
    assert number(Cell(Summary(mean=0.0125, low=-0.004, high=0.02)), gap) == "+0.013 [-0.004, +0.020]"
    assert number(Cell(Summary(mean=-3.25, sd=1.0)), gap) == "-3.250"
    assert number(Cell(Summary(mean=612_345.0)), Column("c", "parameters", scale=1e-6, digits=2)) == "0.61"


NASTY = r"50% of $x_1$ & {a} #2 ~ ^ \input{/etc/passwd} <b>|*_é“ß→漢" + "\x00\n"


def test_no_text_of_a_row_is_markup(tmp_path):
    table = Table(NASTY, NASTY, NASTY, (Column(NASTY, "x", NASTY, NASTY),), ())
    table = Table(**{**table.__dict__, "sections": (Section(NASTY, (Line(NASTY, (Cell(note=NASTY),)),)),)})
    latex = to_latex(table)
    assert r"\input" not in latex and r"\textbackslash{}input\{" in latex and "\x00" not in latex
    write_html([table], tmp_path / "t.html")
    assert "<b>" not in (tmp_path / "t.html").read_text()
    assert tex("a_b % é – ±") == r"a\_b \% é -- \ensuremath{\pm}"


def test_names_of_unknown_methods_are_written_as_they_are():
    assert method_name("joint_noisy") == "Joint diffusion, noisy"
    assert method_name("mean_teacher_slow") == "Mean Teacher, slow" and method_name("joint") == "Joint diffusion"
    assert method_name("resnet50_pretrained") == "ResNet-50, pretrained"
    assert method_name("jointly") == "Jointly" and method_name("my_new_method") == "My new method"
    assert dataset_name("shifted_fashion_mnist") == "Fashion-MNIST, shifted"


def test_changes_are_written_as_words():
    assert change_name("settings.pooling", "both", "max") == "pooling: max instead of both"
    assert change_name("autoencoder", None, "kl") == "autoencoder: kl instead of none"
    assert change_name("training.batch_size", 32, 64) == "training batch size: 64 instead of 32"
    assert change_name("settings.attention_at", [8, 16], []) == "attention at: none instead of 8, 16"
    assert change_name("settings.ema", 0.999, True) == "ema: yes instead of 0.999"


def test_published_numbers_need_the_same_data_setting_and_metric():
    number = Reported("FixMatch", "CIFAR-10", "40 labels", "error", "8.33", "USB")
    here = {"dataset": "cifar10", "size": "32", "labels": "40", "metric": "accuracy"}
    assert matching(number, **here) == pytest.approx(0.9167)
    for change in ({"dataset": "svhn"}, {"labels": "250"}, {"metric": "auroc"}):
        assert math.isnan(matching(number, **{**here, **change}))
    small = Reported("ResNet-18", "PneumoniaMNIST 28px", "full labels", "AUROC", "94.4", "MedMNIST v2")
    there = {"dataset": "pneumonia_mnist", "size": "28", "labels": "all", "metric": "auroc"}
    assert matching(small, **there) == pytest.approx(0.944)
    assert math.isnan(matching(small, **{**there, "size": "64"}))
    votes = Reported("DiT", "cifar10", "full labels 501 votes", "accuracy", "86.1", "x")
    assert math.isnan(matching(votes, **{**here, "labels": "all"}))
    percent = Reported("x", "cifar10", "2 % labels", "accuracy", "86.1", "x")
    assert matching(percent, **{**here, "labels": "0.02"}) == pytest.approx(0.861)


def test_published_numbers_stand_apart_with_their_source(tmp_path):
    scores, predictions, _ = make_results(tmp_path, dataset="cifar10", budgets=("40",), seeds=(0,), n=60, draws=10)
    draw_tables(scores, predictions, tmp_path / "tables", published=PUBLISHED, draws=10)
    lines = lines_of(tmp_path / "tables" / "classification.csv")
    reported = {line["line"]: line for line in lines if line["section"].startswith("Reported")}
    assert set(reported) == {"FixMatch", "FlexMatch", "FreeMatch", "SoftMatch"}
    assert float(reported["FreeMatch"]["Accuracy 40 labels"]) == pytest.approx(0.9503)
    assert "reported by USB" in reported["FreeMatch"]["notes"] and "best" not in reported["FreeMatch"]["notes"]


def test_a_published_file_with_other_columns_is_refused(tmp_path):
    (tmp_path / "p.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"p\.csv: columns must be system, dataset"):
        read_published(tmp_path / "p.csv")


@pytest.mark.tex
@needs_tex
@pytest.mark.parametrize("table", TABLES)
def test_each_table_compiles_by_itself(results, tmp_path, table):
    compile_tex(results[0] / "tables" / f"{table}.tex", tmp_path / "t.pdf", runs=1)
    assert (tmp_path / "t.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.tex
@needs_tex
def test_the_paper_compiles_to_the_same_bytes(results):
    root, scores, predictions, metrics = results
    draw_figures(scores, predictions, metrics, root / "figures")
    before = set(root.rglob("*"))
    grids = {"Images of joint_a (50 % of labels)": root / "figures" / "auroc.png"}
    made = []
    for _ in range(2):
        compile_paper(
            root / "tables", root / "figures", root / "paper.pdf", scores=scores, title="a_b & c", grids=grids
        )
        made.append((root / "paper.pdf").read_bytes())
    assert made[0] == made[1]
    assert set(root.rglob("*")) - before == {root / "paper.pdf", root / "paper.tex"}
    assert str(root) not in (root / "paper.tex").read_text()  # the folder may move
    if shutil.which("pdftotext"):
        text = subprocess.run(["pdftotext", root / "paper.pdf", "-"], capture_output=True, text=True).stdout
        assert "Which classifier with few labels?" in text and "a_b & c" in text and "??" not in text


@pytest.mark.tex
@needs_tex
def test_nothing_of_the_paper_runs_off_its_page(results, tmp_path):
    from PIL import Image

    root, scores, predictions, metrics = results
    draw_figures(scores, predictions, metrics, root / "figures")
    Image.new("L", (300, 3000), 128).save(tmp_path / "tall.png")
    strips = {"Edits one below another": tmp_path / "tall.png"}
    compile_paper(root / "tables", root / "figures", tmp_path / "p.pdf", scores=scores, title="t", strips=strips)
    require("pdftotext")
    done = subprocess.run(["pdftotext", "-bbox", tmp_path / "p.pdf", "-"], capture_output=True, text=True, check=True)
    height, seen = 0.0, set()
    for line in done.stdout.splitlines():
        if page := re.search(r'<page width="[\d.]+" height="([\d.]+)"', line):
            height = float(page[1])
        elif word := re.search(r'yMax="([\d.]+)">(.*)</word>', line):
            assert float(word[1]) < height - 30, word[2]
            seen.add(word[2])
    assert {"Edits", "below"} <= seen


@pytest.mark.tex
@needs_tex
def test_nasty_text_still_compiles(tmp_path):
    from jointdiff.report.layout import write_latex

    section = Section(NASTY, (Line(NASTY, (Cell(note=NASTY),)),))
    write_latex([Table("x", NASTY, NASTY, (Column(NASTY, "x", NASTY, NASTY),), (section,))], tmp_path / "t.tex")
    compile_tex(tmp_path / "t.tex", tmp_path / "t.pdf", runs=1)
    assert (tmp_path / "t.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.tex
@needs_tex
def test_a_refused_document_quotes_latex(tmp_path):
    (tmp_path / "bad.tex").write_text("\\documentclass{article}\n\\begin{document}\n\\nonsense\n\\end{document}\n")
    with pytest.raises(TexError, match=r"bad\.tex.*Undefined control sequence.*nonsense"):
        compile_tex(tmp_path / "bad.tex", tmp_path / "bad.pdf")
    assert not (tmp_path / "bad.pdf").exists()
    (tmp_path / "bad.tex").write_text("\\documentclass{article}\n\\usepackage{nosuchthing}\n\\begin{document}\n")
    with pytest.raises(TexMissingError, match=r"lacks nosuchthing\.sty; install"):
        compile_tex(tmp_path / "bad.tex", tmp_path / "bad.pdf")


def test_without_tex_the_remedy_is_named(results, monkeypatch):
    root, scores, *_ = results
    monkeypatch.setattr(paper.shutil, "which", lambda name: None)
    with pytest.raises(TexMissingError, match=r"pdflatex was not found.*install TeX Live"):
        compile_paper(root / "tables", root / "figures", root / "paper.pdf", scores=scores, title="t")


@pytest.mark.parametrize(
    ("budgets", "ticks", "unit"),
    [
        (["4-per-class", "25-per-class"], ["4", "25"], "labels per class"),
        (["50", "200"], ["50", "200"], "labels"),
        (["0.05", "0.1"], ["5 %", "10 %"], "share of labels"),
        (["50", "0.1", "all"], ["50 labels", "10 % of labels", "all labels"], ""),
    ],
)
def test_budgets_of_one_kind_are_numbers_on_an_axis(budgets, ticks, unit):
    assert budget_axis(budgets) == (ticks, unit)
