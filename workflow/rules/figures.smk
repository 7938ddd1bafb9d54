# The counterparts of the paper's figures, one job each.


localrules:
    figure,


rule figure:
    input:
        lambda wildcards: ask(PLANNER.figure_source, wildcards.study, wildcards.figure),
    output:
        report(
            "results/{study}/figures/{figure}.svg",
            caption="../report/figure.rst",
            category="Figures",
            labels={"study": "{study}", "figure": "{figure}"},
        ),
        "results/{study}/figures/{figure}.pdf",
        "results/{study}/figures/{figure}.png",
    log:
        "logs/{study}/figures/{figure}.log",
    conda:
        "../envs/shardwatt.yaml"
    shell:
        "python -m shardwatt figure {wildcards.study:q}"
        " {wildcards.figure:q} > {log:q} 2>&1"
