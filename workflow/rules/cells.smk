# One cell: the supervisor starts the ranks, watches them and puts the four files into place.


rule cell:
    input:
        files_of_cell,
    output:
        "results/{study}/cells/{cell}/result.json",
        "results/{study}/cells/{cell}/responses.parquet",
        "results/{study}/cells/{cell}/batches.parquet",
        "results/{study}/cells/{cell}/power.parquet",
    log:
        "logs/{study}/cells/{cell}/supervisor.log",
    conda:
        "../envs/shardwatt.yaml"
    # On this machine nothing runs beside a cell: neighbours spoil watts and seconds.
    threads: workflow.resource_settings.cores or 1
    resources:
        **resources_of_cell(),
        attempt=lambda wildcards, attempt: attempt,
    params:
        identity=lambda wildcards: ask(
            PLANNER.cell_identity, wildcards.study, wildcards.cell
        ),
    message:
        "{resources.job}" if SITE.launcher == "slurm" else None
    shell:
        "python -m shardwatt run-cell {wildcards.study:q} {wildcards.cell:q}"
        " --attempt {resources.attempt}"
