"""Hostile and broken pickles, assembled by hand: name -> bytes. Each must be refused without running anything.

Those that would run something create a file named `CANARY` in the working directory.
"""

import struct

CANARY = "canary"
_COMMAND = f"touch {CANARY}"
_EVAL = f"open({CANARY!r}, 'w').close()"

PROTO = b"\x80\x04"
STOP = b"."
RECONSTRUCT = b"cnumpy._core.multiarray\n_reconstruct\n"
SCALAR = b"cnumpy._core.multiarray\nscalar\n"
FROMBUFFER = b"cnumpy._core.numeric\n_frombuffer\n"


def text(value):
    """SHORT_BINUNICODE or BINUNICODE."""
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data if len(data) < 256 else b"X" + struct.pack("<I", len(data)) + data


def raw(data):
    """BINBYTES."""
    return b"B" + struct.pack("<I", len(data)) + data


def number(value):
    """LONG1 or INT."""
    return b"\x8a\x08" + struct.pack("<q", value)


def name(module, attribute):
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*parts):
    """MARK ... TUPLE."""
    return b"(" + b"".join(parts) + b"t"


def program(*parts):
    """A pickle of protocol 4."""
    return PROTO + b"".join(parts) + STOP


def call(function, *args):
    """REDUCE."""
    return function + tuple_of(*args) + b"R"


def dtype(word, state=None):
    """numpy.dtype(word, False, True) with a state."""
    made = call(name("numpy", "dtype"), text(word), b"\x89", b"\x88")
    return made + (simple_state() if state is None else state) + b"b"


def simple_state(order="<", *, version=3, rest=(b"N", b"N", b"N"), numbers=(-1, -1, 0)):
    """The state of a simple dtype."""
    return tuple_of(number(version), text(order), *rest, *map(number, numbers))


def array(shape, word, content, *, version=1, fortran=b"\x89", state=None):
    """An array built as numpy does: _reconstruct, then BUILD."""
    made = call(RECONSTRUCT, name("numpy", "ndarray"), tuple_of(number(0)), raw(b"b"))
    state = tuple_of(number(version), shape, dtype(word, state), fortran, content)
    return made + state + b"b"


def shape(*lengths):
    """A tuple of lengths."""
    return tuple_of(*map(number, lengths))


def frombuffer(content, word, lengths, order="C", *more):
    """An array built as protocol 5 does."""
    return call(FROMBUFFER, content, dtype(word), lengths, text(order), *more)


def _laughs(levels=40):
    """Lists that hold the list before ten times: 10**40 elements in 500 bytes."""
    data = b"]\x94"
    for level in range(levels):
        data += b"(" + (b"h" + bytes([level])) * 10 + b"l\x94"
    return data


_SYSTEM = text(_COMMAND)
_CALLS = {
    "reduce os.system by GLOBAL": program(name("posix", "system"), tuple_of(_SYSTEM), b"R"),
    "reduce os.system by STACK_GLOBAL": program(text("os"), text("system"), b"\x93", _SYSTEM, b"\x85R"),
    "reduce in protocol 0": f"cposix\nsystem\n(S'{_COMMAND}'\ntR.".encode(),
    "INST": f"(S'{_COMMAND}'\niposix\nsystem\n.".encode(),
    "INST with binary text": program(b"(", _SYSTEM, b"iposix\nsystem\n"),
    "OBJ": program(b"(", name("posix", "system"), _SYSTEM, b"o"),
    "NEWOBJ": program(name("subprocess", "Popen"), tuple_of(_SYSTEM), b"\x81"),
    "NEWOBJ_EX": program(name("subprocess", "Popen"), tuple_of(_SYSTEM), b"}\x92"),
    "builtins eval": program(call(name("builtins", "eval"), text(_EVAL))),
    "builtins exec": program(call(name("builtins", "exec"), text(_EVAL))),
    "python 2 eval": program(call(name("__builtin__", "eval"), text(_EVAL))),
    "builtins getattr": program(call(name("builtins", "getattr"), b"N", text("x"))),
    "importlib": program(call(name("importlib", "import_module"), text("os"))),
    "numpy.load": program(call(name("numpy", "load"), text("x"))),
    "numpy.memmap": program(call(name("numpy", "memmap"), text(CANARY), text("u1"), text("w+"), number(0), number(1))),
    "numpy runstring": program(call(name("numpy.testing._private.utils", "runstring"), text(_EVAL), b"}")),
    "numpy.ndarray called": program(call(name("numpy", "ndarray"), shape(1 << 40))),
    "numpy dtype attribute": program(text("numpy"), text("dtype.type"), b"\x93"),
    "dotted ndarray": program(text("numpy"), text("ndarray.tofile"), b"\x93", tuple_of(text(CANARY)), b"R"),
    "functools.partial": program(call(name("functools", "partial"), name("posix", "system"), _SYSTEM)),
    "operator.attrgetter": program(call(name("operator", "attrgetter"), text("x"))),
    "copyreg": program(call(name("copyreg", "_reconstructor"), name("builtins", "object"), b"N", b"N")),
    "pandas": program(name("pandas.core.frame", "DataFrame")),
    "torch": program(name("torch._utils", "_rebuild_tensor_v2")),
    "bytearray of a terabyte": program(call(name("builtins", "bytearray"), number(1 << 40))),
    "bytes of a terabyte": program(call(name("builtins", "bytes"), number(1 << 40))),
    "encode by zip codec": program(call(name("_codecs", "encode"), text("x"), text("zip"))),
    "encode of a number": program(call(name("_codecs", "encode"), number(3), text("latin1"))),
    "encode beyond latin-1": program(call(name("_codecs", "encode"), text("\u4e00"), text("latin1"))),
    "OrderedDict with arguments": program(call(name("collections", "OrderedDict"), b"]")),
    "call of a list": program(b"]", b")R"),
    "call with a list": program(name("numpy", "dtype"), b"]R"),
    "call of an array": program(array(shape(1), "f4", raw(b"abcd")), b")R"),
    "name from numbers": program(number(1), number(2), b"\x93"),
    "name not UTF-8": program(b"c\xff\n\xfe\n"),
    "name as the value": program(name("numpy", "dtype")),
    "name in a list": program(b"]", name("numpy", "dtype"), b"a"),
    "dtype as the value": program(dtype("f4")),
}
_STATES = {
    "BUILD on a dict": program(b"}", b"}", text("__setstate__"), name("numpy", "dtype"), b"sb"),
    "BUILD on a list": program(b"]", b"}b"),
    "BUILD on a name": program(name("numpy", "ndarray"), b"}", text("x"), number(1), b"sb"),
    "BUILD on text": program(text("x"), tuple_of(b"N", b"}"), b"b"),
    "BUILD with __dict__ on a dtype": program(dtype("f4", b"}" + text("__class__") + number(1) + b"s")),
    "BUILD with slots on an array": program(
        call(RECONSTRUCT, name("numpy", "ndarray"), tuple_of(number(0)), raw(b"b")),
        tuple_of(b"N", b"}" + text("value") + number(1) + b"s"),
        b"b",
    ),
    "array built twice": program(
        array(shape(1), "f4", raw(b"abcd")),
        tuple_of(number(1), shape(1), dtype("f4"), b"\x89", raw(b"abcd")),
        b"b",
    ),
    "array never built": program(call(RECONSTRUCT, name("numpy", "ndarray"), tuple_of(number(0)), raw(b"b"))),
    "dtype built twice": program(array(shape(1), "f4", raw(b"abcd"), state=simple_state() + b"b" + simple_state())),
    "dtype with names": program(
        array(shape(1), "f4", raw(b"abcd"), state=simple_state(rest=(b"N", tuple_of(text("x")), b"N")))
    ),
    "dtype with fields": program(array(shape(1), "f4", raw(b"abcd"), state=simple_state(rest=(b"N", b"N", b"}")))),
    "dtype with subtype": program(
        array(shape(1), "f4", raw(b"abcd"), state=simple_state(rest=(dtype("f4"), b"N", b"N")))
    ),
    "dtype with metadata": program(array(shape(1), "f4", raw(b"abcd"), state=simple_state(version=4))),
    "dtype state too short": program(array(shape(1), "f4", raw(b"abcd"), state=tuple_of(number(3)))),
    "dtype order unknown": program(array(shape(1), "f4", raw(b"abcd"), state=simple_state("!"))),
    "dtype numbers are lists": program(
        array(shape(1), "f4", raw(b"abcd"), state=tuple_of(number(3), text("<"), b"NNN", b"]", b"]", b"]"))
    ),
    "dtype void": program(dtype("V8")),
    "dtype datetime": program(dtype("M8")),
    "dtype comma": program(dtype("f4,f4")),
    "dtype of no width": program(array(shape(1 << 20), "U0", raw(b""))),
    "dtype of endless width": program(array(shape(1), "U999999999999", raw(b""))),
    "dtype of a list": program(call(name("numpy", "dtype"), b"]")),
    "array too few bytes": program(array(shape(2), "f4", raw(b"abcd"))),
    "array too many bytes": program(array(shape(1), "f4", raw(b"abcdefgh"))),
    "array of negative length": program(array(shape(-1), "f4", raw(b"abcd"))),
    "array of two negative lengths": program(array(shape(-1, -1), "f4", raw(b"abcd"))),
    "array of huge length": program(array(shape(1 << 40), "f4", raw(b"abcd"))),
    "array whose size overflows": program(array(shape(1 << 32, 1 << 32), "f4", raw(b""))),
    "array of zero times huge": program(array(shape(0, 1 << 62), "f4", raw(b""))),
    "array of 100 dimensions": program(array(shape(*[1] * 100), "f4", raw(b"abcd"))),
    "array shape of floats": program(array(tuple_of(b"G\x3f\xf0" + b"\0" * 6), "f4", raw(b"abcd"))),
    "array shape of lists": program(array(tuple_of(b"]"), "f4", raw(b"abcd"))),
    "array shape of itself": program(array(b"]\x94h\x00at", "f4", raw(b"abcd"))),
    "array state of version 2": program(array(shape(1), "f4", raw(b"abcd"), version=2)),
    "array content of text": program(array(shape(1), "f4", text("abcd"))),
    "array order of text": program(array(shape(1), "f4", raw(b"abcd"), fortran=text("x"))),
    "array of another class": program(call(RECONSTRUCT, name("numpy", "dtype"), tuple_of(number(0)), raw(b"b"))),
    "objects as bytes": program(array(shape(1), "O8", raw(b"\x01\x02\x03\x04\x05\x06\x07\x08"))),
    "objects too few": program(array(shape(3), "O8", b"]")),
    "objects that are lists": program(array(shape(1), "O8", b"]]a")),
    "objects that are names": program(array(shape(1), "O8", b"]" + name("numpy", "dtype") + b"a")),
    "objects that are the array": program(
        call(RECONSTRUCT, name("numpy", "ndarray"), tuple_of(number(0)), raw(b"b")), b"\x94",
        tuple_of(number(1), shape(1), dtype("O8"), b"\x89", b"]h\x00a"), b"b",
    ),
    "objects that grow later": program(
        b"(", b"]\x94", array(shape(0), "O8", b"h\x00"), b"h\x00", number(1), b"a", b"l",
    ),
    "frombuffer of objects": program(frombuffer(raw(b"12345678"), "O8", shape(1))),
    "frombuffer of an object list": program(frombuffer(b"]Na", "O8", shape(1))),
    "frombuffer order": program(frombuffer(raw(b"abcd"), "f4", shape(1), "Q")),
    "frombuffer axes": program(frombuffer(raw(b"abcdefgh"), "f4", shape(1, 2), "K", shape(0, 0))),
    "frombuffer without arguments": program(call(FROMBUFFER)),
    "scalar of objects": program(call(SCALAR, dtype("O8"), raw(b"12345678"))),
    "scalar too short": program(call(SCALAR, dtype("f8"), raw(b"1234"))),
    "scalar of a name": program(call(SCALAR, name("numpy", "dtype"), raw(b"1234"))),
    "characters beyond Unicode": program(array(shape(1), "U1", raw(b"\xff\xff\xff\x7f"))),
    "truth value 7": program(array(shape(1), "b1", raw(b"\x07"))),
    "arrays that share bytes": program(
        raw(b"x" * 4096), b"\x94", b"(", *[array(shape(1024), "f4", b"h\x00") for _ in range(200)], b"l"
    ),
}  # fmt: skip
_BOMBS = {
    "memo index huge": program(b"N", b"r\xff\xff\xff\xff"),
    "memo index huge in text": program(b"N", b"p999999999999999999\n"),
    "memo index negative": program(b"N", b"p-1\n"),
    "memo index missing": program(b"h\x07"),
    "memo index missing in text": program(b"g7\n"),
    "memo of nothing": program(b"\x94"),
    "DUP": program(b"N", b"2" * 1000),
    "POP": program(b"NN0"),
    "POP_MARK": program(b"N(N1"),
    "lists nested 100,000 deep": program(b"]" * 100_000, b"a" * 99_999),
    "tuples nested 100,000 deep": program(b")", b"\x85" * 100_000),
    "marks nested 100,000 deep": program(b"(" * 100_000, b"l" * 100_000),
    "dicts nested 100,000 deep": program(b"}", (text("k") + b"}") * 50_000, b"s" * 50_000),
    "dtype word nested deep": program(call(name("numpy", "dtype"), b")" + b"\x85" * 100_000)),
    "list in itself": program(b"]\x94h\x00a"),
    "list in itself a thousand times": program(b"]\x94(", b"h\x00" * 1000, b"e"),
    "dict in itself": program(b"}\x94", text("k"), b"h\x00s"),
    "billion laughs": program(_laughs()),
    "billion laughs as dtype": program(call(name("numpy", "dtype"), _laughs())),
    "encode bomb": program(
        text("x" * 100_000), b"\x94(", call(name("_codecs", "encode"), b"h\x00", text("latin1")) * 50, b"l"
    ),
    "three million instructions": program(b"(", b"N" * 3_000_000, b"l"),
    "integer key": program(b"}", number(1), b"Ns"),
    "tuple key": program(b"}", b")Ns"),
    "array key": program(b"}", array(shape(1), "f4", raw(b"abcd")), b"Ns"),
    "odd number of dict parts": program(b"}(", text("k"), b"u"),
    "EXT1": program(b"\x82\x01"),
    "EXT2": program(b"\x83\x01\x00"),
    "EXT4": program(b"\x84\x01\x00\x00\x00"),
    "PERSID": program(b"Px\n"),
    "BINPERSID": program(text("x"), b"Q"),
    "NEXT_BUFFER": program(b"\x97"),
    "READONLY_BUFFER": program(b"N\x98"),
    "EMPTY_SET": program(b"\x8f"),
    "FROZENSET": program(b"(\x91"),
    "LONG1 huge": program(b"\x8a\xff" + b"\x7f" * 255),
    "LONG4 huge": program(b"\x8b\xff\xff\xff\x7f"),
    "LONG4 negative": program(b"\x8b\xff\xff\xff\xff"),
    "INT of 10,000 digits": b"I" + b"9" * 10_000 + b"\n.",
    "LONG of 200 digits": b"L" + b"9" * 200 + b"L\n.",
    "INT of letters": b"Iabc\n.",
    "FLOAT of letters": b"Fabc\n.",
    "BINBYTES8 huge": program(b"\x8e" + struct.pack("<Q", 1 << 63)),
    "BYTEARRAY8 huge": program(b"\x96" + struct.pack("<Q", 1 << 50)),
    "BINUNICODE8 huge": program(b"\x8d" + struct.pack("<Q", 1 << 50)),
    "text not UTF-8": program(b"\x8c\x02\xff\xff"),
    "frame longer than the file": PROTO + b"\x95",
    "python 2 string": b"S'x'\n.",
    "python 2 binary string": program(b"U\x01x"),
    "protocol 9": b"\x80\x09N.",
    "unknown instruction": program(b"\xff"),
    "stop at once": b".",
    "nothing but protocol": PROTO,
    "two values left": program(b"NN"),
    "open mark left": program(b"(N"),
    "bytes after STOP": program(b"N") + b"more",
    "two pickles": program(b"N") * 2,
    "append to nothing": program(b"a"),
    "append to text": program(text("x"), b"Na"),
    "items into a list": program(b"](", text("k"), b"Nu"),
    "tuple of nothing": program(b"\x87"),
}
HOSTILE = _CALLS | _STATES | _BOMBS
