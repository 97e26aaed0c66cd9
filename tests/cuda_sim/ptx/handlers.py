"""Which function executes an opcode: it takes the machine, the instruction, and the active threads (None: all)."""

HANDLERS = {}


def instruction(*opcodes: str):
    """Register a function for opcodes."""

    def register(function):
        HANDLERS.update(dict.fromkeys(opcodes, function))
        return function

    return register
