# What each cell will need and take, before any job is submitted: no model is read, nothing is started.


localrules:
    plan,


rule plan:
    output:
        "results/{study}/plan.csv",
        "results/{study}/plan-totals.csv",
        "results/{study}/plan.parquet",
        "results/{study}/plan.md",
    log:
        "logs/{study}/plan.log",
    conda:
        "../envs/shardwatt.yaml"
    params:
        # Study, site and calibration, models' shapes: a plan of others is outdated.
        identity=lambda wildcards: ask(PLANNER.plan_identity, wildcards.study),
    shell:
        "python -m shardwatt plan {wildcards.study:q} --write > {log:q} 2>&1"
