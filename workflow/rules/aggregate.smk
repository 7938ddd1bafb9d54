# Finished cells to tidy tables, the published tables and the report.


# Seconds of work from small files: not worth a place in a queue.
localrules:
    aggregate,
    tables,
    report,


TABLES = [
    *("table-2", "table-3", "table-4", "table-5"),
    *("efficiency", "published", "outcomes"),
]


rule aggregate:
    input:
        records_of_study,
    output:
        parquet="results/{study}/cells.parquet",
        csv=report(
            "results/{study}/cells.csv",
            caption="../report/cells.rst",
            category="Cells",
            labels={"study": "{study}", "what": "a row a cell"},
        ),
        devices="results/{study}/devices.parquet",
        devices_csv=report(
            "results/{study}/devices.csv",
            caption="../report/devices.rst",
            category="Cells",
            labels={"study": "{study}", "what": "a row a device of a cell"},
        ),
    log:
        "logs/{study}/aggregate.log",
    conda:
        "../envs/shardwatt.yaml"
    params:
        constants=lambda wildcards: ask(PLANNER.study, wildcards.study).constants.hash,
        # Cells that do not fit have no record: which these are, tables say from the plan.
        left_out=lambda wildcards: ask(PLANNER.left_out, wildcards.study),
    shell:
        "python -m shardwatt aggregate {wildcards.study:q}" " > {log:q} 2>&1"


rule tables:
    input:
        "results/{study}/cells.parquet",
    output:
        report(
            expand("results/{{study}}/tables/{table}.csv", table=TABLES),
            caption="../report/tables.rst",
            category="Tables",
        ),
        expand(
            "results/{{study}}/tables/{table}.{kind}", table=TABLES, kind=["md", "tex"]
        ),
    log:
        "logs/{study}/tables.log",
    conda:
        "../envs/shardwatt.yaml"
    shell:
        "python -m shardwatt tables {wildcards.study:q} > {log:q} 2>&1"


rule report:
    input:
        cells="results/{study}/cells.parquet",
        tables=expand("results/{{study}}/tables/{table}.csv", table=TABLES),
        figures=lambda wildcards: expand(
            "results/{study}/figures/{figure}.svg",
            study=wildcards.study,
            figure=ask(PLANNER.figure_names, wildcards.study),
        ),
    output:
        report(
            "results/{study}/report.html",
            caption="../report/study.rst",
            category="Report",
            labels={"study": "{study}", "what": "self-contained report"},
        ),
    log:
        "logs/{study}/report.log",
    conda:
        "../envs/shardwatt.yaml"
    shell:
        "python -m shardwatt report {wildcards.study:q} > {log:q} 2>&1"
