# What cells read: pinned files from a configured folder or the net, and models made from recipes.


# On Slurm too these run where Snakemake does: a site's words describe nodes with GPUs, nodes often have no
# way to the net, and models are made once. For a large recipe call `shardwatt make-model` in a job first.
# `update`: other projects may share these folders. What one of them has put there since the plan was made,
# Snakemake would remove before the job, under that project's cells; the commands find it and keep it.
# (It still removes it after a job that failed.)
localrules:
    fetch,
    make_tokenizer,
    make_model,


rule fetch:
    output:
        update(f"{DATA}/{{file}}"),
    log:
        "logs/fetch/{file}.log",
    conda:
        "../envs/shardwatt.yaml"
    shell:
        "python -m shardwatt fetch {wildcards.file:q} 2>&1 | tee {log:q}"


rule make_tokenizer:
    input:
        # Pinned by their hashes: when they were touched counts for nothing.
        lambda wildcards: map(ancient, ask(PLANNER.model_sources, wildcards.model)),
    output:
        update(f"{MODELS}/{{model}}/tokenizer.model"),
    log:
        "logs/models/{model}/tokenizer.log",
    conda:
        "../envs/shardwatt.yaml"
    shell:
        "python -m shardwatt make-tokenizer {wildcards.model:q}" " > {log:q} 2>&1"


rule make_model:
    input:
        recipe=recipe_of_model,
        tokenizer=ancient(f"{MODELS}/{{model}}/tokenizer.model"),
    output:
        # Told last: where it is, the weights are.
        update(f"{MODELS}/{{model}}/shards-{{shards}}/{MADE_FROM_FILE}"),
    log:
        "logs/models/{model}/shards-{shards}.log",
    conda:
        "../envs/shardwatt.yaml"
    shell:
        "python -m shardwatt make-model"
        " {wildcards.model:q} {wildcards.shards:q} > {log:q} 2>&1"
