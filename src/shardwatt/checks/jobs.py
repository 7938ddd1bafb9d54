"""Jobs of one GPU type, against Slurm: partition, nodes, and what sbatch says of the very words."""

from __future__ import annotations

import grp
import os
from collections.abc import Iterator
from pathlib import Path

from shardwatt.cell import Cell
from shardwatt.checks.cluster import Cluster
from shardwatt.checks.findings import Finding, error, joined, note, ok, warning
from shardwatt.checks.nodes import fitting_nodes
from shardwatt.errors import SiteError, suggestion
from shardwatt.run.together import SharedJob
from shardwatt.site import Site
from shardwatt.sitewords import DEFAULT_RUNTIME_FLOOR_MIN, DEFAULT_RUNTIME_MIN, SlurmWords
from shardwatt.slurmsite import Node, Partition, own_accounts, qos_names, would_take


def check_jobs(cluster: Cluster, site: Site, gpu: str, base: Path) -> Iterator[Finding]:
    """Everything about a GPU type's jobs that Slurm can be asked.

    Args:
        cluster: what Slurm says of itself.
        site: the site.
        gpu: name of one of its types.
        base: the folder in which Snakemake runs.

    Raises:
        SlurmError: Slurm cannot be asked.
    """
    words = site.words(gpu)
    yield from _check_account(cluster, words)
    chosen, found = _partitions(cluster, words)
    yield from found
    if not chosen:
        return
    for partition in chosen:
        yield from _check_partition(cluster, partition, words)
    names = {partition.name for partition in chosen}
    members = [node for node in cluster.nodes if node.partitions & names]
    fitting: list[Node] = []
    if members:
        fitting, found = fitting_nodes(members, chosen, site, gpu)
        yield from found
    else:
        yield warning(f"no nodes of partition {joined(names)} are shown to this user: they are not compared")
    yield from _ask_sbatch(site, gpu, base, fitting)


def _check_account(cluster: Cluster, words: SlurmWords) -> Iterator[Finding]:
    """As the executor does: it asks sacctmgr for this user's accounts, and refuses any other."""
    if not cluster.has_accounting:
        if words.account is not None or words.qos is not None:
            yield note("account and qos are not checked: Slurm has no accounting here")
        return
    own = own_accounts()
    if words.account is not None and own:
        if words.account.lower() not in {name.lower() for name in own}:
            yield error(
                f"account: '{words.account}' is none of yours; expected {', '.join(own)}"
                f"{suggestion(words.account, own)}: the executor refuses it"
            )
        else:
            yield ok(f"account {words.account}")
    known = qos_names()
    if words.qos is not None and known:
        if words.qos not in known:
            yield error(
                f"qos: '{words.qos}' is not there; Slurm has {', '.join(known)}{suggestion(words.qos, known)}"
            )
        else:
            yield ok(f"qos {words.qos}")


def _partitions(cluster: Cluster, words: SlurmWords) -> tuple[list[Partition], list[Finding]]:
    known = cluster.partitions
    if words.partition is None:
        default = [partition for partition in known.values() if partition.is_default]
        if not default:
            return [], [error(f"partition: none is named, and Slurm has no default; it has {joined(known)}")]
        return default, [note(f"partition: none is named; jobs go to Slurm's default, {default[0].name}")]
    names = words.partition.split(",")
    found = [
        error(f"partition: '{name}' is not there; Slurm has {joined(known)}{suggestion(name, known)}")
        for name in names
        if name not in known
    ]
    return [known[name] for name in names if name in known], found


def _check_partition(cluster: Cluster, partition: Partition, words: SlurmWords) -> Iterator[Finding]:
    name = partition.name
    problems = [*_who_may_use_it(partition, words), *_too_long(partition, words)]
    if partition.state != "UP":
        problems.append(error(f"partition: {name} is {partition.state}: jobs wait until it is UP"))
    if words.nodes is not None and partition.max_nodes is not None and words.nodes > partition.max_nodes:
        problems.append(
            error(
                f"nodes: {words.nodes}, and partition {name} gives a job {partition.max_nodes} at most; "
                f"use nodes: {partition.max_nodes}"
            )
        )
    if not problems:
        most = "none" if partition.max_time_min is None else f"{partition.max_time_min} min"
        yield ok(f"partition {name} is UP; its longest time limit: {most}")
    yield from problems
    preempts = cluster.settings.get("PreemptType", "preempt/none") not in ("", "preempt/none")
    mode = partition.preempt_mode.replace("GANG", "").strip(",")
    if preempts and mode == "CANCEL":
        yield warning(
            f"partition: {name} cancels preempted jobs (PreemptMode=CANCEL) and does not start them again: "
            "in squeue mode Snakemake waits for such a job for ever; use one with REQUEUE or OFF"
        )
    elif preempts and mode == "SUSPEND":
        yield warning(
            f"partition: {name} suspends preempted jobs (PreemptMode=SUSPEND): a cell's seconds then count "
            "time in which it did not run"
        )
    elif preempts and mode == "REQUEUE":
        yield note(f"partition {name}: preempted jobs start again from the beginning (PreemptMode=REQUEUE)")
    if partition.oversubscribe == "EXCLUSIVE" and words.exclusive is False:
        yield warning(
            f"exclusive: false, and partition {name} gives whole nodes in any case "
            "(OverSubscribe=EXCLUSIVE): leave it out, so that GPU hours are counted right"
        )
    elif partition.oversubscribe.startswith("FORCE"):
        yield warning(
            f"partition: {name} lets jobs share CPUs whatever they ask "
            f"(OverSubscribe={partition.oversubscribe}): neighbours spoil watts and seconds"
        )


def _who_may_use_it(partition: Partition, words: SlurmWords) -> Iterator[Finding]:
    name = partition.name
    own = _own_groups()
    if partition.allow_groups is not None and os.geteuid() != 0 and not own & partition.allow_groups:
        yield error(
            f"partition: {name} is for the groups {joined(partition.allow_groups)}; you are in {joined(own)}"
        )
    if words.account is not None:
        denied = partition.deny_accounts is not None and words.account in partition.deny_accounts
        allowed = partition.allow_accounts is None or words.account in partition.allow_accounts
        if denied or not allowed:
            yield error(
                f"account: partition {name} does not take '{words.account}'{_only(partition.allow_accounts)}"
            )
    if words.qos is not None and partition.allow_qos is not None and words.qos not in partition.allow_qos:
        yield error(f"qos: partition {name} does not take '{words.qos}'{_only(partition.allow_qos)}")


def _too_long(partition: Partition, words: SlurmWords) -> Iterator[Finding]:
    most = partition.max_time_min
    if most is None:
        return
    for key in ("runtime_min", "runtime_max_min"):
        limit = getattr(words, key)
        if limit is not None and limit > most:
            yield error(
                f"{key}: {limit} min, and partition {partition.name} allows {most} (MaxTime): such a job is "
                f"refused, or waits for ever; use at most {most}"
            )
    if words.has_planned_time and words.runtime_max_min is None:
        yield warning(
            f"runtime_max_min: found none, and the plan sets time limits: a job that asks for more than the "
            f"{most} min that partition {partition.name} allows (MaxTime) is refused, or waits for ever; say "
            f"runtime_max_min: {most}"
        )


def _ask_sbatch(site: Site, gpu: str, base: Path, fitting: list[Node]) -> Iterator[Finding]:
    """Quote sbatch --test-only for the smallest first attempt and the largest last one."""
    words, kind = site.words(gpu), site.gpus[gpu]
    time_key = "runtime_floor_min" if words.has_planned_time else "runtime_min"
    last = {
        time_key: words.runtime_max_min or getattr(words, time_key),
        "memory_per_node_gib": words.memory_per_node_max_gib or words.memory_per_node_gib,
    }
    grown = kind.model_copy(update={"slurm": words.model_copy(update=last)})
    shards = kind.per_node * (words.nodes or 1)
    asked = [(site, 1, "first attempt")]
    if shards > 1 or any(last[key] != getattr(words, key) for key in last):
        asked.append((site.model_copy(update={"gpus": {**site.gpus, gpu: grown}}), shards, "last attempt"))
    usable = sum(node.is_usable for node in fitting)
    refusals: set[str] = set()
    for place, count, which in asked:
        noun = "1 shard" if count == 1 else f"{count} shards"
        try:
            job = sbatch_words(place, gpu, count, base)
        except SiteError as problem:
            yield error(f"{noun}: {problem}")
            continue
        is_taken, said = would_take(job)
        if is_taken:
            yield ok(f"a cell of {noun}, {which}: sbatch says: {said}")
            continue
        if said in refusals:
            continue
        refusals.add(said)
        shown = " ".join(word for word in job[1:] if not word.startswith(_NOT_SHOWN))
        # --test-only looks at the nodes that take jobs now; a real submission would wait for the others.
        say = warning if usable < -(-count // kind.per_node) <= len(fitting) else error
        yield say(f"a cell of {noun}, {which}: sbatch says: {said}; it was asked for {shown}")


#: Words that decide nothing.
_NOT_SHOWN = (
    "--parsable",
    "--job-name",
    "--comment",
    "--output",
    "--no-requeue",
    "--open-mode",
    "--signal",
    "--exclude=",
)


def sbatch_words(site: Site, gpu: str, shards: int, base: Path) -> list[str]:
    """The words that submit a cell of so many shards, in its first attempt; of planned time limits the least.

    Raises:
        SiteError: the shards have no layout on the site's nodes.
    """
    cell = Cell(
        engine="reference",
        model="any",
        precision="fp16",
        gpu=gpu,
        shards=shards,
        batch=1,
        length=1,
        dataset="any",
        cap="none",
        repeat=1,
    )
    words = site.words(gpu)
    limit_min = words.runtime_min or DEFAULT_RUNTIME_MIN
    if words.has_planned_time:
        limit_min = words.runtime_floor_min or DEFAULT_RUNTIME_FLOOR_MIN
    runtime_min = min(limit_min, words.runtime_max_min or limit_min)
    return SharedJob((cell,), runtime_min).sbatch_words(site, "check-site", base / "logs")


def _own_groups() -> set[str]:
    names = set()
    for number in {os.getgid(), *os.getgroups()}:
        try:
            names.add(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return names


def _only(allowed: frozenset[str] | None) -> str:
    return f"; it takes {joined(allowed)}" if allowed else ""
