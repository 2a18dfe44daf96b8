"""The error that everything in the library raises for input that cannot be used."""


class LKGError(ValueError):
    """Input that cannot be used as it is. The message names what was found, what is needed and the remedy."""

    longest = 1500  # characters: what was found may be a text of any length

    def __init__(self, message: str):
        if len(message) > self.longest:  # what is needed and the remedy stand at its ends
            message = f"{message[: self.longest // 2]} ... {message[-self.longest // 2 :]}"
        super().__init__(message)


LKGDataError = LKGError  # its name before it was raised for more than data
