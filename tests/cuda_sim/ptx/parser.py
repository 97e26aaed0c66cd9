"""The text of PTX -> kernels as lists of instructions with decoded operands."""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import PtxError, Unsupported
from .types import DTYPES, width_of


class Register(NamedTuple):
    name: str


class Negated(NamedTuple):
    """The opposite of a predicate."""

    register: Register


class Immediate(NamedTuple):
    """An integer, or the bits of a floating-point number of `width` bytes."""

    value: int
    width: int | None


class Symbol(NamedTuple):
    """The address of a variable."""

    name: str


class Address(NamedTuple):
    base: Register | Symbol | Immediate
    offset: int


class Vector(NamedTuple):
    elements: tuple


class Pair(NamedTuple):
    """A result with its predicate, or two predicates: d|p."""

    first: Register
    second: Register


class Parameter(NamedTuple):
    name: str
    type: str
    offset: int
    size: int


@dataclass(frozen=True)
class Variable:
    """A variable of the module. `size` is 0 for dynamic shared memory; `values` are those of its initialiser."""

    space: str
    name: str
    type: str
    align: int
    size: int
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Instruction:
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple
    guard: Register | None  # a predicate
    guard_negated: bool
    text: str

    @property
    def mnemonic(self) -> str:
        return ".".join((self.opcode, *self.modifiers))

    @property
    def type(self) -> str:
        """The last modifier that names a type."""
        for modifier in reversed(self.modifiers):
            if modifier in DTYPES:
                return modifier
        raise Unsupported(f"{self.text}: no type")

    def has(self, *modifiers: str) -> bool:
        return any(modifier in self.modifiers for modifier in modifiers)


@dataclass
class Kernel:
    name: str
    parameters: list[Parameter]
    parameter_bytes: int
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)


_VARIABLE = re.compile(
    r"\.(global|const|shared|local)\s+(?:\.attribute\([^)]*\)\s*)?(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\s*"
    r"(?:\[(\d*)\])?\s*(?:=\s*(\{[^}]*\}|[\w.+-]+))?\s*;"
)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{;]*)\{")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
    r"(?:\.ptr\s+(?:\.(?:global|shared|const|local)\s+)?(?:\.align\s+\d+\s+)?)?([\w$]+)\s*(?:\[(\d+)\])?"
)
_ADDRESS = re.compile(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\w+))?\s*\]")


def parse(text: str) -> dict[str, Kernel]:
    """All kernels of a PTX module, by name."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"^\s*\.(?:loc|file)\b[^\n]*$", "", text, flags=re.M)
    outside, kernels, end = [], {}, 0
    for entry in _ENTRY.finditer(text):
        outside.append(text[end : entry.start()])
        end = _closing_brace(text, entry.end())
        kernel = _kernel(entry[1], entry[2], text[entry.end() : end - 1])
        kernels[kernel.name] = kernel
    outside.append(text[end:])
    module_variables = _variables("\n".join(outside))
    for kernel in kernels.values():
        kernel.variables = {**module_variables, **kernel.variables}
    return kernels


def _closing_brace(text: str, position: int) -> int:
    depth = 1
    for match in re.finditer(r"[{}]", text[position:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return position + match.end()
    raise PtxError("the text ends inside of a kernel")


def _variables(text: str) -> dict[str, Variable]:
    found = {}
    for match in _VARIABLE.finditer(text):
        space, align, type_name, name, count, values = match.groups()
        elements = 1 if count is None else int(count or 0)
        width = width_of(type_name)
        initial = tuple(value.strip() for value in values.strip("{}").split(",")) if values else ()
        found[name] = Variable(space, name, type_name, int(align or width), elements * width, initial)
    return found


def _kernel(name: str, parameter_text: str, body: str) -> Kernel:
    parameters, offset = [], 0
    for align, type_name, parameter, count in _PARAMETER.findall(parameter_text):
        size = int(count or 1) * width_of(type_name)
        alignment = int(align or width_of(type_name))
        offset = -(-offset // alignment) * alignment
        parameters.append(Parameter(parameter, type_name, offset, size))
        offset += size
    kernel = Kernel(name, parameters, offset)
    kernel.variables = _variables(body)
    reader = _BodyReader(kernel)
    for statement in _statements(body):
        reader.read(statement)
    return kernel


def _statements(body: str) -> list[str]:
    """Statements without their semicolons, and the braces of scopes."""
    statements, current, in_vector = [], [], False
    for piece in re.split(r"([{};])", body):
        if piece == "{":
            text = "".join(current).strip()
            in_vector = text[-1:] not in ("", ":")
            if in_vector:
                current.append(piece)
            else:
                statements += [text, piece]
                current = []
        elif piece == "}":
            if in_vector:
                current.append(piece)
            else:
                statements.append(piece)
            in_vector = False
        elif piece == ";":
            statements.append(" ".join("".join(current).split()))
            current = []
        else:
            current.append(piece)
    statements.append(" ".join("".join(current).split()))  # a label at the end
    return [statement for statement in statements if statement]


def _split(text: str) -> list[str]:
    """Operands, between commas that are in no brackets."""
    return [part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text) if part.strip()]


class _BodyReader:
    """Fills a kernel with the statements of its body."""

    def __init__(self, kernel: Kernel):
        self._kernel = kernel
        self._scopes: list[dict[str, str]] = [{}]  # what a register is called in the kernel, where names repeat
        self._opened = 0

    def read(self, statement: str) -> None:
        if statement == "{":
            self._opened += 1
            self._scopes.append({})
        elif statement == "}":
            self._scopes.pop()
        elif declared := re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement):
            self._declare(declared[1], declared[2])
        else:
            while label := re.match(r"([\w$]+)\s*:\s*", statement):
                self._kernel.labels[label[1]] = len(self._kernel.instructions)
                statement = statement[label.end() :]
            if statement and not statement.startswith("."):  # variables are found elsewhere; pragmas
                self._kernel.instructions.append(self._instruction(statement))

    def _declare(self, type_name: str, names: str) -> None:
        suffix = f"@{self._opened}" if len(self._scopes) > 1 else ""
        for name in names.split(","):
            counted = re.match(r"(%?[\w$]+)<(\d+)>", name.strip())
            for single in [f"{counted[1]}{i}" for i in range(int(counted[2]))] if counted else [name.strip()]:
                self._scopes[-1][single] = single + suffix
                self._kernel.registers[single + suffix] = type_name

    def _instruction(self, text: str) -> Instruction:
        guard = re.match(r"@(!?)(%?[\w$]+)\s+", text)
        mnemonic, _, rest = text[guard.end() if guard else 0 :].partition(" ")
        opcode, *modifiers = mnemonic.replace("::", ":").split(".")
        operands = tuple(self._operand(part) for part in _split(rest))
        register = self._operand(guard[2]) if guard else None
        return Instruction(opcode, tuple(modifiers), operands, register, bool(guard and guard[1]), text)

    def _operand(self, text: str):
        if text.startswith("{"):
            return Vector(tuple(self._operand(part) for part in _split(text[1:-1])))
        if text.startswith("["):
            match = _ADDRESS.fullmatch(text)
            if match is None:
                raise Unsupported(f"the address {text}")
            return Address(self._operand(match[1]), int(match[2] or "0", 0))
        if "|" in text:
            return Pair(*(self._operand(part.strip()) for part in text.split("|")))
        if text.startswith("!"):
            return Negated(self._operand(text[1:]))
        for scope in reversed(self._scopes):
            if text in scope:
                return Register(scope[text])
        if text.startswith("%") or text == "_":
            return Register(text)
        return _constant(text)


def _constant(text: str) -> Immediate | Symbol:
    if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
        return Immediate(int(match[1], 16), 4)
    if match := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", text):
        return Immediate(int(match[1], 16), 8)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return Immediate(int(text.rstrip("U"), 0), None)
    return Symbol(text)
