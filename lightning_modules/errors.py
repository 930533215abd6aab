"""The error that tells a mistake of the user from a defect of the program; every room may raise it."""


class UserError(ValueError):
    """What a user gave (a setting, a corpus, a checkpoint, audio) cannot be used.

    Its message says what is wrong, where, and how to fix it; the command line prints it without a traceback. Anything
    else that is raised, but for a missing file, is a defect and keeps its traceback.
    """
