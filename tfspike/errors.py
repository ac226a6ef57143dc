"""The one kind of error a user can cause: it ends a command with one sentence and exit code 2."""


class UserError(ValueError):
    """A flag, file, data set or checkpoint is unusable; the message says what is legal, what came, what to do."""
