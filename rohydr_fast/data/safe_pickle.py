"""Read pickles of numpy arrays without running anything that they ask for.

A pickle is a program. `pickle.load` runs it, and filtering the names that it may call is not enough: the calls that
remain still go to code (numpy's ``__setstate__``) that was not written for hostile arguments. So no unpickler and no
numpy constructor sees this file. The interpreter below knows only the opcodes that arrays, lists, tuples, dicts with
text keys, text and 64-bit numbers need; arrays are rebuilt from their parts (dtype word, byte order, shape, raw bytes)
after the sizes have been checked, as views of the file. Everything else is refused by name.

Bounds: opcodes, nesting and the size of what is built are limited, and no step costs more than a constant plus the
bytes of the file that it consumes, so a small file cannot ask for much time or memory.
"""

import codecs
import os
import pickletools
import re
import struct
from typing import Any

from ..errors import DataError
from .mapping import FileData, damaged_as_text, diagnose, looks_like_text, open_file
from .pickle_parts import GLOBALS, Array, Assembler, Damaged, Dtype, Finish, Name, Refused, refuse_content, short

MAX_OPCODES = 2_000_000
"""A published file has a few hundred; one with a numpy scalar for every label of 23,000 clips about a million."""
# What these count for among the opcodes, by the time that they take.
_ARRAY_COST, _CONTAINER_COST, _LINE_COST, _SCALAR_COST = 8, 8, 2, 2
_MAX_LINE = 256
_VIEW_FROM = 512  # bytes from which a view of the file is smaller than a copy


def load(path: str | os.PathLike) -> Any:
    """Read a pickle of plain data.

    Returns:
        dict, list, tuple, str, bytes, int, float, bool, None, numpy arrays and numpy scalars, equal to what
        `pickle.load` would give. Arrays are read-only views of the file.

    Raises:
        DataError: the file is damaged, asks for anything else, or is not a pickle.
        FileAccessError: the file cannot be read.
    """
    return read(open_file(path))


def loads(data: bytes, name: str = "pickle") -> Any:
    """`load` for bytes in memory; `name` is what errors call them."""
    return read(FileData(name, bytes(data)))


def read(data: FileData) -> Any:
    """`load` for an open file."""
    hint = diagnose(data)
    if hint is not None:
        raise DataError(f"{data.path}: {hint}")
    try:
        return _Interpreter(data).run()
    except (IndexError, KeyError, ValueError, OverflowError, struct.error, Damaged) as error:
        # A failed look-up or conversion is what a damaged file looks like from inside.
        reason = str(error if isinstance(error, Damaged) else Damaged())
        if looks_like_text(data):
            reason = "this is a text file, not the data. Download or write it again."
    except Refused as error:
        reason = str(error)
    except MemoryError:
        reason = "there is not enough memory for it. Convert it to .safetensors on a larger machine."
    if damaged_as_text(data):
        reason = "the file was damaged by a transfer as text. Copy it again in binary mode."
    raise DataError(f"{data.path}: {reason}") from None


_TRUNCATED = "the pickle ends too early: it is truncated. Download or copy the file again."


class _Interpreter:
    """A pickle machine with the allowed opcodes. The stack holds plain values and the three stand-ins above."""

    def __init__(self, data: FileData):
        self.data, self.view, self.size = data, data.view, data.size
        self.position = 0
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict[int, Any] = {}
        self.opcodes = 0
        self.encodable = data.size  # bytes that _codecs.encode may still make: the file holds each of them once
        self.arrays = Assembler(data.size)

    def run(self) -> Any:
        while True:
            if self.position >= self.size:
                raise Damaged(_TRUNCATED)
            code = self.view[self.position]
            self.position += 1
            self.opcodes += 1
            if self.opcodes > MAX_OPCODES:
                raise refuse_content(f"more than {MAX_OPCODES:,} pickle instructions")
            if code == _STOP:
                break
            step = _STEPS[code]
            if step is None:
                raise self._unknown(code)
            step(self)
        if self.position != self.size:
            extra = self.size - self.position
            raise Refused(f"the pickle must end the file, got {extra:,} bytes after it. Save one dict with one dump.")
        if len(self.stack) != 1 or self.marks:
            raise Damaged
        return Finish().convert(self.stack[0])[0]

    def _unknown(self, code: int) -> Refused:
        opcode = pickletools.code2op.get(chr(code))
        if opcode is None:
            return Damaged() if self.position > 1 else Damaged("this is not a pickle. Check what wrote the file.")
        if opcode.name in ("STRING", "BINSTRING", "SHORT_BINSTRING"):
            return Refused("the pickle must be written by Python 3, got one of Python 2. Save it again with Python 3.")
        what = {
            "NEXT_BUFFER": "data outside the file (out-of-band buffers)",
            "READONLY_BUFFER": "data outside the file (out-of-band buffers)",
            "PERSID": "a persistent id",
            "BINPERSID": "a persistent id",
            "LONG4": "an integer of more than 64 bits",
        }.get(opcode.name, f"the instruction {opcode.name}")
        return refuse_content(what)

    # Reading the file

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > self.size:
            raise Damaged(_TRUNCATED)
        piece = self.view[self.position : end]
        self.position = end
        return piece

    def number(self, layout: struct.Struct) -> int:
        return layout.unpack(self.take(layout.size))[0]

    def line(self, limit: int | None = _MAX_LINE) -> bytes:
        self.opcodes += _LINE_COST
        stop = self.size if limit is None else min(self.size, self.position + limit)
        end = self.data.raw.find(b"\n", self.position, stop)
        if end < 0:
            raise Damaged(_TRUNCATED) if stop == self.size else Damaged
        text = bytes(self.view[self.position : end])
        self.position = end + 1
        return text

    def pop_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    # Values

    def container(self, empty: Any) -> Any:
        self.opcodes += _CONTAINER_COST
        return empty

    def int_line(self) -> None:
        text = self.line()
        if text in (b"00", b"01"):  # protocol 0 and 1 write bools so
            self.stack.append(text == b"01")
        else:
            self.stack.append(_integer(text))

    def long_line(self) -> None:
        self.stack.append(_integer(self.line().removesuffix(b"L")))

    def long1(self) -> None:
        count = self.take(1)[0]
        if count > 9:
            raise refuse_content("an integer of more than 64 bits")
        self.stack.append(int.from_bytes(self.take(count), "little", signed=True))

    def raw_bytes(self, layout: struct.Struct) -> None:
        piece = self.take(self.number(layout))
        self.stack.append(bytes(piece) if len(piece) < _VIEW_FROM else piece)

    def float_line(self) -> None:
        self.stack.append(float(self.line()))

    def text(self, layout: struct.Struct) -> None:
        self.stack.append(str(self.take(self.number(layout)), "utf-8", "surrogatepass"))

    def text_line(self) -> None:
        self.stack.append(codecs.decode(self.line(None), "raw-unicode-escape"))

    def put(self, index: int) -> None:
        if not 0 <= index <= self.opcodes:  # picklers number their memo 0, 1, 2, ...
            raise refuse_content("a memo index beyond the number of instructions")
        self.memo[index] = self.stack[-1]

    def append(self) -> None:
        item = self.stack.pop()
        self._top(list).append(item)

    def appends(self) -> None:
        items = self.pop_mark()
        self._top(list).extend(items)

    def set_items(self, pairs: list) -> None:
        target = self._top(dict)
        if len(pairs) % 2 or any(type(key) is not str for key in pairs[::2]):
            raise refuse_content("a dict whose keys are not text")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def dict_from_mark(self) -> None:
        pairs = self.pop_mark()
        self.stack.append(self.container({}))
        self.set_items(pairs)

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise Damaged
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def protocol(self) -> None:
        if self.take(1)[0] > 5:
            raise Refused("the pickle's protocol must be at most 5, got a newer one. Save it with protocol=4.")

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise Damaged
        return self.stack[-1]

    # Names and calls

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise Damaged
        word = GLOBALS.get((module, name))
        if word is None:
            raise refuse_content(f"a call of {short(f'{module}.{name}')}")
        self.stack.append(Name(word))

    def name_lines(self) -> None:
        module, name = self.line(), self.line()
        self.name(module.decode("utf-8"), name.decode("utf-8"))

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def call(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Name or type(args) is not tuple:
            raise refuse_content("a call of something that is not a name")
        if function.word == "ndarray":
            raise refuse_content("a call of numpy.ndarray")
        self.stack.append(getattr(self, f"_call_{function.word}")(args))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Dtype:
            target.build(state)
        elif type(target) is Array and target.value is None:
            if type(state) is not tuple or len(state) != 5 or type(state[0]) is not int or state[0] != 1:
                raise refuse_content("an array with an unknown state")
            _, shape, dtype, fortran, raw = state
            if type(fortran) not in (bool, int):
                raise Damaged
            target.value = self._array(shape, dtype, "F" if fortran else "C", raw)
        else:
            raise refuse_content("a state for something that is not a new array or dtype")

    def _call_dtype(self, args: tuple) -> Dtype:
        return Dtype(args)

    def _call_reconstruct(self, args: tuple) -> Array:
        if len(args) != 3 or type(args[0]) is not Name or args[0].word != "ndarray":
            raise refuse_content("an array of an unknown class")
        return Array()

    def _call_frombuffer(self, args: tuple) -> Array:
        if not 4 <= len(args) <= 5:
            raise Damaged
        raw, dtype, shape, order = args[:4]
        axes = args[4] if len(args) == 5 else None
        if type(order) is not str or order not in ("C", "F", "K") or type(raw) is list:
            raise Damaged
        value = self._array(shape, dtype, "C" if order == "K" else order, raw)
        if order == "K" and axes is not None:
            if type(axes) is not tuple or any(type(axis) is not int for axis in axes):
                raise Damaged
            if sorted(axes) != list(range(value.ndim)):
                raise Damaged
            value = value.transpose(axes)
        return Array(value)

    def _call_scalar(self, args: tuple) -> Any:
        if len(args) != 2:
            raise Damaged
        self.opcodes += _SCALAR_COST
        return self.arrays.scalar(*args)

    def _array(self, shape: Any, dtype: Any, order: str, raw: Any) -> Any:
        self.opcodes += _ARRAY_COST
        return self.arrays.array(shape, dtype, order, raw)

    def _call_encode(self, args: tuple) -> bytes:
        if len(args) != 2 or type(args[0]) is not str or type(args[1]) is not str or args[1] != "latin1":
            raise refuse_content("a call of _codecs.encode that is not the encoding of bytes")
        self.encodable -= len(args[0])
        if self.encodable < 0:
            raise refuse_content("more bytes than the file holds")
        return args[0].encode("latin-1")

    def _call_bytes(self, args: tuple) -> bytes:
        if args:
            raise refuse_content("a call of bytes with arguments")
        return b""

    def _call_ordered_dict(self, args: tuple) -> dict:
        if args:
            raise refuse_content("a call of OrderedDict with arguments")
        return {}


def _integer(text: bytes) -> int:
    if not re.fullmatch(rb"[+-]?[0-9]+", text):
        raise Damaged
    if len(text) > 20:
        raise refuse_content("an integer of more than 64 bits")
    return int(text)


_STOP = ord(".")
_U1, _U2, _U4, _U8 = (struct.Struct("<" + letter) for letter in "BHIQ")
_I4, _F8 = struct.Struct("<i"), struct.Struct(">d")


def _push(make: Any) -> Any:
    def step(machine: _Interpreter) -> None:
        value = make(machine)  # first: it may change which list `machine.stack` is
        machine.stack.append(value)

    return step


def _mark(machine: _Interpreter) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


_BY_NAME = {
    "PROTO": _Interpreter.protocol,
    "FRAME": lambda machine: machine.number(_U8),
    "MARK": _mark,
    "NONE": _push(lambda machine: None),
    "NEWTRUE": _push(lambda machine: True),
    "NEWFALSE": _push(lambda machine: False),
    "INT": _Interpreter.int_line,
    "BININT": _push(lambda machine: machine.number(_I4)),
    "BININT1": _push(lambda machine: machine.number(_U1)),
    "BININT2": _push(lambda machine: machine.number(_U2)),
    "LONG": _Interpreter.long_line,
    "LONG1": _Interpreter.long1,
    "FLOAT": _Interpreter.float_line,
    "BINFLOAT": _push(lambda machine: machine.number(_F8)),
    "UNICODE": _Interpreter.text_line,
    "SHORT_BINUNICODE": lambda machine: machine.text(_U1),
    "BINUNICODE": lambda machine: machine.text(_U4),
    "BINUNICODE8": lambda machine: machine.text(_U8),
    "SHORT_BINBYTES": lambda machine: machine.raw_bytes(_U1),
    "BINBYTES": lambda machine: machine.raw_bytes(_U4),
    "BINBYTES8": lambda machine: machine.raw_bytes(_U8),
    "BYTEARRAY8": lambda machine: machine.raw_bytes(_U8),
    "EMPTY_LIST": _push(lambda machine: machine.container([])),
    "EMPTY_TUPLE": _push(lambda machine: ()),
    "EMPTY_DICT": _push(lambda machine: machine.container({})),
    "LIST": _push(lambda machine: machine.container(machine.pop_mark())),
    "TUPLE": _push(lambda machine: tuple(machine.pop_mark())),
    "TUPLE1": lambda machine: machine.tuple_of(1),
    "TUPLE2": lambda machine: machine.tuple_of(2),
    "TUPLE3": lambda machine: machine.tuple_of(3),
    "APPEND": _Interpreter.append,
    "APPENDS": _Interpreter.appends,
    "DICT": _Interpreter.dict_from_mark,
    "SETITEM": _Interpreter.set_item,
    "SETITEMS": lambda machine: machine.set_items(machine.pop_mark()),
    "GLOBAL": _Interpreter.name_lines,
    "STACK_GLOBAL": _Interpreter.stack_name,
    "REDUCE": _Interpreter.call,
    "BUILD": _Interpreter.build,
    "PUT": lambda machine: machine.put(_integer(machine.line())),
    "BINPUT": lambda machine: machine.put(machine.number(_U1)),
    "LONG_BINPUT": lambda machine: machine.put(machine.number(_U4)),
    "MEMOIZE": lambda machine: machine.put(len(machine.memo)),
    "GET": _push(lambda machine: machine.memo[_integer(machine.line())]),
    "BINGET": _push(lambda machine: machine.memo[machine.number(_U1)]),
    "LONG_BINGET": _push(lambda machine: machine.memo[machine.number(_U4)]),
}
_CODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
_STEPS: list[Any] = [None] * 256
for _name, _step in _BY_NAME.items():
    _STEPS[_CODES[_name]] = _step
