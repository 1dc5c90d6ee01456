"""What a person reads: tables, figures, one document, one page in the browser."""


rule draw_audit:
    input:
        store=store,
        splits=lambda w: of_splits(w.dataset, "split-{seed}.parquet"),
    output:
        table="<results>/{dataset}/audit.csv",
        page=report(
            "<results>/{dataset}/audit.html",
            caption="../docs/report/audit.rst",
            category=numbered("Is the split clean?"),
            labels={"what": "leaks", "data set": "{dataset}"},
        ),
        picture=report(
            "<results>/{dataset}/audit.png",
            caption="../docs/report/alike.rst",
            category=numbered("Is the split clean?"),
            labels={"what": "most alike", "data set": "{dataset}"},
        ),
    log:
        "<logs>/draw_audit/{dataset}.log",
    localrule: True
    params:
        code_version=code_version("jointdiff.report.audit"),
    script:
        "../workflow_scripts/draw_audit.py"


rule draw_tables:
    input:
        scores="<results>/scores.parquet",
        predictions=of_cells("predictions.parquet"),
    output:
        expand(
            "<results>/tables/{table}.{kind}",
            table=[
                "classification",
                "ranks",
                "systems",
                "votes",
                "joint",
                "images",
                "usefulness",
                "localisation",
                "counterfactual",
                "trust",
                "ablation",
                "cost",
            ],
            kind=["tex", "csv", "md", "json"],
        ),
        page("<results>/tables/classification.html", "Which classifier with few labels?"),
        page("<results>/tables/ranks.html", "Which classifier with few labels?"),
        page("<results>/tables/systems.html", "Which system does what?"),
        page("<results>/tables/votes.html", "How many votes are enough?"),
        page("<results>/tables/localisation.html", "Does it show the right place?"),
        page("<results>/tables/counterfactual.html", "Does it show the right place?"),
        page("<results>/tables/joint.html", "Are its images useful and safe to share?"),
        page("<results>/tables/images.html", "Are its images useful and safe to share?"),
        page("<results>/tables/usefulness.html", "Are its images useful and safe to share?"),
        page("<results>/tables/trust.html", "Can its probabilities be trusted?"),
        page("<results>/tables/ablation.html", "Which part is worth what?"),
        page("<results>/tables/cost.html", "What does it cost?"),
    log:
        "<logs>/draw_tables.log",
    localrule: True
    params:
        published=list_digest(str(PUBLISHED)),  # no input, whose folder could have braces in its name
        methods=list(experiment.methods),
        changes=experiment.changes(),
        draws=experiment.evaluation.bootstrap,
        alpha=1 - experiment.evaluation.confidence,
        code_version=code_version("jointdiff.report.tables"),
    script:
        "../workflow_scripts/draw_tables.py"


rule draw_figures:
    input:
        scores="<results>/scores.parquet",
        predictions=of_cells("predictions.parquet"),
        metrics=of_cells("metrics.jsonl"),
    output:
        expand(
            "<results>/figures/{figure}.pdf",
            figure=["auroc", "ranks", "loss", "votes", "change", "reliability", "risk"],
        ),
        page("<results>/figures/auroc.png", "Which classifier with few labels?"),
        page("<results>/figures/ranks.png", "Which classifier with few labels?"),
        page("<results>/figures/loss.png", "Which classifier with few labels?"),
        page("<results>/figures/votes.png", "How many votes are enough?"),
        page("<results>/figures/change.png", "Does it show the right place?"),
        page("<results>/figures/reliability.png", "Can its probabilities be trusted?"),
        page("<results>/figures/risk.png", "Can its probabilities be trusted?"),
    log:
        "<logs>/draw_figures.log",
    localrule: True
    params:
        methods=list(experiment.methods),
        alpha=1 - experiment.evaluation.confidence,
        code_version=code_version("jointdiff.report.figures"),
    script:
        "../workflow_scripts/draw_figures.py"


rule compile_paper:
    input:
        scores="<results>/scores.parquet",
        tables=rules.draw_tables.output,
        figures=rules.draw_figures.output,
        # Of one seed: the report has them all.
        grids=of_first_seed(generated("generated.png")),
        nearest=of_first_seed(generated("nearest.png")),
        strips=of_first_seed(explained("explanations.png")),
    output:
        paper="<results>/paper.pdf",
        source="<results>/paper.tex",
    log:
        "<logs>/compile_paper.log",
    localrule: True
    params:
        title=f"JointDiff Bench: {experiment.name}",
        code_version=code_version("jointdiff.report.paper"),
    script:
        "../workflow_scripts/compile_paper.py"


# All that the report shows. The report itself is made by a Snakemake of its own, which asks for this.
rule finished:
    input:
        final_files,


rule compile_report:
    input:
        final_files,
        scores="<results>/scores.parquet",
    output:
        "<results>/report.html",
    log:
        "<logs>/compile_report.log",
    localrule: True
    params:
        storage=storage,
        pathvars=FOLDERS,
        code_version=code_version("jointdiff.report.landing"),
    script:
        "../workflow_scripts/compile_report.py"
