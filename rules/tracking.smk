"""What MLflow shows. Its address is no parameter: runs stay valid wherever they are shown."""


rule create_tracking_store:
    output:
        store="<results>/tracking/store.json",
    log:
        "<logs>/create_tracking_store.log",
    priority: 200
    localrule: True
    params:
        tracking=lookup("tracking", within=config),
        experiment=experiment.name,
    script:
        "../workflow_scripts/create_tracking_store.py"


rule sync_tracking:
    input:
        store="<results>/tracking/store.json",
        runs=of_cells("run.json"),
        first_stages=first_stages("autoencoder.json"),
        scores="<results>/scores.parquet",
        tables=lambda w: rules.draw_tables.output,
        figures=lambda w: rules.draw_figures.output,
        generated=generated("generated.png"),
        explained=explained("explanations.png"),
    output:
        synchronised="<results>/tracking/synchronised.json",
    log:
        "<logs>/sync_tracking.log",
    localrule: True
    script:
        "../workflow_scripts/sync_tracking.py"
