"""Errors that a user can mend: the entry points print them as one sentence and exit with status 2."""

import errno

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG}
"""What the system says when a place cannot be written."""


def unwritable(error: BaseException) -> bool:
    """Whether the system has refused to write: a full disk, a lacking permission. Making room mends it; trying again does not."""
    return isinstance(error, OSError) and error.errno in UNWRITABLE


def refusal(error: OSError, place: object = None) -> str:
    """The sentence for an `unwritable` error; `place`: where it was, unless the error names a file."""
    what = "used" if error.errno in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG) else "written"  # reading is refused so too
    return f"{error.filename or place or 'a file'} cannot be {what} ({error.strerror or error}): make room or get permission"


class UserError(Exception):
    """What is wrong, where, and what to do, in one sentence."""


class ConfigError(UserError, ValueError):
    """A field of a Config, or a combination of fields, that no training can have."""


class DataError(UserError):
    """Images or labels that cannot be had or cannot be used."""


class WeightsError(UserError):
    """Weights that cannot be had, are damaged, or belong to another architecture."""


class NotPrepared(UserError):
    """Pretrained weights that a call must make first; the message names the call."""


class RunError(UserError):
    """A run directory that cannot be made, resumed or read, or resources that are not there."""


class StorageError(RunError):
    """An object store that refuses or does not answer. No trial is to blame: what was being done is left for later."""


class Interrupted(RunError):
    """Ctrl-C: the state is saved and `--resume` goes on."""


class NonFiniteLoss(ArithmeticError):
    """The training loss became NaN or infinite; the message names the epoch."""
