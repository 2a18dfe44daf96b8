"""The error that everything in the library raises for input that cannot be used."""


class LKGError(ValueError):
    """Input that cannot be used as it is. The message names what was found, what is needed and the remedy."""


LKGDataError = LKGError  # its name before it was raised for more than data
