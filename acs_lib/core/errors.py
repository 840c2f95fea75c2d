"""Errors that are no defects: what a user can mend, and too little memory."""


class UserError(RuntimeError):
    """What went wrong and how to mend it, in words for the user; `code` is the exit code of a command."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


def lacks_memory(error: Exception) -> bool:
    """Whether there was too little memory: for the CPU's torch has no class of its own."""
    words = "out of memory", "allocate memory"
    return isinstance(error, MemoryError) or any(each in str(error).lower() for each in words)
