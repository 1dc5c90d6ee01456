"""Table 7: what each method costs, beside what it reaches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from jointdiff.report.evidence import Evidence
from jointdiff.report.layout import Column, Line, Section, Table, cell_of, digits_of
from jointdiff.report.wording import CONTROLS, budget_name, dataset_name


def cost_tables(evidence: Evidence) -> Iterator[Table]:
    """Yield, for each data set, what each method costs, beside what it reaches."""
    rows = evidence.rows
    for dataset in rows.distinct("dataset"):
        largest = rows.budgets(dataset)[-1]
        lines = evidence.standing(dataset, "parameters")
        if not lines:
            continue
        plan = (
            ("Parameters", "parameters", "M", 1e-6, ""),
            ("Memory", "peak_memory_mib", "MiB", 1.0, ""),
            ("Compute", "train_gflop", "TFLOP", 1e-3, "Training"),
            ("Time", "train_seconds", "s", 1.0, "Training"),
            ("Speed", "images_per_second", "images/s", 1.0, "Training"),
            ("Prediction", "ms_per_prediction", "ms", 1.0, "Time per image"),
            ("Sample", "ms_per_sample", "ms", 1.0, "Time per image"),
            ("Edit", "ms_per_counterfactual", "ms", 1.0, "Time per image"),
            ("Prediction", "calls_per_prediction", "", 1.0, "Network calls"),
            ("Sample", "calls_per_sample", "", 1.0, "Network calls"),
            ("Edit", "calls_per_counterfactual", "", 1.0, "Network calls"),
            ("Macro AUROC", "auroc", "", 1.0, ""),
        )
        columns, found = [], []
        for name, metric, unit, scale, group in plan:
            summaries = [rows.summary(dataset, labels, method, metric) for method, labels, _ in lines]
            values = [scale * s.mean for s in summaries]
            if all(math.isnan(value) for value in values):
                continue
            digits = 3 if metric == "auroc" else 0 if metric.startswith("calls") else digits_of(values)
            columns.append(Column(name, metric, group, unit, digits, scale))
            # Seeds differ in the noise of the clock alone; a gap keeps its reason.
            found.append([replace(s, sd=math.nan, reason="" if s.seeds else s.reason) for s in summaries])
        competing, controls = (
            tuple(
                Line(name, tuple(cell_of(column[i]) for column in found), competes=wanted)
                for i, (method, _, name) in enumerate(lines)
                if (method not in CONTROLS) == wanted
            )
            for wanted in (True, False)
        )
        used = (rows.summary(dataset, labels, method, "train_seconds") for method, labels, _ in lines)
        devices = dict.fromkeys(s.facts["device"] for s in used if s.facts and "device" in s.facts)
        sections = [Section("", competing), Section("Controls", controls)]
        yield Table(
            label=f"cost-{dataset}",
            caption=(
                f"Cost on {dataset_name(dataset)} with {budget_name(largest)} where nothing else is said, mean over "
                f"seeds, on {', '.join(devices) or 'an unknown device'}. Memory is the peak of the training process; "
                "compute is that of all training steps, forward and backward; an edit is one counterfactual with its "
                f"control. {evidence.networks(dataset, (m for m, *_ in lines))}"
            ).rstrip(),
            stub="Method",
            columns=tuple(columns),
            sections=tuple(section for section in sections if section.lines),
        )
