"""The state of a batch of blocks, and the order in which their threads run.

All threads of a batch go in lock-step, those at the lowest instruction first, so that branches meet again. Threads at a
barrier wait until all others of their block that have not exited are there.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np

from . import types
from .errors import PtxError, Unsupported
from .memory import LOCAL_BASE, SHARED_BASE, BlockMemory, Device
from .parser import Immediate, Instruction, Kernel, Negated, Pair, Register, Symbol
from .traffic import Traffic

WARP = 32
_FAR = np.iinfo(np.int64).max


class Machine:
    """Runs `blocks` of a grid to their end.

    Args:
        kernel: what to run.
        device: global memory.
        grid, block: three numbers each.
        blocks: numbers of the blocks in the grid.
        parameters: the kernel's parameters as bytes.
        dynamic_shared: bytes of dynamic shared memory for each block.
        symbols: addresses of the module's variables in global and constant memory.
    """

    def __init__(self, kernel: Kernel, device: Device, grid, block, blocks, parameters, dynamic_shared, symbols):
        self.kernel, self.device, self.parameters = kernel, device, parameters
        size = block[0] * block[1] * block[2]
        padded = -(-size // WARP) * WARP
        count = len(blocks) * padded
        thread = np.tile(np.arange(padded), len(blocks))
        self.block = np.repeat(np.arange(len(blocks)), padded)  # of each thread, in the batch
        self.lane = thread % WARP
        self.warp = np.arange(count) // WARP
        self.first_lane = self.warp * WARP
        self.count = count
        self.live = thread < size
        self.pc = np.zeros(count, np.int64)
        self.waits = np.zeros(count, bool)
        # The threads that run, at the instruction `number`, until they come to `limit`; pc is that of all others.
        self.group: np.ndarray | None = None
        self.number = self.limit = self.group_warps = 0
        self.group_is_all = False
        self.epoch = np.ones(len(blocks), np.int32)  # barriers that a block has passed
        self.traffic = Traffic()
        self.executed = Counter()  # warps that executed an instruction, by its number
        self.registers: dict[str, np.ndarray] = {}
        self.symbols = dict(symbols)
        self.special = self._special_registers(thread, np.asarray(blocks)[self.block], grid, block)
        self.shared = BlockMemory(len(blocks), self._lay_out_shared(dynamic_shared))
        self.local = self._lay_out_local()
        self.copy_group = np.zeros(count, np.int64)  # of cp.async, the one that a thread has open
        self.copies: list = []  # under way
        self.votes: dict[int, Callable] = {}  # what a barrier with a result does, by the instruction after it

    def _special_registers(self, thread, number, grid, block) -> dict[str, np.ndarray]:
        values = {
            "tid.x": thread % block[0],
            "tid.y": thread // block[0] % block[1],
            "tid.z": thread // (block[0] * block[1]),
            "ctaid.x": number % grid[0],
            "ctaid.y": number // grid[0] % grid[1],
            "ctaid.z": number // (grid[0] * grid[1]),
            "laneid": self.lane,
            "warpid": thread // WARP,
            "lanemask_lt": (1 << self.lane) - 1,
            "lanemask_le": (2 << self.lane) - 1,
            "lanemask_eq": 1 << self.lane,
            "lanemask_ge": 0x1_0000_0000 - (1 << self.lane),
            "lanemask_gt": 0x1_0000_0000 - (2 << self.lane),
        }
        for axis, name in enumerate("xyz"):
            values[f"ntid.{name}"] = np.full(self.count, block[axis])
            values[f"nctaid.{name}"] = np.full(self.count, grid[axis])
        return {f"%{name}": np.asarray(value).astype(np.uint32) for name, value in values.items()}

    def _lay_out_shared(self, dynamic: int) -> int:
        """Addresses of shared variables: static ones first, then the dynamic memory, on which all others lie."""
        used = " ".join(instruction.text for instruction in self.kernel.instructions)
        variables = [v for v in self.kernel.variables.values() if v.space == "shared" and v.name in used]
        size = 0
        for variable in variables:
            if variable.size:
                size = -(-size // variable.align) * variable.align
                self.symbols[variable.name] = size
                size += variable.size
        unsized = [variable for variable in variables if not variable.size]
        if unsized:
            alignment = max(variable.align for variable in unsized)
            size = -(-size // alignment) * alignment
            self.symbols.update({variable.name: size for variable in unsized})
        return size + dynamic

    def _lay_out_local(self) -> np.ndarray:
        """(threads, bytes) of local memory."""
        size = 0
        for variable in self.kernel.variables.values():
            if variable.space == "local":
                size = -(-size // variable.align) * variable.align
                self.symbols[variable.name] = size
                size += variable.size
        return np.full((self.count, -(-size // 16) * 16), 0xFF, np.uint8)

    # Operands.

    def bits(self, operand, width: int) -> np.ndarray:
        """An operand as unsigned integers of a width, or as bool with width 0: (threads) or a scalar."""
        if isinstance(operand, Register):
            value = self.special.get(operand.name)
            if value is None:
                value = self.registers.get(operand.name)
            if value is None:
                value = self._unwritten(operand.name)
            if width and value.dtype.itemsize != width:
                value = value.astype(types.UNSIGNED[width])
            return value
        if isinstance(operand, Immediate):
            if width == 0:
                return np.bool_(operand.value != 0)
            return types.UNSIGNED[width].type(operand.value & (1 << 8 * width) - 1)
        if isinstance(operand, Negated):
            return ~self.bits(operand.register, 0)
        if isinstance(operand, Symbol):
            if operand.name not in self.symbols:
                raise Unsupported(f"the symbol {operand.name}")
            return types.UNSIGNED[width or 8].type(self.symbols[operand.name])
        raise Unsupported(f"the operand {operand}")

    def value(self, operand, type_name: str) -> np.ndarray:
        """An operand in its type; bfloat16 as float32."""
        if isinstance(operand, Immediate) and operand.width is not None and types.is_float(type_name):
            exact = np.array(operand.value, types.UNSIGNED[operand.width]).view(f"f{operand.width}")
            if type_name != "bf16" and operand.width != types.width_of(type_name):
                return exact.astype(types.DTYPES[type_name])[()]
        bits = self.bits(operand, types.width_of(type_name))
        if type_name == "pred":
            return bits
        return types.from_bf16(bits) if type_name == "bf16" else bits.view(types.DTYPES[type_name])

    def write(self, operand, values, type_name: str, active: np.ndarray | None) -> None:
        """Put values of a type into a register, for the active threads; None: all. Widened by the type's sign."""
        if isinstance(operand, Pair):
            raise Unsupported(f"two results: {operand}")
        if operand.name == "_":
            return
        width = types.width_of(self.kernel.registers[operand.name])
        values = np.asarray(values)
        if width == 0:
            values = values.astype(np.bool_)
        else:
            if type_name == "bf16" and values.dtype != np.uint16:
                values = types.to_bf16(values)
            elif types.is_float(type_name) and values.dtype != types.DTYPES[type_name]:
                values = values.astype(types.DTYPES[type_name])
            if values.dtype.kind in "iu" and values.dtype.itemsize != width:
                values = values.astype((types.SIGNED if values.dtype.kind == "i" else types.UNSIGNED)[width])
            values = np.ascontiguousarray(values).view(types.UNSIGNED[width]).reshape(values.shape)
        if active is not None:
            old = self.registers.get(operand.name)
            values = np.where(active, values, self._unwritten(operand.name) if old is None else old)
        elif values.shape != (self.count,):
            values = np.broadcast_to(values, (self.count,))
        self.registers[operand.name] = values

    def _unwritten(self, name: str) -> np.ndarray:
        if name not in self.kernel.registers:
            raise Unsupported(f"the register {name}")
        width = types.width_of(self.kernel.registers[name])
        return np.zeros(self.count, types.UNSIGNED[width] if width else np.bool_)

    def epochs(self) -> np.ndarray:
        return self.epoch[self.block]

    def generic_space(self, addresses: np.ndarray, text: str) -> str:
        """The space of generic addresses."""
        spaces = {"shared": (addresses >> np.uint64(40)) == SHARED_BASE >> 40}
        spaces["local"] = (addresses >> np.uint64(40)) == LOCAL_BASE >> 40
        for name, inside in spaces.items():
            if inside.all():
                return name
            if inside.any():
                raise Unsupported(f"{text}: generic addresses of several spaces in one warp")
        return "global"

    # Control.

    def run(self, handlers: dict, max_steps: int) -> None:
        """Run all threads to their end.

        Raises:
            PtxError: what the program did wrong.
            Unsupported: an instruction without a handler.
        """
        with np.errstate(all="ignore"):
            for _ in range(max_steps):
                if not self.live.any():
                    return
                self._step(handlers)
        raise PtxError(f"{self.kernel.name}: not at its end after {max_steps} instructions")

    def _step(self, handlers: dict) -> None:
        if self.group is None or self.number >= self.limit:
            self._regroup()
        instruction = self.kernel.instructions[self.number]
        self.executed[self.number] += self.group_warps
        self.number += 1
        active = self.group
        everybody = self.group_is_all
        if instruction.guard is not None:
            active = active & (self.bits(instruction.guard, 0) ^ instruction.guard_negated)
            if not active.any():
                return
            everybody = everybody and bool(active.all())
        try:
            handler = handlers[instruction.opcode]
        except KeyError:
            raise Unsupported(f"the instruction {instruction.text}") from None
        handler(self, instruction, None if everybody else active)

    def _regroup(self) -> None:
        """Choose the threads at the lowest instruction; they go on until they come to where others are."""
        self.settle()
        runnable = self.live & ~self.waits
        if not runnable.any():
            raise PtxError(f"deadlock: {self._where_threads_wait()}")
        self.number = int(np.where(runnable, self.pc, _FAR).min())
        if self.number >= len(self.kernel.instructions):
            raise PtxError(f"{self.kernel.name}: a thread ran past the last instruction")
        self.group = runnable & (self.pc == self.number)
        others = runnable & ~self.group
        self.limit = min(int(np.where(others, self.pc, _FAR).min()), len(self.kernel.instructions))
        self.group_warps = int(self.group.reshape(-1, WARP).any(axis=1).sum())
        self.group_is_all = bool(self.group.all())

    def settle(self) -> None:
        """Write down where the running threads are, and let them be chosen again."""
        if self.group is not None:
            self.pc[self.group] = self.number
            self.group = None

    def branch(self, instruction: Instruction, active) -> None:
        target = self.kernel.labels[instruction.operands[0].name]
        if active is None or np.array_equal(active, self.group):
            self.number = target
        else:
            self.settle()
            self.pc[active] = target

    def leave(self, active) -> None:
        self.settle()
        self.live[slice(None) if active is None else active] = False
        self.release_barriers()

    def arrive(self, active, vote: Callable | None = None) -> None:
        """Threads wait at a barrier; vote(threads) is called when all are there."""
        self.settle()
        mine = slice(None) if active is None else active
        self.waits[mine] = True
        if vote is not None:
            self.votes[int(self.pc[mine][0])] = vote
        self.release_barriers()

    def release_barriers(self) -> None:
        for block in np.unique(self.block[self.waits]):
            mine = self.block == block
            if (self.waits | ~self.live)[mine].all():
                waiting = mine & self.waits
                places = np.unique(self.pc[waiting])
                if places.size > 1:
                    raise PtxError(f"divergent barrier: {self._where_threads_wait()}")
                vote = self.votes.get(int(places[0]))
                if vote is not None:
                    vote(waiting)
                self.waits[waiting] = False
                self.epoch[block] += 1

    def _where_threads_wait(self) -> str:
        places = []
        for number in np.unique(self.pc[self.waits & self.live]):
            first = int(np.flatnonzero(self.waits & self.live & (self.pc == number))[0])
            text = self.kernel.instructions[int(number) - 1].text
            places.append(f"thread {first} of the batch waits at instruction {int(number) - 1}, {text}")
        return "; ".join(places)
