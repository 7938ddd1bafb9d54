"""Errors and reason codes: what went wrong, in words that a user can act on."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from enum import StrEnum


class ShardwattError(Exception):
    """A mistake that the user can mend; the message alone is shown, never a traceback.

    The message says what was found, what was expected, and what to do.
    """


class StudyError(ShardwattError):
    """A study file that cannot be used; names the file, the key, what was found and what is allowed."""


class SiteError(ShardwattError):
    """A site file that cannot be used."""


class SlurmError(ShardwattError):
    """Slurm cannot be asked, or refuses."""


class NoAnswerError(SlurmError):
    """Slurm has not answered: it may have done what it was told, or not."""


class RecordError(ShardwattError):
    """A record that is torn, of another schema, or contradicts itself."""


class Reason(StrEnum):
    """Why a cell failed. Documented, one by one, in docs/troubleshooting.md."""

    CONFIGURATION = "configuration"
    BAD_CHECKPOINT = "bad_checkpoint"
    BAD_TOKENIZER = "bad_tokenizer"
    BAD_DATA = "bad_data"
    PROMPT_TOO_LONG = "prompt_too_long"
    NOT_FINITE = "not_finite"
    STORAGE = "storage"
    START_TIMEOUT = "start_timeout"
    RANK_DIED = "rank_died"
    HOST_OOM = "host_oom"
    COLLECTIVE_TIMEOUT = "collective_timeout"
    RANKS_DISAGREE = "ranks_disagree"
    METER_UNAVAILABLE = "meter_unavailable"
    NOT_MEASURED = "not_measured"
    POWER_CAP_REFUSED = "power_cap_refused"
    POWER_CAP_LOST = "power_cap_lost"
    CANCELLED = "cancelled"
    TIME_LIMIT = "time_limit"
    PREEMPTED = "preempted"
    NODE_FAIL = "node_fail"
    SUPERVISOR_DIED = "supervisor_died"
    LOST = "lost"
    INTERNAL_ERROR = "internal_error"


#: Exit code of ranks and meters for what the user has to mend (EX_CONFIG of sysexits.h).
EXIT_CONFIGURATION = 78

#: What running the same cell again cannot mend: only a person can.
INCURABLE = frozenset(
    {
        Reason.CONFIGURATION,
        Reason.BAD_CHECKPOINT,
        Reason.BAD_TOKENIZER,
        Reason.BAD_DATA,
        Reason.PROMPT_TOO_LONG,
        Reason.NOT_FINITE,
        Reason.NOT_MEASURED,
        Reason.POWER_CAP_REFUSED,
    }
)


class CellFailure(ShardwattError):
    """The end of a cell in outcome `failed`: a reason code and what was seen.

    Args:
        reason: the documented code.
        message: what was found, what was expected, what to do.
        node: host on which it happened, where known.
        rank: global rank on which it happened, where known.
        exit_code: exit status of that rank, negative for a signal, where known.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        node: str | None = None,
        rank: int | None = None,
        exit_code: int | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.node = node
        self.rank = rank
        self.exit_code = exit_code


class DoesNotFit(ShardwattError):
    """A device ran out of memory: an outcome of its own, not a failure."""


#: What the system says when a disk or a folder cannot take what is to be written.
_STORAGE_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ESTALE, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
}


def storage_failure(problem: OSError) -> CellFailure | None:
    """What an error of the system says of a disk or folder that cannot be written; None for any other."""
    if problem.errno not in _STORAGE_ERRORS:
        return None
    return CellFailure(
        Reason.STORAGE,
        f"{problem.filename or 'the results folder'}: {problem.strerror}; expected a folder that can be "
        "written, with space left: free some, or mend its permissions, and run again",
    )


def suggestion(found: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for a near miss, otherwise an empty string."""
    near = difflib.get_close_matches(found, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
