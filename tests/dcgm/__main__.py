"""The stand-in's command line: the part of dcgmi's that is needed.

python -m dcgm discovery -l
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

import pynvml

from dcgm import engine, layouts
from dcgm.memory import changed, folder, kept, load

#: Words of the file `faults`, and what they do.
FAULTS = {
    "no_engine": "no call finds a host engine",
    "forgets": "groups are gone as soon as they were made, as with an engine inside dcgmi",
    "non_root": "the engine may not watch processes",
    "hang:WORD": "calls with this word never end",
    "mig": "GPUs are sliced: statistics say nothing, and fields come by slice",
    "summary": "statistics come as the summary, also with -v",
    "other_layout": "statistics come in a layout that nobody knows",
    "no_switches": "the list of GPUs ends with code 223, since switches cannot be listed",
    "no_group": "the last GPU cannot be added to a group that was made for it",
    "no_profiling": "the module of the profiling fields is not loaded",
    "profiling_ends": "the stream of profiling fields ends after a few lines",
}

_FIELDS = {1002: "SMACT", 1004: "TENSO", 1005: "DRAMA"}
_CONNECTION = -21


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def main(words: Sequence[str]) -> int:
    path = folder() / "faults"
    faults = set(path.read_text().split()) if path.exists() else set()
    if any(f"hang:{word}" in faults for word in words):
        time.sleep(600)
    if "no_engine" in faults:
        _say(
            "Error: unable to establish a connection to the specified host: localhost",
            "Error: Unable to connect to host engine. Host engine connection invalid/disconnected.",
        )
        return _CONNECTION
    pynvml.nvmlInit()
    engine.start()
    commands = {"discovery": _discovery, "group": _group, "stats": _stats, "dmon": _stream}
    if words[0] not in commands:
        _say("ERROR: Invalid subsystem.")
        return -1
    return commands[words[0]](words[1:], faults)


def _gpus() -> dict[int, tuple[str, str]]:
    gpus = {}
    for gpu in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(engine.nvml_index(gpu))
        gpus[gpu] = (pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle))
    return gpus


def _discovery(words: Sequence[str], faults: set[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-l", action="store_true", required=True)
    parser.parse_args(words)
    _say(*layouts.discovery(_gpus()))
    if "no_switches" in faults:
        _say(
            "Error: Cannot get NvSwitch list from remote node. Return: "
            "This request is serviced by a module of DCGM that is not currently loaded"
        )
        return -33
    _say(*layouts.switches())
    return 0


def _group(words: Sequence[str], faults: set[str]) -> int:
    parser = argparse.ArgumentParser()
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("-l", action="store_true")
    which.add_argument("-c", metavar="NAME")
    which.add_argument("-d", metavar="GROUP")
    parser.add_argument("-a", metavar="IDS", default="")
    asked = parser.parse_args(words)
    everything = {"name": "DCGM_ALL_SUPPORTED_GPUS", "gpus": list(_gpus())}
    if asked.l:
        _say(*layouts.group_list({"0": everything, **load().groups}))
        return 0
    with changed() as memory:
        if asked.d is not None:
            if memory.groups.pop(asked.d, None) is None:
                _say(f"Error: Cannot destroy group {asked.d}. Return: The Group is not found.")
                return -5
            _say(f"Successfully removed group {asked.d}")
            return 0
        number, memory.next_group = str(memory.next_group), memory.next_group + 1
        _say(f'Successfully created group "{asked.c}" with a group ID of {number}')
        gpus = [int(gpu) for gpu in asked.a.split(",") if gpu]
        if "forgets" not in faults:
            memory.groups[number] = {"name": asked.c, "gpus": gpus}
        if "no_group" in faults or not set(gpus) <= set(everything["gpus"]):
            _say(
                "",
                f"Error: Unable to perform add of GPU {gpus[-1]} into group {number}. Return: Bad parameter "
                "passed to function.",
                "The GPU was not found or is already in the group.",
            )
            return -1
        _say("Add to group operation successful.")
        return 0


def _stats(words: Sequence[str], faults: set[str]) -> int:
    parser = argparse.ArgumentParser()
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("-e", action="store_true")
    for option in ("-s", "-x", "-j", "-r"):
        which.add_argument(option, metavar="JOB")
    parser.add_argument("-g", metavar="GROUP", default="0")
    parser.add_argument("-u", type=int, default=30_000, metavar="MS")
    parser.add_argument("-m", type=int, default=3600, metavar="S")
    parser.add_argument("-v", action="store_true")
    asked = parser.parse_args(words)
    if asked.e:
        return _watch(asked.g, asked.u, asked.m, faults)
    if asked.s is not None:
        return _start(asked.g, asked.s)
    if asked.x is not None:
        return _stop(asked.x)
    if asked.r is not None:
        return _remove(asked.r)
    return _view(asked.j, asked.v, faults)


def _watch(group: str, interval_ms: int, keep_s: int, faults: set[str]) -> int:
    with changed() as memory:
        failed = "The Group is not found" if group not in memory.groups else None
        if "non_root" in faults:
            failed = "Host engine is running as non-root"
        if failed:
            _say(f"Error: Unable to enable process watches for group. Return: {failed}.")
            return -5
        asked_s = time.monotonic()
        gpus = memory.groups[group]["gpus"]
        for gpu in gpus:
            memory.watches[str(gpu)] = {"interval_ms": interval_ms, "keep_s": keep_s, "asked_s": asked_s}
    # The engine's loop looks at once what is new to it.
    deadline_s = time.monotonic() + 300
    while not all((found := kept(gpu)) and found[-1].t_s >= asked_s for gpu in gpus):
        if time.monotonic() > deadline_s:
            raise SystemExit("the simulated host engine takes no samples: see its engine.log")
        time.sleep(0.01)
    _say("Successfully started process watches.")
    return 0


def _start(group: str, job: str) -> int:
    with changed() as memory:
        failed = "The Group is not found" if group not in memory.groups else None
        if job in memory.jobs:
            failed = "This Job Id is in use. Please use another job Id"
        if len(job) > 63:
            failed = "Job ID too long"
        if failed:
            _say(f"Error: Unable to start job for group. Return: {failed}.")
            return -26
        now_s = time.monotonic()
        memory.jobs[job] = {
            "gpus": memory.groups[group]["gpus"],
            "start_s": now_s,
            "stop_s": None,
            "wall_s": time.time() - now_s,
        }
    _say(f"Successfully started recording stats for {job}.")
    return 0


def _stop(job: str) -> int:
    with changed() as memory:
        if job not in memory.jobs:
            _say(f"Error: Job {job} was not found.")
            return -14
        if memory.jobs[job]["stop_s"] is None:
            memory.jobs[job]["stop_s"] = time.monotonic()
    _say(f"Successfully stopped recording stats for {job}.")
    return 0


def _remove(job: str) -> int:
    with changed() as memory:
        if memory.jobs.pop(job, None) is None:
            _say(f"Error: Job {job} was not found.")
            return -14
    _say(f"Successfully removed job {job}.")
    return 0


def _view(job: str, is_verbose: bool, faults: set[str]) -> int:
    found = load().jobs.get(job)
    if found is None:
        _say("Error: Unable to retrieve job statistics. Return: No data is available.")
        return -14
    _say(f"Successfully retrieved statistics for job: {job}. ")
    if "other_layout" in faults:
        _say("gpu,joules", "0,123")
        return 0
    end_s = found["stop_s"] or time.monotonic()
    for gpu in found["gpus"]:
        samples = [sample for sample in kept(gpu) if found["start_s"] <= sample.t_s <= end_s]
        is_summary = "summary" in faults or not is_verbose
        _say(
            *layouts.job_block("Summary" if is_summary else f"GPU ID: {gpu}", found, samples, "mig" in faults)
        )
        if is_summary:
            break
    return 0


def _activity() -> list[str]:
    path = folder() / "activity"
    return (path.read_text() if path.exists() else "0.8:0.4:0.3").split(";")


def _stream(words: Sequence[str], faults: set[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-g", metavar="GROUP", required=True)
    parser.add_argument("-e", metavar="FIELDS", required=True)
    parser.add_argument("-d", type=int, default=1000, metavar="MS")
    asked = parser.parse_args(words)
    fields = [int(field) for field in asked.e.split(",")]
    header = layouts.stream_header([_FIELDS[field] for field in fields])
    _say(*header)
    streamed = folder() / "streamed"
    streamed.touch()
    if "no_profiling" in faults:
        _say(
            "Error setting watches. Result: -33: This request is serviced by a module of DCGM that is not "
            "currently loaded",
            "",
        )
        return -33
    gpus = load().groups[asked.g]["gpus"]
    is_over = False

    def interrupted(number: int, frame: FrameType | None) -> None:
        nonlocal is_over
        is_over = True

    signal.signal(signal.SIGINT, interrupted)
    count = 0
    while not is_over and not (count == 3 and "profiling_ends" in faults):
        if count and count % 15 == 0:
            _say(*header)
        activity = _activity()
        for gpu in gpus:
            index = engine.nvml_index(gpu)
            shares = dict(zip(_FIELDS, activity[min(index, len(activity) - 1)].split(":"), strict=True))
            # Nothing was counted yet when the first line is due.
            cells = [f"{float(shares[field]):.3f}" if count else "N/A" for field in fields]
            entity = f"GPU-I {gpu}" if "mig" in faults else f"GPU {gpu}"
            _say(entity.ljust(10) + "".join(cell.ljust(13) for cell in cells))
        count += 1
        with streamed.open("a") as stream:
            stream.write(f"{';'.join(activity)}\n")
        time.sleep(asked.d / 1000)
    if is_over:
        _say("", "", "dmon was stopped do to receiving a signal")
        return 0
    _say(
        "Error getting values information. Return -37: The third-party Profiling module returned an "
        "unrecoverable error"
    )
    return -37


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) & 0xFF)
