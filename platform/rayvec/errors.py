"""What can go wrong, as exit statuses. Every job ends with one of these; each message is one line that names the cure.

Knows nothing of jobs or Ray: raise these anywhere, `jobs` turns them into a line on stderr and an exit status.
"""


class RayvecError(Exception):
    """Base of the errors that a job reports in one line, without a traceback."""

    exit_status = 1


class UserError(RayvecError, ValueError):
    """The user's mistake: an unknown name, a missing path, a value out of range. The message names the cure."""

    exit_status = 2


class MismatchError(RayvecError):
    """The plan, the encoder or the input differs from what is already there. The message names the differing field."""

    exit_status = 3


class ConcurrentWriterError(RayvecError):
    """Another run is writing the same output."""

    exit_status = 4


class StorageError(RayvecError):
    """The storage failed: no space, no permission, an unreachable store."""

    exit_status = 5
    #: The message without what a store's client says of it, which names machines; empty where that is no part of it.
    brief = ""


class QuarantineExceededError(RayvecError):
    """More records were quarantined, or left out of training, than allowed. What is committed stays."""

    exit_status = 6


class VerificationError(RayvecError):
    """A checksum, a count or a vector is not what its manifest says."""

    exit_status = 7
