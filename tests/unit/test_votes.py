"""The file of votes, and their scores, against counts by hand."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jointdiff.evaluate.scores import parse_protocol, split_protocol
from jointdiff.evaluate.votes import score_votes
from jointdiff.evaluate.votes_file import Votes, read_votes, write_votes
from jointdiff.evaluate.voting import majority, replay
from tests.unit.test_classification import RUN, write_predictions
from tests.unit.test_voting import ballots, one, race_by_hand

NAMES = ("nodule", "effusion")  # as write_predictions has them


def save(path, errors, *, role=None, names=("a", "b"), kind="one_of_k", contests=None, **changes):
    n, trials, conditions = errors.shape
    votes = {
        "sample_ids": np.array([f"s{i:05d}" for i in range(n)]),
        "role": np.array(["test"] * n if role is None else role),
        "steps": np.linspace(0, 1000, n * trials).reshape(n, trials),
        "errors": errors,
        "conditions": tuple(f"c {c}" for c in range(conditions)),
        "contests": contests or one(conditions),
        "kind": kind,
        "names": names,
        "cost": {"calls_per_image": 2.5},
    }
    write_votes(path, Votes(**votes | changes))
    return path


def test_votes_come_back_as_they_were(tmp_path):
    errors = np.random.default_rng(0).random((6, 5, 4)).astype(np.float32)
    errors[2, 3:] = np.nan
    role = ["validation"] * 2 + ["test"] * 4
    path = save(tmp_path / "v.parquet", errors, role=role, kind="multi_label", contests=((0, 1), (2, 3)))
    votes = read_votes(path)
    np.testing.assert_array_equal(votes.errors, errors)
    assert votes.errors.dtype == votes.steps.dtype == np.float32
    np.testing.assert_array_equal(votes.steps, np.linspace(0, 1000, 30, dtype=np.float32).reshape(6, 5))
    assert votes.sample_ids.tolist() == [f"s{i:05d}" for i in range(6)] and votes.role.tolist() == role
    assert (votes.kind, votes.contests) == ("multi_label", ((0, 1), (2, 3)))
    assert votes.conditions == ("c 0", "c 1", "c 2", "c 3")
    assert votes.names == ("a", "b") and votes.cost == {"calls_per_image": 2.5}
    table = pq.ParquetFile(path)
    assert table.schema_arrow.names == ["sample_id", "role", "trial", "step", *(f"error:c {c}" for c in range(4))]
    assert table.metadata.row_group(0).column(4).compression == "ZSTD"


def test_votes_come_back_from_another_writers_table(tmp_path):
    path = save(tmp_path / "v.parquet", np.random.default_rng(0).random((50, 4, 2)).astype(np.float32))
    votes, table = read_votes(path), pq.read_table(path)
    for name in ("sample_id", "role"):
        table = table.set_column(table.column_names.index(name), name, table.column(name).cast(pa.string()))
    pq.write_table(table, path, row_group_size=7)
    again = read_votes(path)
    np.testing.assert_array_equal(votes.errors, again.errors)
    np.testing.assert_array_equal(votes.sample_ids, again.sample_ids)


def without(key):
    """Return a change that takes a key out of the metadata."""

    def change(table):
        about = json.loads(table.schema.metadata[b"votes"])
        about.pop(key)
        return table.replace_schema_metadata({"votes": json.dumps(about)})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace_schema_metadata({}), "not a table of votes"),
        (without("contests"), "lack 'contests'"),
        (lambda t: t.drop_columns(["step"]), "lacks the column 'step'"),
        (lambda t: t.drop_columns(["error:c 1"]), "lacks the column 'error:c 1'"),
        (lambda t: t.slice(0, 11), "does not hold 4 trials of every image"),
        (lambda t: t.slice(1, 8), "does not hold 4 trials of every image"),
        (lambda t: t.slice(0, 0), "does not hold 4 trials of every image"),
    ],
)
def test_a_wrong_table_is_one_clear_message(tmp_path, change, message):
    path = save(tmp_path / "v.parquet", np.zeros((3, 4, 2), np.float32))
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(ValueError, match=message) as error:
        read_votes(path)
    assert str(path) in str(error.value) and "delete it" in str(error.value)


def test_a_file_of_another_kind_is_one_clear_message(tmp_path):
    path = tmp_path / "v.parquet"
    path.write_text("not parquet")
    with pytest.raises(ValueError, match="not a parquet file"):
        read_votes(path)


def test_arrays_that_do_not_belong_together_are_not_written(tmp_path):
    errors = np.zeros((3, 4, 2), np.float32)
    for change in (
        {"steps": np.zeros((3, 5))},
        {"sample_ids": np.array(["a"])},
        {"conditions": ("a", "a")},
    ):
        with pytest.raises(ValueError, match="do not fit"):
            save(tmp_path / "v.parquet", errors, **change)
    assert not list(tmp_path.iterdir())


def by_protocol(rows):
    facts = [(row, parse_protocol(row["protocol"])) for row in rows]
    return {(row["metric"], fact["rule"], int(fact["trials"])): row for row, fact in facts}


def test_rows_of_a_one_of_k_cell(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 60)
    won = np.where(rng.random((60, 31)) < 0.6, truth[:, None], rng.integers(0, 3, (60, 31)))
    errors = ballots(won, 3, rng)
    role = ["validation"] * 20 + ["test"] * 40
    votes = save(tmp_path / "v.parquet", errors, role=role, names=("a", "b", "c"))
    predictions = write_predictions(
        tmp_path / "p.parquet", np.full((60, 3), 1 / 3), np.eye(3)[truth], np.arange(60) // 2, role, ("a", "b", "c")
    )
    rows = score_votes(votes, predictions, RUN, error=0.1, block=4, bootstrap=50, confidence=0.9)
    table = by_protocol(rows)
    assert {key[2] for key in table} == {1, 3, 5, 11, 25, 31}
    assert {key[0] for key in table} == {"vote_accuracy", "vote_gain", "vote_calls"}
    assert len(rows) == len(table) == 6 * 3 * 3
    whole = table["vote_gain", "majority", 31]
    assert whole["value"] == whole["ci_low"] == whole["ci_high"] == 0  # of itself
    few, gain = table["vote_accuracy", "majority", 3], table["vote_gain", "majority", 3]
    assert gain["value"] == pytest.approx(few["value"] - table["vote_accuracy", "majority", 31]["value"])
    assert gain["value"] < 0 and gain["ci_low"] < gain["value"] < gain["ci_high"] < 0
    for trials in (1, 31):
        row = table["vote_accuracy", "majority", trials]
        expected = (majority(errors[20:, :trials]).argmax(1) == truth[20:]).mean()
        assert row["value"] == pytest.approx(expected) and row["n"] == 40 and row["finding"] == "macro"
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        assert table["vote_calls", "mean", trials]["value"] == 3 * trials
    race = replay(errors[20:], one(3), kind="one_of_k", trials=31, error=0.1, block=4)
    row = table["vote_calls", "race", 31]
    assert row["value"] == pytest.approx(race.calls.mean()) and row["ci_low"] < row["value"] < row["ci_high"]
    assert table["vote_accuracy", "race", 31]["value"] == pytest.approx((race.winners[:, 0] == truth[20:]).mean())
    facts, _ = split_protocol(row["protocol"])
    assert facts == "rule=race; trials=31; error=0.1; block=4; groups=20; bootstrap=50; size=32"


def test_rows_of_a_multi_label_cell(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (50, 2)).astype(float)
    labels[:, 1] = 0
    share = np.array([rng.binomial(11, 0.3 + 0.4 * labels[:, k]) for k in range(2)]).T
    present = np.arange(11)[:, None] < share[:, None]  # (n, N, K)
    errors = np.stack([present, ~present], axis=3).reshape(50, 11, 4).astype(np.float32)
    votes = save(tmp_path / "v.parquet", errors, kind="multi_label", contests=((0, 1), (2, 3)), names=NAMES)
    predictions = write_predictions(tmp_path / "p.parquet", np.full((50, 2), 0.5), labels, kind="multi_label")
    table = by_protocol(score_votes(votes, predictions, RUN, error=0.0, block=8, bootstrap=20))
    row = table["vote_accuracy", "majority", 11]
    assert row["value"] == pytest.approx(((share > 5.5) == labels).mean())
    area = table["vote_auroc", "majority", 11]
    ones, zeros = share[labels[:, 0] == 1, 0], share[labels[:, 0] == 0, 0]
    wins = (ones[:, None] > zeros).mean() + (ones[:, None] == zeros).mean() / 2
    assert area["value"] == pytest.approx(wins) and parse_protocol(area["protocol"])["findings"] == "1 of 2"
    assert table["vote_calls", "race", 11]["value"] < table["vote_calls", "majority", 11]["value"] == 44


def test_errors_of_a_race_that_stopped_give_the_rows_that_they_can(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 30)
    errors = ballots(np.where(rng.random((30, 51)) < 0.9, truth[:, None], 1 - truth[:, None]), 2, rng)
    race = race_by_hand(errors, trials=51, error=0.1, block=8)
    votes = save(tmp_path / "v.parquet", race.errors, names=NAMES)
    predictions = write_predictions(tmp_path / "p.parquet", np.full((30, 2), 0.5), np.eye(2)[truth])
    table = by_protocol(score_votes(votes, predictions, RUN, error=0.1, block=8, bootstrap=5))
    assert ("vote_accuracy", "majority", 5) in table and ("vote_accuracy", "majority", 51) not in table
    assert not any(metric == "vote_gain" for metric, _, _ in table)  # nothing to hold them against
    assert table["vote_calls", "race", 51]["value"] == pytest.approx(race.calls.mean())


def test_images_are_matched_by_name_and_strangers_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 30)
    errors = ballots(np.tile(truth[:, None], (1, 3)), 2, rng)
    some = rng.permutation(30)[:12]
    ids = np.array([f"s{i:05d}" for i in some])
    votes = save(tmp_path / "v.parquet", errors[some], names=NAMES, sample_ids=ids)
    predictions = write_predictions(tmp_path / "p.parquet", np.full((30, 2), 0.5), np.eye(2)[truth])
    rows = score_votes(votes, predictions, RUN, error=0.0, block=8, bootstrap=5)
    accuracy = [row for row in rows if row["metric"] == "vote_accuracy"]
    assert all(row["value"] == 1 and row["n"] == 12 for row in accuracy)
    save(tmp_path / "v.parquet", errors[some], names=NAMES, sample_ids=np.char.add("x", ids))
    with pytest.raises(ValueError, match="not of the same test images"):
        score_votes(votes, predictions, RUN, error=0.0, block=8)
    save(tmp_path / "v.parquet", errors[some], names=NAMES, kind="multi_label")
    with pytest.raises(ValueError, match="not of the same labels"):
        score_votes(votes, predictions, RUN, error=0.0, block=8)
    save(tmp_path / "v.parquet", errors[some])
    with pytest.raises(ValueError, match="not of the same labels"):
        score_votes(votes, predictions, RUN, error=0.0, block=8)
