"""The exceptions for what a user can put right."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a setting, a point.

    The message is one line that names what was found, where, what was expected and what to do about it. The command
    line prints it as it stands and exits with status 2; anything else that is raised is a defect of ours and keeps
    its traceback.
    """


class WeightsNotFoundError(InputError):
    """Trained weights that a method needs are not there.

    Attributes:
        reference: the file, or ``hf://owner/repo/file``.
    """

    def __init__(self, reference: str, message: str) -> None:
        super().__init__(message)
        self.reference = reference
