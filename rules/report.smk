"""What a person reads: tables, figures, one document, one page in the browser."""

TABLES = ["classification", "joint", "localisation", "cost"]
FIGURES = {
    "auroc": "How good is the classification?",
    "reliability": "How good is the classification?",
    "change": "Where does the model see a finding?",
    "loss": "How did training go?",
}


localrules:
    draw_tables,
    draw_figures,
    compile_paper,
    compile_report,


rule draw_tables:
    input:
        scores="<results>/scores.parquet",
    output:
        tex=expand("<results>/tables/{table}.tex", table=TABLES),
        csv=expand("<results>/tables/{table}.csv", table=TABLES),
    log:
        "<logs>/draw_tables.log",
    params:
        code_version=code_version("jointdiff.report.tables"),
    script:
        "../workflow_scripts/draw_tables.py"


rule draw_figures:
    input:
        scores="<results>/scores.parquet",
    output:
        png=expand("<results>/figures/{figure}.png", figure=FIGURES),
    log:
        "<logs>/draw_figures.log",
    params:
        code_version=code_version("jointdiff.report.figures"),
    script:
        "../workflow_scripts/draw_figures.py"


rule compile_paper:
    input:
        tables=rules.draw_tables.output.tex,
    output:
        paper="<results>/paper.pdf",
    log:
        "<logs>/compile_paper.log",
    params:
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
    output:
        "<results>/report.html",
    log:
        "<logs>/compile_report.log",
    script:
        "../workflow_scripts/compile_report.py"
