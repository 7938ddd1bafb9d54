"""The command line: commands, and errors turned into one message and an exit code."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import NoReturn

import click

from shardwatt import __version__
from shardwatt.cli.analyse import aggregate, figure, power_trace, report, tables
from shardwatt.cli.calibrate import calibrate
from shardwatt.cli.cells import cells
from shardwatt.cli.check import check_site
from shardwatt.cli.leftovers import wait_for_job
from shardwatt.cli.limits import restore_power_limits
from shardwatt.cli.meters import meters
from shardwatt.cli.model import model
from shardwatt.cli.plan import plan
from shardwatt.cli.prepare import fetch, make_model, make_tokenizer, schemas
from shardwatt.cli.run import run_cell
from shardwatt.cli.together import run_together
from shardwatt.errors import CellFailure, Reason, ShardwattError, storage_failure

#: Exit code of a user's mistake or a failed cell.
EXIT_FAILED = 1
#: Exit code after Ctrl-C, as shells have it.
EXIT_CANCELLED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shardwatt")
def commands() -> None:
    """Measure what LLM inference costs in energy and time.

    Studies are run by Snakemake: snakemake --profile profiles/local results/STUDY/report.html
    """


for command in (
    cells,
    plan,
    calibrate,
    check_site,
    meters,
    report,
    tables,
    figure,
    power_trace,
    aggregate,
    run_cell,
    run_together,
    wait_for_job,
    restore_power_limits,
    model,
    make_model,
    make_tokenizer,
    fetch,
    schemas,
):
    commands.add_command(command)


def main() -> NoReturn:
    """Run a command; a user's mistake ends in its message alone."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A letter that a terminal or a file's encoding lacks is told by its number: no data is lost.
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    # Its own news; of libraries only what they warn of.
    logging.getLogger("shardwatt").setLevel(logging.INFO)
    try:
        commands(prog_name="shardwatt", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as problem:
        problem.show()
        sys.exit(problem.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("shardwatt: interrupted", file=sys.stderr)
        sys.exit(EXIT_CANCELLED)
    except CellFailure as problem:
        print(f"shardwatt: {problem.reason}: {problem.message}", file=sys.stderr)
        sys.exit(EXIT_CANCELLED if problem.reason is Reason.CANCELLED else EXIT_FAILED)
    except ShardwattError as problem:
        print(f"shardwatt: {problem}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except BrokenPipeError:
        # The reader of a pipe has seen enough; what is left to print at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    except OSError as problem:
        failure = storage_failure(problem)
        if failure is None:
            raise
        print(f"shardwatt: {failure.message}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    sys.exit(0)
