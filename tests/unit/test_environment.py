"""With what a number is made: what a process says of itself, and what is kept of it from step to step."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointdiff import environment as module
from jointdiff.environment import NAMES, THEN, UNKNOWN, from_text, instructions, joined, read_environment, to_text
from jointdiff.evaluate.scores import Identity, Row, collect, format_protocol, score_row, split_protocol, write_rows
from jointdiff.provenance import OBSERVERS
from jointdiff.report.environments import mark_environments
from jointdiff.report.layout import Cell, Column, Line, Section, Table, paged
from jointdiff.report.paper import compile_tex
from jointdiff.report.statistics import Summary
from jointdiff.report.tables import draw_tables

VALUES = st.from_regex(r"[A-Za-z0-9.+()]{1,12}( \([a-z]{1,6}\))?", fullmatch=True)
RECORDS = st.dictionaries(st.sampled_from(NAMES), VALUES)
GIT_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


def run_python(code: str) -> dict[str, str]:
    """Return the record that a fresh Python leaves after some code."""
    code += "; import json; from jointdiff.environment import environment; print(json.dumps(environment()))"
    return json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


# --- What a process says of itself ------------------------------------------------------------------------------------


def test_a_record_names_what_the_process_has_imported_and_no_more() -> None:
    bare, computing = run_python("import sys"), run_python("import numpy, scipy")
    assert list(bare) == ["Python", "instructions", "commit"]
    assert bare["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert computing == {**bare, "numpy": np.__version__, "scipy": computing["scipy"]}


def test_with_torch_it_is_what_torch_uses_and_without_it_what_torch_would_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    used = torch.backends.cpu.get_cpu_capability()
    record = module.environment()
    assert record["instructions"] == used and record["torch"] == torch.__version__
    assert record["device"] == "CPU" and record["threads"] == str(torch.get_num_threads())
    with monkeypatch.context() as without:
        without.delitem(sys.modules, "torch")
        if "ATEN_CPU_CAPABILITY" not in os.environ:  # by which a user narrows what torch uses
            assert instructions() == used
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert instructions() == "DEFAULT"


def test_a_process_that_has_used_a_gpu_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100, 80GB PCIe")
    record = module.environment()
    assert record["device"] == "NVIDIA A100  80GB PCIe" and "threads" not in record
    assert from_text(to_text(record)) == record


@pytest.mark.parametrize(
    ("cpuinfo", "said"),
    [
        ("processor: 0\nflags\t\t: fpu fma avx avx2 avx512f avx512dq avx512bw avx512vl\n", "AVX512"),
        ("flags : fma avx avx2 avx512f avx512cd\n", "AVX2"),  # Knights Landing: not the part of AVX-512 that torch uses
        ("flags : fpu avx avx2 fma\nflags : fpu\n", "AVX2"),
        ("flags : fpu avx avx2\n", "DEFAULT"),  # without FMA, as torch sees it
        ("flags : fpu sse4_2\n", "DEFAULT"),
        ("Features : fp asimd sve\n", "DEFAULT"),
        ("\xff\n", "DEFAULT"),
        (None, "DEFAULT"),
    ],
)
def test_instructions_are_read_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None, said: str
) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo, encoding="latin-1")
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert instructions() == said


def test_no_code_digest_and_no_light_step_depends_on_it() -> None:
    assert "jointdiff.environment" in OBSERVERS
    script = "import sys, jointdiff.environment; assert not {'torch', 'numpy', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


# --- The commit -------------------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project in a repository of its own, in whose folder this module seems to lie."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "a project"
    (folder / "jointdiff").mkdir(parents=True)
    (folder / "jointdiff" / "one.py").write_text("x = 1\n")
    (folder / "README.md").write_text("read me\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    monkeypatch.setattr(module, "ROOT", folder)
    module.commit.cache_clear()
    yield folder
    module.commit.cache_clear()


def edited(folder: Path) -> None:
    (folder / "jointdiff" / "one.py").write_text("x = 2\n")


def with_a_new_method(folder: Path) -> None:
    (folder / "baselines").mkdir()
    (folder / "baselines" / "mine.py").write_text("METHOD = 1\n")


def with_a_file_removed(folder: Path) -> None:
    (folder / "jointdiff" / "one.py").unlink()


def staged(folder: Path) -> None:
    edited(folder)
    git(folder, "add", ".")


def with_data_and_notes(folder: Path) -> None:
    (folder / "scans.yaml").write_text("name: scans\n")
    (folder / "README.md").write_text("read me twice\n")


def with_a_new_method_that_git_is_not_to_show(folder: Path) -> None:
    with_a_new_method(folder)
    git(folder, "config", "status.showUntrackedFiles", "no")


def on_a_disk_without_permissions(folder: Path) -> None:
    (folder / "jointdiff" / "one.py").chmod(0o777)


def detached(folder: Path) -> None:
    git(folder, "checkout", "-q", "--detach")


@pytest.mark.parametrize(
    ("change", "behind"),
    [
        (None, ""),
        (with_data_and_notes, ""),
        (detached, ""),
        (on_a_disk_without_permissions, ""),
        (with_a_new_method_that_git_is_not_to_show, " (changed)"),
        (edited, " (changed)"),
        (staged, " (changed)"),
        (with_a_new_method, " (changed)"),
        (with_a_file_removed, " (changed)"),
    ],
)
def test_the_commit_is_told_and_whether_the_code_is_its(
    project: Path, change: Callable[[Path], None] | None, behind: str
) -> None:
    if change:
        change(project)
    assert module.commit() == git(project, "rev-parse", "HEAD")[:12] + behind


def test_a_worktree_has_its_own_commit(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(project, "worktree", "add", "-q", str(tmp_path / "tree"))
    (tmp_path / "tree" / "jointdiff" / "one.py").write_text("x = 3\n")
    git(tmp_path / "tree", "commit", "-q", "-a", "-m", "second")
    monkeypatch.setattr(module, "ROOT", tmp_path / "tree")
    assert module.commit() == git(tmp_path / "tree", "rev-parse", "HEAD")[:12] != git(project, "rev-parse", "HEAD")[:12]


def test_variables_of_another_repository_lead_nowhere_else(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a hook: git sets GIT_DIR and GIT_INDEX_FILE for what the hook starts."""
    expected = git(project, "rev-parse", "HEAD")[:12]
    git(tmp_path, "init", "-q", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "nowhere"))
    assert module.commit() == expected


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_read_all_the_same(project: Path) -> None:
    expected = git(project, "rev-parse", "HEAD")[:12]
    for path in [project, *project.rglob("*")]:
        os.chown(path, 12345, 12345)
    assert module.commit() == expected


def no_commit_yet(folder: Path, bin: Path) -> None:
    git(folder, "update-ref", "-d", "HEAD")


def damaged(folder: Path, bin: Path) -> None:
    (folder / ".git" / "HEAD").write_text("")


def a_worktree_without_its_repository(folder: Path, bin: Path) -> None:
    shutil.rmtree(folder / ".git")
    (folder / ".git").write_text("gitdir: /nowhere/.git/worktrees/a\n")


def no_repository_but_one_around(folder: Path, bin: Path) -> None:
    (folder / ".git").rename(folder.parent / ".git")


def no_git(folder: Path, bin: Path) -> None:
    (bin / "git").unlink()


def git_that_hangs(folder: Path, bin: Path) -> None:
    (bin / "git").unlink()
    (bin / "git").write_text(f"#!{sys.executable}\nimport time; time.sleep(60)\n")
    (bin / "git").chmod(0o755)


@pytest.mark.parametrize(
    "fault",
    [no_commit_yet, damaged, a_worktree_without_its_repository, no_repository_but_one_around, no_git, git_that_hangs],
)
def test_where_no_commit_is_known_that_is_told(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Path, Path], None]
) -> None:
    monkeypatch.setattr(module, "GIT_SECONDS", 5 if fault is not git_that_hangs else 0.2)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").symlink_to(str(shutil.which("git")))
    fault(project, tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert module.commit().startswith("unknown (version ")


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ({"url": "u", "vcs_info": {"vcs": "git", "commit_id": GIT_COMMIT}}, "fedcba987654"),
        ({"url": "u", "archive_info": {}}, "unknown (version 9.8.7)"),
        (None, "unknown (version 9.8.7)"),
        ("{", "unknown (version 9.8.7)"),
    ],
)  # fmt: skip
def test_an_installed_package_says_what_pip_recorded(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: object, said: str
) -> None:
    site = tmp_path / "site-packages"
    about = site / "jointdiff_bench-9.8.7.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.4\nName: jointdiff-bench\nVersion: 9.8.7\n")
    if origin is not None:
        (about / "direct_url.json").write_text(origin if isinstance(origin, str) else json.dumps(origin))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(module, "ROOT", site)
    assert module.commit() == said
    monkeypatch.setattr(module, "ROOT", tmp_path / "a copy")
    module.commit.cache_clear()
    assert module.commit() == "unknown (version 9.8.7)"


# --- What is kept from step to step -----------------------------------------------------------------------------------


@given(RECORDS, RECORDS, RECORDS)
def test_joined_records_keep_every_value_once(one: dict[str, str], two: dict[str, str], three: dict[str, str]) -> None:
    everything = joined(one, two, three)
    assert everything == joined(joined(one, two), three) == joined(one, joined(two, three)) == joined(everything, two)
    for name, value in everything.items():
        kept = value.split(THEN)
        assert kept == list(dict.fromkeys(record[name] for record in (one, two, three) if name in record))


@given(RECORDS.filter(bool), st.text(st.characters(exclude_characters=";=", exclude_categories=("C", "Z"))))
def test_a_row_keeps_its_environment_word_for_word(record: dict[str, str], fact: str) -> None:
    identity = Identity("d", "50", "m", 0, "c", "f", "r", environment=to_text(record))
    row = score_row(identity, metric="auroc", value=0.5, protocol=format_protocol(fact=fact))
    facts, made_with = split_protocol(row["protocol"])
    assert facts == f"fact={fact}" and from_text(made_with) == record


def test_of_an_older_result_nothing_is_known(tmp_path: Path) -> None:
    np.savez(tmp_path / "old.npz", images=np.zeros(1))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "old.parquet")
    assert read_environment(tmp_path / "old.npz") == read_environment(tmp_path / "old.parquet") == UNKNOWN
    run = {"spec": {"dataset": "d", "labels": "50", "variant": "m", "seed": 0}, "run_id": "r"}
    run |= {"config_digest": "f", "code_version": "c"}
    assert Identity.from_run(run).environment == "commit unknown"
    assert from_text("") == UNKNOWN


def test_a_score_names_who_trained_predicted_and_scored(tmp_path: Path) -> None:
    trained = {
        "Python": "3.11.7",
        "torch": "2.6.0",
        "timm": "1.0.20",
        "instructions": "AVX512",
        "commit": "aaaaaaaaaaaa",
    }
    predicted = {**trained, "torch": "2.7.0", "instructions": "AVX2"}
    table = pa.table({"a": [1]}).replace_schema_metadata({"environment": json.dumps(predicted)})
    pq.write_table(table, tmp_path / "predictions.parquet")
    run = {"spec": {"dataset": "d", "labels": "50", "variant": "m", "seed": 0}, "run_id": "r"}
    run |= {"config_digest": "f", "code_version": "c", "environment": trained}
    found = from_text(Identity.from_run(run, scored=tmp_path / "predictions.parquet").environment)
    here = module.environment()
    assert found["torch"].startswith("2.6.0 then 2.7.0") and found["timm"].startswith("1.0.20")
    assert found["instructions"] == " then ".join(dict.fromkeys(["AVX512", "AVX2", here["instructions"]]))
    assert found["commit"] == f"aaaaaaaaaaaa then {here['commit']}" and found["numpy"] == np.__version__
    assert Identity.from_run(run).environment == to_text(trained), "what is only copied is not made here"


def test_a_number_made_again_elsewhere_is_still_the_same_number(tmp_path: Path) -> None:
    for name, torch in (("a", "2.6.0"), ("b", "2.7.0")):
        identity = Identity("d", "50", "m", 0, "c", "f", "r", environment=f"torch {torch}")
        rows = [score_row(identity, metric="auroc", value=0.5, protocol=format_protocol(groups=3))]
        write_rows(rows, tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match="same number"):
        collect([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "s.parquet", tmp_path / "s.csv")


# --- What tables say of it --------------------------------------------------------------------------------------------

OLD = {"Python": "3.11.7", "torch": "2.6.0", "instructions": "AVX512", "commit": "aaaaaaaaaaaa"}
NEW = {**OLD, "torch": "2.7.0", "instructions": "AVX2"}
WARNING = "Not all was made with the same versions and machines, as the notes say: "


def auroc_row(method: str, labels: str, seed: int, record: dict[str, str], value: float) -> Row:
    identity = Identity("d", labels, method, seed, "c", method, method, environment=to_text(record))
    return score_row(identity, metric="auroc", value=value, protocol=format_protocol(groups=9))


def draw(folder: Path, made_with: Callable[[str, str, int], dict[str, str]], *, methods: str = "abc") -> Path:
    """Draw the tables of methods at two budgets and seeds, each made with its own record."""
    rows = [
        auroc_row(method, labels, seed, made_with(method, labels, seed), 0.8 + 0.01 * seed - 0.02 * place)
        for place, method in enumerate(methods)
        for labels in ("50", "200")
        for seed in (0, 1)
    ]
    write_rows(rows, folder / "s.parquet")
    draw_tables(folder / "s.parquet", [], folder / "tables", methods=list(methods))
    return folder / "tables"


def test_one_environment_needs_no_word(tmp_path: Path) -> None:
    tables = draw(tmp_path, lambda method, labels, seed: OLD)
    for path in tables.iterdir():
        assert "made with" not in path.read_text()
    older = draw(tmp_path, lambda method, labels, seed: {})
    assert "unknown" not in (older / "classification.md").read_text(), "nothing is known of any of them"


def test_a_package_that_only_some_import_is_no_difference(tmp_path: Path) -> None:
    tables = draw(tmp_path, lambda method, labels, seed: {**OLD, **({"timm": "1.0.20"} if method == "a" else {})})
    assert "made with" not in (tables / "classification.md").read_text()


def test_lines_made_with_other_versions_are_marked_and_named_in_the_caption(tmp_path: Path) -> None:
    tables = draw(tmp_path, lambda method, labels, seed: NEW if method == "b" else OLD)
    text = (tables / "classification.md").read_text()
    assert WARNING + "torch 2.6.0 / 2.7.0, instructions AVX2 / AVX512.**" in text
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert {"A<sup>a</sup>", "B<sup>b</sup>", "C<sup>a</sup>"} <= set(lines)
    assert "<sup>a</sup> made with torch 2.6.0, instructions AVX512  " in text
    assert "<sup>b</sup> made with torch 2.7.0, instructions AVX2  " in text
    assert lines["B<sup>b</sup>"].count("<sup>") == 1, "the line is marked, not each of its numbers"
    page = (tables / "classification.html").read_text()
    assert "torch 2.6.0 / 2.7.0" in page.partition("</figcaption>")[0] and "<td>B<sup>b</sup></td>" in page
    assert "made with torch 2.7.0, instructions AVX2" in (tables / "classification.csv").read_text()
    found = json.loads((tables / "classification.json").read_text())
    assert {number["note"] for number in found["numbers"] if number["line"] == "B"} == {
        "made with torch 2.7.0, instructions AVX2"
    }


def test_numbers_of_one_line_are_marked_one_by_one_where_they_differ(tmp_path: Path) -> None:
    tables = draw(tmp_path, lambda method, labels, seed: NEW if (method, labels) == ("b", "200") else OLD)
    line = next(x for x in (tables / "classification.md").read_text().splitlines() if x.startswith("| B |"))
    assert [cell.count("<sup>b</sup>") for cell in line.split("|")[2:4]] == [0, 1]
    assert [cell.count("<sup>a</sup>") for cell in line.split("|")[2:4]] == [1, 0]


def test_seeds_of_one_number_that_differ_are_told(tmp_path: Path) -> None:
    tables = draw(tmp_path, lambda method, labels, seed: NEW if seed else OLD)
    text = (tables / "classification.md").read_text()
    assert WARNING in text and "<sup>a</sup> made with torch 2.6.0 / 2.7.0, instructions AVX2 / AVX512" in text
    assert "<sup>b</sup>" not in text
    assert WARNING in (tables / "ranks.md").read_text()


def test_a_result_from_before_records_is_marked_beside_newer_ones(tmp_path: Path) -> None:
    tables = draw(tmp_path, lambda method, labels, seed: {} if method == "c" else OLD)
    text = (tables / "classification.md").read_text()
    assert WARNING + "commit aaaaaaaaaaaa / unknown.**" in text and "made with commit unknown" in text


def test_many_commits_are_counted(tmp_path: Path) -> None:
    tables = draw(tmp_path, lambda method, labels, seed: {**OLD, "commit": f"{ord(method):012x}"}, methods="abcdef")
    text = (tables / "classification.md").read_text()
    assert WARNING + "6 values of commit.**" in text and f"made with commit {ord('e'):012x}" in text


def test_a_table_of_several_pages_is_marked_as_one() -> None:
    def lines(first: int, record: dict[str, str]) -> tuple[Line, ...]:
        rows = [auroc_row(f"m{place}", "50", 0, record, 0.5) for place in range(first, first + 30)]
        return tuple(Line(row["method"], (Cell(Summary(0.5, rows=[row])),)) for row in rows)

    sections = (Section("one", lines(0, OLD)), Section("two", lines(30, NEW)))
    pages = list(paged(Table("t", "Of all.", "Method", (Column("AUROC", "auroc"),), sections)))
    assert len(pages) == 2
    marked = mark_environments(pages)
    assert all(WARNING in page.caption for page in marked)
    assert marked[1].caption.startswith("Continued: Of all. Not all")


@pytest.mark.tex
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_latex_takes_any_name_of_a_device(tmp_path: Path) -> None:
    odd = {**OLD, "device": "A100_80% #1 & {x} \\ ~^$", "commit": "0123456789ab (changed)"}
    tables = draw(tmp_path, lambda method, labels, seed: odd if method == "b" else {**OLD, "device": "CPU"})
    compile_tex(tables / "classification.tex", tmp_path / "t.pdf")
    assert (tmp_path / "t.pdf").stat().st_size > 10_000
