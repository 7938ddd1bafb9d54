# shardwatt: what LLM inference costs in energy and time.
#
#   snakemake --profile profiles/local results/demo/report.html     a whole study, on this machine
#   snakemake --profile profiles/slurm results/paper/report.html    and on a cluster
#   snakemake --profile profiles/slurm results/paper/plan.csv       what it would take there
#   snakemake --profile profiles/local results/demo/cells/…/result.json     one cell again
#
from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/cells.smk"
include: "workflow/rules/leftovers.smk"
include: "workflow/rules/aggregate.smk"
include: "workflow/rules/figures.smk"


report: "workflow/report/workflow.rst"


# The default study; another one: --config study=NAME, last on the line.
rule all:
    default_target: True
    input:
        expand("results/{study}/report.html", study=config.get("study", "demo")),


onstart:
    gc.enable()
    check_start()
    end_leftovers()


onerror:
    build_partial_reports()
