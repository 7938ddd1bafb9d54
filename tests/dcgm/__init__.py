"""A stand-in for `dcgmi` and its host engine, on the simulated GPUs of tests/nvml.

It prints in DCGM's layouts and has its habits: energy is the last less the first sample that the host engine
kept from a job's time, in whole joules; samples are taken so often as was asked for last, whoever asked, and
go on when their group is gone; a job id serves once.

    SIMULATED_DCGM_STATE      folder of the host engine's memory, one below it for each host name
    SIMULATED_DCGM_OWNER      process that the engine does not outlive
    SIMULATED_DCGM_ORDER      `reversed`: GPU ids count from NVML's last index down

It tells what profiling fields it has streamed in the file `streamed`, a line for each set of GPUs.

Two files in that folder tell it more. `faults`, words separated by blanks, makes it fail: see FAULTS in
__main__.py. `activity` holds the profiling fields: SMACT:TENSO:DRAMA a GPU in NVML's order, separated by ';'.
"""
