"""The error that everything in the library raises for input that cannot be used."""

LONGEST_MESSAGE = 1500  # characters: what was found may be a text of any length


class LKGError(ValueError):
    """Input that cannot be used as it is. The message names what was found, what is needed and the remedy."""

    def __init__(self, message: str):
        if len(message) > LONGEST_MESSAGE:  # what is needed and the remedy stand at its ends
            message = f"{message[: LONGEST_MESSAGE // 2]} ... {message[-LONGEST_MESSAGE // 2 :]}"
        super().__init__(message)


LKGDataError = LKGError  # its name before it was raised for more than data
