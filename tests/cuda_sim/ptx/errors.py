"""What the interpreter refuses."""


class PtxError(Exception):
    """The program did what a device forbids; the message names the instruction and a thread."""


class Unsupported(Exception):
    """The interpreter does not know an instruction or a form of it."""
