"""Score rows: their columns, their order, and that a table of them is safe to open."""

import csv
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointdiff.evaluate.scores import (
    COLUMNS,
    Identity,
    budget_order,
    collect,
    format_protocol,
    parse_protocol,
    read_rows,
    reason_of,
    score_row,
    sort_rows,
    write_rows,
)

IDENTITY = Identity("phantom", "50", "joint", 0, "c0de", "c0nf", "r0")


def row(**changes):
    values = {"metric": "auroc", "value": 0.5, "n": 10, **changes}
    identity = Identity(**{**IDENTITY.__dict__, **{k: values.pop(k) for k in list(values) if k in IDENTITY.__dict__}})
    return score_row(identity, **values)


def test_columns_are_the_published_ones_in_order():
    names = "dataset, labels, method, seed, split, metric, finding, value, ci_low, ci_high, n, protocol, code_version"
    assert list(COLUMNS) == [*names.split(", "), "config_digest", "run_id"] == list(row())


def test_rows_survive_their_file(tmp_path):
    rows = [row(), row(metric="fid", value=math.nan, protocol=format_protocol(reason="weights absent"))]
    write_rows(rows, tmp_path / "rows.parquet")
    again = read_rows(tmp_path / "rows.parquet")
    assert again[0]["value"] == 0.5 and math.isnan(again[1]["value"])
    assert repr(again) == repr(rows)
    assert [reason_of(r) for r in again] == ["", "weights absent"]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]


keys = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=8)


@given(st.dictionaries(keys, st.text("abc xyz=.%[]()-", max_size=20).map(lambda s: " ".join(s.split())), max_size=5))
def test_a_protocol_is_read_back_as_written(facts):
    assert parse_protocol(format_protocol(**facts)) == facts


def test_a_protocol_keeps_its_separator_to_itself():
    text = format_protocol(reason="a; b=c\n d", steps=25, share=0.1, nothing=None)
    assert text == "reason=a, b=c d; steps=25; share=0.1"


def test_budgets_sort_as_numbers():
    tokens = ["all", "0.1", "200", "25-per-class", "50", "5-per-class", "0.02"]
    assert sorted(tokens, key=budget_order) == ["50", "200", "5-per-class", "25-per-class", "0.02", "0.1", "all"]


def test_collect_is_the_same_whatever_the_order_of_files(tmp_path):
    parts = []
    for seed in (1, 0):
        for labels in ("200", "50"):
            parts.append(tmp_path / f"{labels}-{seed}.parquet")
            write_rows([row(seed=seed, labels=labels, metric=m) for m in ("nll", "auroc")], parts[-1])
    one = collect(parts, tmp_path / "a.parquet", tmp_path / "a.csv")
    collect(parts[::-1], tmp_path / "b.parquet", tmp_path / "b.csv")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert one == sort_rows(one)
    assert [(r["labels"], r["seed"], r["metric"]) for r in one[:3]] == [
        ("50", 0, "auroc"),
        ("50", 0, "nll"),
        ("50", 1, "auroc"),
    ]


def test_collect_refuses_two_rows_for_one_number(tmp_path):
    write_rows([row()], tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"same number.*method=joint.*metric=auroc"):
        collect([tmp_path / "a.parquet"] * 2, tmp_path / "s.parquet", tmp_path / "s.csv")


@pytest.mark.parametrize("nasty", ["=1+1", "+1", "-cmd", "@sum", "\tx"])
def test_no_text_of_the_csv_is_a_formula(tmp_path, nasty):
    write_rows([row(finding=nasty, value=-0.5), row(finding='a,"b"\nc', value=math.nan)], tmp_path / "a.parquet")
    collect([tmp_path / "a.parquet"], tmp_path / "s.parquet", tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    by_finding = {line["finding"]: line["value"] for line in lines}
    assert by_finding == {"'" + nasty: "-0.5", 'a,"b"\nc': ""}


def test_other_files_are_refused_with_their_name(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"text\.parquet"):
        read_rows(tmp_path / "text.parquet")
    pq.write_table(pa.table({"dataset": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other.parquet lacks the column 'labels'"):
        read_rows(tmp_path / "other.parquet")


def test_a_run_names_what_its_scores_are_filed_under():
    spec = {"dataset": "busi", "labels": "0.1", "variant": "joint_noisy", "seed": 3}
    run = {"spec": spec, "code_version": "a", "config_digest": "b", "run_id": "c"}
    assert Identity.from_run(run) == Identity("busi", "0.1", "joint_noisy", 3, "a", "b", "c")
    with pytest.raises(ValueError, match="run_id"):
        Identity.from_run({k: v for k, v in run.items() if k != "run_id"})


def test_tables_of_rows_cost_no_heavy_import(tmp_path):
    code = """if True:
    import sys
    from jointdiff.evaluate.scores import Identity, collect, read_rows, score_row, write_rows
    from jointdiff.evaluate import classification, cost
    from jointdiff.explain import localisation
    from jointdiff.report import figures, paper, statistics, tables
    rows = [score_row(Identity("d", "all", "é", 0, "a", "b", "c"), metric="auroc", value=float("nan"))]
    for kept in (rows, []):
        write_rows(kept, sys.argv[1] + "/a.parquet")
        assert repr(read_rows(sys.argv[1] + "/a.parquet")) == repr(kept)
    collect([sys.argv[1] + "/a.parquet"], sys.argv[1] + "/b.parquet", sys.argv[1] + "/b.csv")
    assert not {"torch", "pandas", "sklearn", "scipy", "matplotlib", "mlflow"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
