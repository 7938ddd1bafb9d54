"""Nodes of a GPU type's partition, against what its jobs ask of each: GPUs, CPUs, memory, features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from shardwatt.checks.constraint import feature_names, is_met
from shardwatt.checks.findings import Finding, error, joined, note, ok, warning
from shardwatt.errors import suggestion
from shardwatt.site import Site, SlurmWords
from shardwatt.slurmsite import Node, Partition, states_in_words

_MIB_PER_GIB = 1024


def fitting_nodes(
    members: list[Node], chosen: list[Partition], site: Site, gpu: str
) -> tuple[list[Node], list[Finding]]:
    """The nodes that hold a full node's share of the largest job, and what keeps others from it."""
    words, kind = site.words(gpu), site.gpus[gpu]
    where = joined(partition.name for partition in chosen)
    needed = words.nodes or 1
    findings: list[Finding] = []
    fitting = members

    def narrow(fits: Callable[[Node], bool], text: str) -> bool:
        """Keep the nodes that fit; an error if they are too few, a warning if not all do."""
        nonlocal fitting
        left = [node for node in fitting if fits(node)]
        if len(left) < len(fitting):
            say = error if len(left) < needed else warning
            findings.append(say(f"{text}; {len(left)} of {len(fitting)} nodes fit"))
        fitting = left
        return bool(left)

    if words.constraint is not None:
        missing = _missing_features(words.constraint, members, where)
        if missing:
            return [], missing
        fitting = [node for node in members if is_met(words.constraint, node.features)]
        if not fitting:
            return [], [error(f"constraint: no node of partition {where} has {words.constraint}")]
    if words.gres is not None or kind.kind == "cuda":
        offered = _offered(fitting)
        if not narrow(
            lambda node: _gpus(node, words.gres) >= kind.per_node, _gres_text(words, kind.per_node, offered)
        ):
            findings[-1] = _no_gres(words, kind.per_node, fitting or members, where)
            return [], findings
        if words.gres is None:
            return [], [
                error(
                    "gres: none is given, and Slurm knows the GPUs of these nodes: a job would see them, "
                    "and its steps would not; name them: gres: gpu"
                )
            ]
    cpus = kind.per_node * (words.cpus_per_rank or 1)
    most_cpus = min((p.max_cpus_per_node for p in chosen if p.max_cpus_per_node is not None), default=None)
    if not narrow(
        lambda node: min(node.cpus, most_cpus or node.cpus) >= cpus,
        f"cpus_per_rank: {words.cpus_per_rank or 1} x {kind.per_node} ranks are {cpus} CPUs a node, and "
        f"nodes of partition {where} have {_span(most_cpus or 0, [node.cpus for node in fitting])}",
    ):
        return [], findings
    asked_gib = words.most_memory_gib
    if asked_gib is None:
        findings.append(note("memory_per_node_gib: not given; a job gets what Slurm gives by default"))
    else:
        key = "memory_per_node_gib" if words.memory_per_node_max_gib is None else "memory_per_node_max_gib"
        most_mib = min((p.max_memory_mib for p in chosen if p.max_memory_mib is not None), default=None)
        least_gib = min(min(node.memory_mib, most_mib or node.memory_mib) for node in fitting) // _MIB_PER_GIB
        if not narrow(
            lambda node: min(node.memory_mib, most_mib or node.memory_mib) >= int(asked_gib * _MIB_PER_GIB),
            f"{key}: {asked_gib:g} GiB, and not every node of partition {where} has that for jobs; use at "
            f"most {least_gib}",
        ):
            return [], findings
        if words.memory_per_node_max_gib is None and least_gib > asked_gib:
            findings.append(
                note(
                    f"memory_per_node_max_gib: not given; no job asks for more than {asked_gib:g} GiB a "
                    f"node, even where a cell needs it by the plan; every node has {least_gib}"
                )
            )
    findings += _check_count(fitting, words, kind.per_node, where)
    return fitting, findings


def _check_count(fitting: list[Node], words: SlurmWords, per_node: int, where: str) -> Iterator[Finding]:
    usable = [node for node in fitting if node.is_usable]
    found = f"{len(fitting)} nodes of partition {where} fit: {states_in_words(fitting)}"
    if words.nodes is None:
        yield note(f"nodes: not given; with nodes: {len(fitting)} the plan refuses cells that need more")
        yield ok(found) if usable else warning(f"{found}: none takes jobs now")
    elif len(fitting) < words.nodes:
        yield error(f"nodes: {words.nodes}, and {found}; use nodes: {len(fitting)}")
    elif len(usable) < words.nodes:
        yield warning(
            f"{found}; {len(usable)} of them take jobs, and cells of {words.nodes} nodes "
            f"({words.nodes * per_node} shards) wait for the others"
        )
    else:
        yield ok(found)


def _missing_features(constraint: str, members: list[Node], where: str) -> list[Finding]:
    known = {feature for node in members for feature in node.features}
    has = f"its nodes have {joined(known)}" if known else "its nodes have no features"
    missing = [
        error(
            f"constraint: no node of partition {where} has the feature '{name}'; "
            f"{has}{suggestion(name, known)}"
        )
        for name in feature_names(constraint)
        if name not in known
    ]
    try:
        is_met(constraint, ())
    except ValueError as problem:
        missing.append(error(f"constraint: '{constraint}' cannot be read: {problem}"))
    return missing


def _gpus(node: Node, gres: str | None) -> int:
    """GPUs of a node by the site's name of them; Slurm takes any case."""
    wanted = (gres or "gpu").partition(":")[2].lower()
    return sum(count for name, count in node.gpus.items() if not wanted or name.lower() == wanted)


def _offered(of: list[Node]) -> dict[str, set[int]]:
    """GPUs of the nodes: counts of each type that occur."""
    found: dict[str, set[int]] = {}
    for node in of:
        for name, count in node.gpus.items():
            found.setdefault(f"gpu:{name}" if name else "gpu", set()).add(count)
    return found


def _gres_text(words: SlurmWords, per_node: int, offered: dict[str, set[int]]) -> str:
    types = "; ".join(
        f"{name}, {' or '.join(map(str, sorted(counts)))} a node" for name, counts in sorted(offered.items())
    )
    return f"gres: {per_node} x {words.gres or 'gpu'} a node, and nodes offer {types or 'no GPUs'}"


def _no_gres(words: SlurmWords, per_node: int, of: list[Node], where: str) -> Finding:
    """What no node of the partition offers, and what to write instead."""
    offered = _offered(of)
    found = _gres_text(words, per_node, offered)
    if words.gres is None:
        return warning(
            f"gres: none is given, and Slurm knows too few GPUs on the nodes of partition {where}: cells may "
            f"find fewer than {per_node} there"
        )
    if max((_gpus(node, words.gres) for node in of), default=0):
        return error(f"{found}; correct per_node or gres")
    wanted = words.gres.lower()
    types = sorted(offered)
    near = [name for name in types if wanted.partition(":")[2] in name.lower()] or types
    if not near:
        return error(f"{found}; use a partition with GPUs")
    if "-" in near[0]:
        features = Counter(f for node in of if near[0].partition(":")[2] in node.gpus for f in node.features)
        by = f"constraint: {min(features)}" if features else "a constraint"
        return error(f"{found}; the executor takes no type with a hyphen: use gres: gpu, and {by}")
    return error(f"{found}; did you mean gres: {near[0]}?")


def _span(most: int, counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    span = str(low) if low == high else f"{low} to {high}"
    return f"{span}, of which a job may have {most}" if most else span
