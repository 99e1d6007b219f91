"""Errors that a user can mend: the entry points print them as one sentence and exit with status 2."""


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


class Interrupted(RunError):
    """Ctrl-C: the state is saved and `--resume` goes on."""


class NonFiniteLoss(ArithmeticError):
    """The training loss became NaN or infinite; the message names the epoch."""
