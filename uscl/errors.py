"""The one exception for input that a user can put right."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a setting, a point.

    The message is one line that names what was found, where, what was expected and what to do about it. The command
    line prints it as it stands and exits with status 2; anything else that is raised is a defect of ours and keeps
    its traceback.
    """
