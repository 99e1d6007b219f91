"""Errors that a user can mend: the entry points print them as one sentence and exit with status 2."""

import errno

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG}
"""What the system says when a place cannot be written."""
AWAY = {errno.EIO, errno.ESTALE, errno.ENOLCK}
"""What it says when a disk fails, or the server that lends one is away or locks nothing."""
SILENT = {errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN}
"""What it says of a file whose server does not answer; where no file is named a socket may have said it."""
OF_THE_FILE = {None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP}
"""What is said when the fault lies in the file that is read; parsers give no number."""


def _away(error: OSError) -> bool:
    return error.errno in AWAY or (error.errno in SILENT and error.filename is not None)


def unwritable(error: BaseException) -> bool:
    """Whether the system has refused a place: it is full, not ours to use, or its disk or server fails. Trying again mends nothing."""
    return isinstance(error, OSError) and (error.errno in UNWRITABLE or _away(error))


def refusal(error: OSError, place: object = None) -> str:
    """The sentence for an `unwritable` error; `place`: where it was, unless the error names a file."""
    where, said = error.filename or place or "a file", error.strerror or error
    if _away(error):
        return f"{where} cannot be used ({said}): check its disk, or the server that it lies on"
    what = "used" if error.errno in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG) else "written"  # reading is refused so too
    return f"{where} cannot be {what} ({said}): make room or get permission"


def raise_unless_of_the_file(error: BaseException, path: object) -> None:
    """Raise the OSError with which the system kept a file from us: what stands in it may be whole, so nothing may take its place."""
    if isinstance(error, OSError) and error.errno not in OF_THE_FILE:
        error.filename = error.filename or str(path)
        raise error


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
