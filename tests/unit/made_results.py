"""Small made-up results of an experiment, in the layout and by the functions of the real ones."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jointdiff.evaluate.classification import score_predictions
from jointdiff.evaluate.cost import score_cost
from jointdiff.evaluate.scores import Identity, collect, format_protocol, score_row, write_rows
from jointdiff.explain.localisation import score_explanations

SKILL = {
    "joint": 1.6,
    "joint_max": 0.9,
    "joint_long": 1.58,
    "diffusion_classifier": 1.4,
    "fixmatch": 1.55,
    "mean_teacher": 1.2,
    "supervised": 1.0,
    "supervised_both": 1.5,
    "supervised_synthetic": 0.7,
    "fully_supervised": 2.6,
    "random": 0.0,
}
# As trainings record it; an older one records none.
NETWORKS = {"joint": "U-Net 16 x (1, 2, 4)", "supervised": "WRN-10-2", "fixmatch": "WRN-10-2"}
# As Experiment.changes says it.
CHANGES = {
    "joint_max": {"base": "joint", "changes": {"settings.pooling": ["both", "max"], "autoencoder": [None, "kl"]}},
    "joint_long": {
        "base": "joint",
        "changes": {
            "training.steps": [500, 900],
            "settings.learning_rate": ["default", 0.001],
            "settings.ema": [0.9, 0],
        },
    },
    "supervised_synthetic": {
        "base": "supervised",
        "changes": {"synthetic": [None, "joint"], "real_labels": [True, False]},
    },
    "supervised_both": {"base": "supervised_synthetic", "changes": {"real_labels": [False, True]}},
}
TRIALS = (1, 3, 5, 11, 25, 51)
NAMES = ("nodule", "large_heart", "effusion")


def make_results(root: Path, *, dataset="phantom", budgets=("50", "200"), seeds=(0, 1), n=240, draws=60):
    """Write cells and collect their scores; return (scores.parquet, predictions, metrics)."""
    parts, predictions, metrics = [], [], []
    for method, skill in SKILL.items():
        for labels in ("all",) if method == "fully_supervised" else budgets:
            for seed in seeds:
                cell = root / dataset / f"labels-{labels}" / method / f"seed-{seed}"
                cell.mkdir(parents=True)
                run = write_run(cell, dataset, labels, method, seed)
                gain = skill * (1.0 + 0.25 * budgets.index(labels) if labels in budgets else 1.2)
                predictions.append(write_predictions(cell, gain, seed, n))
                metrics.append(write_metrics(cell, skill))
                rows = score_predictions(predictions[-1], run, bootstrap=draws)
                generated, explanations = None, None
                if method == "diffusion_classifier":
                    rows += vote_rows(run, gain)
                if method in ("joint", "joint_max"):
                    generated = cell / "generated.npz"
                    np.savez(generated, cost=json.dumps({"ms_per_sample": 41.7, "calls_per_sample": 25}))
                    rows += generation_rows(run, 12.0 + seed + 3 * (method == "joint_max"))
                if method in ("joint", "fully_supervised", "random"):
                    explanations = write_explanations(cell, method, seed)
                    rows += score_explanations(explanations, run, NAMES, bootstrap=draws)
                rows += score_cost(run, predictions=predictions[-1], generated=generated, explanations=explanations)
                parts.append(cell / "scores.parquet")
                write_rows(rows, parts[-1])
    collect(parts, root / "scores.parquet", root / "scores.csv")
    return root / "scores.parquet", predictions, metrics


def write_run(cell, dataset, labels, method, seed):
    run = {
        "spec": {"dataset": dataset, "labels": labels, "variant": method, "seed": seed, "size": 32},
        "run_id": f"{method}-{labels}-{seed}",
        "config_digest": f"{method}-{labels}-{seed}",
        "code_version": "0123456789ab",
        "caveats": ["drawn, not photographed"],
        "cost": {
            "train_seconds": 0.0 if method == "random" else 31.4 + 10 * (method == "joint") + seed,
            "train_gflop": 0.0 if method == "random" else 4321.0,
            "images_per_second": 0.0 if method == "random" else 1234.0,
            "network": NETWORKS.get(method, ""),
            "parameters": 0 if method == "random" else 612_345 + 20_000 * (method == "fixmatch"),
            "peak_memory_mib": 731.2,
            "device": "cpu: 2 cores",
        },
        "environment": {"torch": "2.6.0", "commit": "0123456789ab (changed)"},
    }
    (cell / "run.json").write_text(json.dumps(run))
    return run


def write_predictions(cell, skill, seed, n):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 3)) < (0.3, 0.5, 0.4)).astype(np.float32)
    noise = np.random.default_rng(int(100 * skill) + seed).normal(size=(n, 3))
    scores = 1 / (1 + np.exp(-(skill * (2 * labels - 1) + noise)))
    table = pa.table(
        {
            "sample_id": [f"{seed}-{i}" for i in range(n)],
            "group": [f"{seed}-p{i // 3}" for i in range(n)],
            "role": ["validation"] * (n // 4) + ["test"] * (n - n // 4),
            **{f"score:{name}": scores[:, k].astype(np.float32) for k, name in enumerate(NAMES)},
            **{f"label:{name}": labels[:, k] for k, name in enumerate(NAMES)},
        }
    )
    cost = json.dumps({"ms_per_image": 0.52, "calls_per_image": 1})
    pq.write_table(table.replace_schema_metadata({"cost": cost, "kind": "multi_label"}), cell / "predictions.parquet")
    return cell / "predictions.parquet"


def write_metrics(cell, skill):
    lines = []
    for step in range(0 if skill == 0 else 20, 0 if skill == 0 else 401, 20):
        fall = math.exp(-step / 150)
        lines.append({"step": step, "images": 32 * step, "split": "train", "loss": 0.2 + fall * (1 + skill)})
        if step % 100 == 0:
            auroc = 0.5 + 0.4 * (1 - fall) * min(1, 0.5 + skill / 3)
            lines.append({"step": step, "images": 32 * step, "split": "validation", "auroc": auroc})
    (cell / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return cell / "metrics.jsonl"


def write_explanations(cell, method, seed, size=16, per_finding=8):
    rng = np.random.default_rng(seed)
    finding = np.repeat(np.arange(3), per_finding)
    region = np.zeros((len(finding), size, size), bool)
    for i, k in enumerate(finding):
        side = (2, 5, 4)[k]
        y, x = rng.integers(0, size - side, 2)
        region[i, y : y + side, x : x + side] = True
    noise = rng.random(region.shape)
    arrays = {"sample": np.arange(len(finding)), "finding": finding, "region": region}
    if method == "joint":
        arrays["map:counterfactual"] = 0.05 * noise + 0.08 * region * rng.random(region.shape)
        arrays["map:counterfactual_control"] = 0.02 * noise + 0.08 * region * rng.random(region.shape)
        before = rng.random((len(finding), 3)) * 0.3 + 0.6
        arrays |= {"before": before, "after": before * 0.4}
        arrays |= {"judge_before": before, "judge_after": before * 0.6, "judge_control": before * 0.9}
        arrays["spread"] = 0.01 * noise
        way = np.linspace(1, 0, 11)[1:-1]
        arrays |= {"insertion": 0.8 * way + 0 * finding[:, None], "judge_insertion": 0.9 * way + 0 * finding[:, None]}
        shown = {"image": (24, 0.1), "counterfactual": (24, 0.4), "control": (24, 0.8), "test": (90, 0.0)}
        arrays |= {f"features:{name}": rng.normal(mean, 1, (n, 30)) for name, (n, mean) in shown.items()}
        healthy = rng.random((6, 3)) * 0.4
        put_in = {"before": healthy, "after": healthy + 0.4, "judge_before": healthy, "judge_after": healthy + 0.2}
        put_in |= {"judge_control": healthy, "finding": np.repeat(np.arange(3), 2), "sample": np.arange(30, 36)}
        arrays |= {f"enforced:{name}": values for name, values in put_in.items()}
        cost = {"ms_per_counterfactual": 301.0, "calls_per_counterfactual": 24}
        maps = ("counterfactual", "counterfactual_control")
        cost |= {"ms_per_map": dict.fromkeys(maps, 301.0), "calls_per_map": dict.fromkeys(maps, 24)}
        arrays["cost"] = json.dumps(cost)
    elif method == "fully_supervised":
        arrays |= {"map:grad_cam": noise + 0.5 * region, "map:occlusion": noise + 0.3 * region}
        cost = {"ms_per_map": {"grad_cam": 1.5, "occlusion": 30.0}, "calls_per_map": {"grad_cam": 1, "occlusion": 26}}
        arrays["cost"] = json.dumps(cost)
    else:
        arrays |= {"map:random_map": noise, "map:centre_prior": np.broadcast_to(noise[:1], region.shape)}
    np.savez(cell / "explanations.npz", protocol=json.dumps({"steps": 12, "guidance": 3.0}), **arrays)
    return cell / "explanations.npz"


def generation_rows(run, distance):
    identity = Identity.from_run(run)
    facts = {"extractor": "fully_supervised", "sampler": "ddim", "steps": 25, "n_real": 180, "n_generated": 128}
    flag = "fewer images than the 256 features"
    return [
        score_row(identity, metric="frechet_distance", value=distance, protocol=format_protocol(**facts, flag=flag)),
        score_row(identity, metric="frechet_distance_real", value=2.1, protocol=format_protocol(**facts)),
        score_row(identity, metric="kernel_distance", value=0.021, protocol=format_protocol(**facts)),
        score_row(identity, metric="image_recall", value=0.45, protocol=format_protocol(**facts)),
        score_row(identity, metric="image_recall_real", value=0.91, protocol=format_protocol(**facts)),
        score_row(identity, metric="near_copies", value=0.02, protocol=format_protocol(space="pixels")),
        score_row(identity, metric="nearest_ratio", value=0.87, protocol=format_protocol(space="pixels")),
        score_row(identity, metric="guidance_auroc", value=0.93, protocol=format_protocol(**facts)),
        score_row(identity, metric="fid", value=math.nan, protocol=format_protocol(reason="weights absent: set x_y")),
    ]


def vote_rows(run, skill):
    """Score votes as ``score_votes`` does: of three findings, each asked by its absence and its presence."""
    identity, rows, wobble = Identity.from_run(run), [], 0.004 * run["spec"]["seed"]
    whole = 0.25 * skill / 1.4 * (1 - math.exp(-(TRIALS[-1] ** 0.5) / 2))
    for trials in TRIALS:
        for rule, gain, calls in (
            ("majority", 1, 6 * trials),
            ("mean", 0.9, 6 * trials),
            ("race", 1, 6 * trials**0.55),
        ):
            facts = {"rule": rule, "trials": trials, **({"error": 0.05, "block": 8} if rule == "race" else {})}
            edge = 0.25 * gain * skill / 1.4 * (1 - math.exp(-(trials**0.5) / 2))
            share = 0.5 + edge + wobble
            for metric, value in (
                ("vote_accuracy", share),
                ("vote_gain", edge - whole),
                ("vote_auroc", share + 0.05),
                ("vote_calls", calls),
            ):
                half = 0.03 if metric != "vote_calls" else 0.1 * calls * (rule == "race")
                protocol = format_protocol(**facts, groups=60)
                interval = (value - half, value + half)
                rows.append(score_row(identity, metric=metric, value=value, interval=interval, protocol=protocol))
    return rows
