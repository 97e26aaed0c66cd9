"""The interpreter of PTX, instruction by instruction, against arithmetic on Python's integers and libm."""

import ctypes
import ctypes.util

import numpy as np
import pytest

from . import building
from .ptx import types
from .ptx.errors import PtxError, Unsupported
from .ptx.module import Module, Struct
from .ptx.parser import parse

HEAD = ".version 9.0\n.target sm_80\n.address_size 64\n"
WIDTH = {"u16": 2, "u32": 4, "s32": 4, "b32": 4, "f32": 4, "u64": 8, "s64": 8, "b64": 8, "f64": 8, "bf16x2": 4}


def program(body: str, registers: str = "") -> str:
    """A kernel over (out, a, b, c); %rd0 to %rd3 are this thread's addresses, for 8 bytes each."""
    start = "\n".join(
        f"ld.param.u64 %rd{i}, [p{i}]; cvta.to.global.u64 %rd{i}, %rd{i}; add.u64 %rd{i}, %rd{i}, %rd9;"
        for i in range(4)
    )
    parameters = ", ".join(f".param .u64 p{i}" for i in range(4))
    return (
        f"{HEAD}.visible .entry probe({parameters})\n{{\n.reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<9>; "
        f".reg .f32 %f<9>; .reg .b64 %rd<10>; .reg .f64 %d<9>;\n{registers}\n"
        f"mov.u32 %r8, %tid.x; mul.wide.u32 %rd9, %r8, 8;\n{start}\n{body}\nret;\n}}\n"
    )


def run(body: str, a, b, c, *, block=None) -> np.ndarray:
    """(threads) uint64: what each thread stored."""
    out = np.zeros(len(a), np.uint64)
    inputs = [np.ascontiguousarray(x).view(np.uint64) for x in (a, b, c)]
    Module(program(body)).launch("probe", grid=1, block=block or len(a), arguments=[out, *inputs])
    return out


def integers(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    special = np.array([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 0xFFFF, 31], np.uint64)
    return [np.concatenate([rng.permutation(special), rng.integers(0, 2**64, 56, dtype=np.uint64)]) for _ in range(3)]


def signed(x: int, bits: int) -> int:
    x %= 1 << bits
    return x - (1 << bits) if x >> (bits - 1) else x


def quotient(x: int, y: int) -> int:
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


def bit_field(x: int, start: int, length: int, bits: int, negative: bool) -> int:
    start, length = start & 0xFF, length & 0xFF
    sign = x >> min(start + length - 1, bits - 1) & 1 if negative and length else 0
    inside = [i < length and start + i < bits for i in range(bits)]
    return sum((x >> (start + i) & 1 if inside[i] else sign) << i for i in range(bits))


def inserted(x: int, y: int, start: int, length: int) -> int:
    mask = ((1 << (length & 0xFF)) - 1) << (start & 0xFF)
    return y & ~mask | (x << (start & 0xFF)) & mask


def bytes_of(x: int, y: int, selector: int) -> int:
    pair = (y << 32 | x).to_bytes(8, "little")
    chosen = [(pair[selector >> 4 * i & 7], selector >> 4 * i & 8) for i in range(4)]
    return int.from_bytes(bytes((255 if byte & 128 else 0) if sign else byte for byte, sign in chosen), "little")


# The instruction on registers of its type, and its meaning for Python integers.
INTEGER = [
    ("add.u32", lambda x, y, z: x + y),
    ("sub.s64", lambda x, y, z: x - y),
    ("mul.lo.s32", lambda x, y, z: x * y),
    ("mul.hi.u32", lambda x, y, z: x * y >> 32),
    ("mul.hi.s32", lambda x, y, z: x * y >> 32),
    ("mul.hi.u64", lambda x, y, z: x * y >> 64),
    ("mul.hi.s64", lambda x, y, z: x * y >> 64),
    ("mad.lo.u32", lambda x, y, z: x * y + z),
    ("mad.hi.s32", lambda x, y, z: (x * y >> 32) + z),
    ("div.u32", lambda x, y, z: x // y if y else -1),
    ("div.s32", lambda x, y, z: quotient(x, y) if y else None),
    ("rem.u64", lambda x, y, z: x % y if y else None),
    ("rem.s32", lambda x, y, z: x - y * quotient(x, y) if y else None),
    ("min.s32", lambda x, y, z: min(x, y)),
    ("max.u64", lambda x, y, z: max(x, y)),
    ("and.b32", lambda x, y, z: x & y),
    ("xor.b64", lambda x, y, z: x ^ y),
    ("not.b32", lambda x, y, z: ~x),
    ("neg.s64", lambda x, y, z: -x),
    ("abs.s32", lambda x, y, z: abs(x)),
    ("shl.b32", lambda x, y, z: x << y if y < 32 else 0),
    ("shr.u32", lambda x, y, z: x >> y if y < 32 else 0),
    ("shr.s32", lambda x, y, z: x >> min(y % 2**32, 31)),
    ("shr.s64", lambda x, y, z: x >> min(y % 2**32, 63)),
    ("shf.l.wrap.b32", lambda x, y, z: (y << 32 | x) >> (32 - z % 32)),
    ("shf.r.clamp.b32", lambda x, y, z: (y << 32 | x) >> min(z, 32)),
    ("bfe.u32", lambda x, y, z: bit_field(x, y, z, 32, False)),
    ("bfe.s32", lambda x, y, z: bit_field(x, y, z, 32, True)),
    ("bfe.u64", lambda x, y, z: bit_field(x, y, z, 64, False)),
    ("prmt.b32", lambda x, y, z: bytes_of(x, y, z)),
    ("popc.b32", lambda x, y, z: x.bit_count()),
    ("popc.b64", lambda x, y, z: x.bit_count()),
    ("clz.b32", lambda x, y, z: 32 - x.bit_length()),
    ("clz.b64", lambda x, y, z: 64 - x.bit_length()),
    ("brev.b32", lambda x, y, z: int(f"{x:032b}"[::-1], 2)),
    ("bfind.u32", lambda x, y, z: x.bit_length() - 1),
    ("bfind.shiftamt.u32", lambda x, y, z: 32 - x.bit_length() if x else -1),
]
NARROW_RESULT = ("popc.b64", "clz.b64")
SHIFTS = ("shl", "shr", "shf", "bfe")
SOURCES = {"mad": 3, "bfe": 3, "shf": 3, "prmt": 3}
SOURCES |= dict.fromkeys(["not", "neg", "abs", "popc", "clz", "brev", "bfind"], 1)


@pytest.mark.parametrize(("mnemonic", "meaning"), INTEGER, ids=[mnemonic for mnemonic, _ in INTEGER])
def test_integer_instruction(mnemonic, meaning):
    a, b, c = integers(len(mnemonic))
    if mnemonic.startswith(SHIFTS):  # distances, mostly in range
        b, c = (np.where(np.arange(64) % 8 == 0, x, x % np.uint64(70)) for x in (b, c))
    opcode, kind = mnemonic.split(".")[0], mnemonic.split(".")[-1]
    bits = 8 * WIDTH[kind]
    prefix = {32: "%r", 64: "%rd"}[bits]
    count = SOURCES.get(opcode, 2)
    load = "".join(f"ld.global.b{bits} {prefix}{4 + i}, [%rd{i + 1}];\n" for i in range(3))
    names = [f"{prefix}{4 + i}" for i in range(count)]
    if bits == 64 and opcode in ("shr", "bfe"):
        load += "cvt.u32.u64 %r5, %rd5; cvt.u32.u64 %r6, %rd6;\n"
        names[1:] = ["%r5", "%r6"][: count - 1]
    out, out_bits = ("%r0", 32) if bits == 32 or mnemonic in NARROW_RESULT else ("%rd8", 64)
    found = run(f"{load}{mnemonic} {out}, {', '.join(names)};\nst.global.b{out_bits} [%rd0], {out};", a, b, c)
    for thread, values in enumerate(zip(a, b, c, strict=True)):
        x, y, z = (signed(int(v), bits) if kind[0] == "s" else int(v) % 2**bits for v in values)
        expected = meaning(x, y, z)
        if expected is not None:
            assert int(found[thread]) % 2**out_bits == expected % 2**out_bits, (x, y, z)


def test_insertion_of_bits():
    a, b, c = integers(3)
    start, length = (c % np.uint64(40)).astype(np.uint64), (c >> np.uint64(40)) % np.uint64(40)
    packed = start | length << np.uint64(8)
    body = """ld.global.b32 %r0, [%rd1]; ld.global.b32 %r1, [%rd2]; ld.global.b32 %r2, [%rd3];
        and.b32 %r3, %r2, 255; shr.u32 %r4, %r2, 8; bfi.b32 %r5, %r0, %r1, %r3, %r4; st.global.b32 [%rd0], %r5;"""
    found = run(body, a, b, packed)
    for i in range(64):
        expected = inserted(int(a[i]) % 2**32, int(b[i]) % 2**32, int(start[i]), int(length[i])) % 2**32
        assert int(found[i]) == expected


@pytest.mark.parametrize("table", [0x80, 0xFE, 0x96, 0xE8, 0x1B])
def test_logic_by_table(table):
    a, b, c = integers(table)
    load = "".join(f"ld.global.b32 %r{i}, [%rd{i + 1}];" for i in range(3))
    found = run(f"{load} lop3.b32 %r4, %r0, %r1, %r2, {table}; st.global.b32 [%rd0], %r4;", a, b, c)
    bits = [(x.astype(np.uint32)[:, None] >> np.arange(32, dtype=np.uint32)) & 1 for x in (a, b, c)]
    expected = ((table >> (4 * bits[0] + 2 * bits[1] + bits[2])) & 1) << np.arange(32, dtype=np.uint64)
    np.testing.assert_array_equal(found, expected.sum(1).astype(np.uint64))


def floats(seed: int, count: int = 512) -> np.ndarray:
    """Random bits, and numbers near each other: ties and cancellation."""
    rng = np.random.default_rng(seed)
    near = (1 + rng.integers(-3, 4, count // 2) * 2.0**-23) * 2.0 ** rng.integers(-3, 4, count // 2)
    wild = rng.integers(0, 2**32, count // 2, dtype=np.uint32).view(np.float32)
    return np.concatenate([near.astype(np.float32), wild])


def same_floats(found, expected) -> None:
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    unsigned = np.uint32 if found.dtype == np.float32 else np.uint64
    np.testing.assert_array_equal(found.view(unsigned)[~nan], expected.view(unsigned)[~nan])


def test_fused_multiply_add_rounds_once():
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    libm.fmaf.restype, libm.fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    libm.fma.restype, libm.fma.argtypes = ctypes.c_double, [ctypes.c_double] * 3
    a, b, c = (floats(seed) for seed in (1, 2, 3))
    with np.errstate(all="ignore"):
        c = np.where(np.arange(512) % 3 == 0, -(a * b), c).astype(np.float32)  # only what a b lost remains
        same_floats(types.fma(a, b, c), np.array([libm.fmaf(*x) for x in zip(a, b, c, strict=True)], np.float32))
        rng = np.random.default_rng(4)
        a, b, c = (rng.standard_normal(2000) * 2.0 ** rng.integers(-40, 40, 2000) for _ in range(3))
        c = np.where(np.arange(2000) % 3 == 0, -(a * b), c)
        same_floats(types.fma_double(a, b, c), np.array([libm.fma(*x) for x in zip(a, b, c, strict=True)]))


def test_bfloat16_is_rounded_once_from_either_width():
    single = floats(5)
    double = np.concatenate([single.astype(np.float64), 1 + 2.0**-8 + np.array([-1, 0, 1]) * 2.0**-50])
    with np.errstate(all="ignore"):
        for values in (single, double):
            found = types.from_bf16(types.to_bf16(values)).astype(np.float64)
            finite = np.isfinite(values) & (np.abs(values) < 3e38)
            exponent = np.maximum(np.frexp(values[finite].astype(np.float64))[1] - 8, -133)
            unit = np.ldexp(1.0, exponent)
            expected = np.rint(values[finite].astype(np.float64) / unit) * unit  # ties to even
            np.testing.assert_array_equal(found[finite], expected)
    assert types.to_bf16(np.array([np.nan, np.inf], np.float32)).tolist() == [0x7FFF, 0x7F80]


FLOAT = [
    ("add.f32", lambda x, y, z: x + y),
    ("sub.rn.f32", lambda x, y, z: x - y),
    ("mul.ftz.f32", lambda x, y, z: flushed(flushed(x) * flushed(y))),
    ("div.rn.f32", lambda x, y, z: x / y),
    ("min.f32", lambda x, y, z: np.fmin(x, y)),
    ("max.NaN.f32", lambda x, y, z: np.maximum(x, y)),
    ("add.sat.f32", lambda x, y, z: np.nan_to_num(np.clip(x + y, 0, 1), nan=0)),
    ("sqrt.rn.f32", lambda x, y, z: np.sqrt(x)),
    ("rcp.rn.f32", lambda x, y, z: np.float32(1) / x),
    ("copysign.f32", lambda x, y, z: np.copysign(y, x)),
    ("neg.f32", lambda x, y, z: -x),
    ("abs.f32", lambda x, y, z: np.abs(x)),
]


def flushed(x):
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


@pytest.mark.parametrize(("mnemonic", "meaning"), FLOAT, ids=[mnemonic for mnemonic, _ in FLOAT])
def test_float_instruction(mnemonic, meaning):
    a, b, c = (floats(seed) for seed in (6, 7, 8))
    wide = [np.ascontiguousarray(x).view(np.uint32).astype(np.uint64) for x in (a, b, c)]
    count = 1 if mnemonic.split(".")[0] in ("sqrt", "rcp", "neg", "abs") else 2
    load = "".join(f"ld.global.f32 %f{i}, [%rd{i + 1}];" for i in range(3))
    sources = ", ".join(f"%f{i}" for i in range(count))
    found = run(f"{load} {mnemonic} %f4, {sources}; st.global.f32 [%rd0], %f4;", *wide)
    with np.errstate(all="ignore"):
        same_floats(found.astype(np.uint32).view(np.float32), meaning(a, b, c).astype(np.float32))


COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]


@pytest.mark.parametrize("how", COMPARISONS)
def test_comparison_of_floats(how):
    values = np.array([0.0, -0.0, 1.0, -1.0, np.inf, np.nan], np.float32)
    a, b = (x.reshape(-1) for x in np.meshgrid(values, values))
    wide = [np.ascontiguousarray(x).view(np.uint32).astype(np.uint64) for x in (a, b, b)]
    body = f"""ld.global.f32 %f0, [%rd1]; ld.global.f32 %f1, [%rd2]; setp.{how}.f32 %p0|%p1, %f0, %f1;
        selp.u32 %r0, 1, 0, %p0; selp.u32 %r1, 2, 0, %p1; add.u32 %r0, %r0, %r1; st.global.b32 [%rd0], %r0;"""
    found = run(body, *wide, block=36)
    unordered = np.isnan(a) | np.isnan(b)
    plain = {"e": a == b, "n": a != b, "l": a < b, "g": a > b}[how[0]]
    if how[:2] in ("le", "ge"):
        plain = plain | (a == b)
    usual = plain | unordered if how[-1] == "u" else plain & ~unordered
    expected = {"num": ~unordered, "nan": unordered}.get(how, usual)
    np.testing.assert_array_equal(found, np.where(expected, 1, 2))


CONVERSIONS = [  # text, input as float32 or uint64, expected
    ("cvt.rni.s32.f32 %r0, %f0", [2.5, 3.5, -2.5, 3e9, -3e9, np.nan], [2, 4, -2, 2**31 - 1, -(2**31), 0]),
    ("cvt.rzi.u32.f32 %r0, %f0", [2.9, -1.0, 5e9, np.nan], [2, 0, 2**32 - 1, 0]),
    ("cvt.rmi.s32.f32 %r0, %f0", [-2.5, 2.5], [-3, 2]),
    ("cvt.rna.tf32.f32 %r0, %f0", [1 + 2.0**-11, -1 - 2.0**-11, 1 + 2.0**-12], [0x3F802000, 0xBF802000, 0x3F800000]),
    ("cvt.rn.bf16x2.f32 %r0, %f0, %f0", [1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8], [0x3F803F80, 0x3F803F80, 0x3F823F82]),
    ("cvt.rn.relu.bf16x2.f32 %r0, %f0, %f0", [-1.0, 2.0], [0, 0x40004000]),
    ("cvt.rn.f16.f32 %h0, %f0; cvt.u32.u16 %r0, %h0", [1.0, 65504.0, 1e6], [0x3C00, 0x7BFF, 0x7C00]),
    ("cvt.sat.f32.f32 %f1, %f0; mov.b32 %r0, %f1", [2.0, -1.0, 0.5], [0x3F800000, 0, 0x3F000000]),
]


@pytest.mark.parametrize(("text", "values", "expected"), CONVERSIONS, ids=[case[0].split()[0] for case in CONVERSIONS])
def test_conversion(text, values, expected):
    a = np.array(values, np.float32).view(np.uint32).astype(np.uint64)
    found = run(f"ld.global.f32 %f0, [%rd1]; {text}; st.global.b32 [%rd0], %r0;", a, a, a)
    assert [int(x) for x in found] == [x % 2**32 for x in expected]


def test_integers_are_widened_by_their_sign():
    a = np.array([0x80, 0x7F, 0xFFFF, 0x8000], np.uint64)
    body = """ld.global.s8 %r0, [%rd1]; ld.global.u16 %h0, [%rd1]; cvt.s64.s16 %rd4, %h0; cvt.u64.u16 %rd5, %h0;
        cvt.s64.s32 %rd6, %r0; xor.b64 %rd4, %rd4, %rd5; xor.b64 %rd4, %rd4, %rd6; st.global.u64 [%rd0], %rd4;"""
    found = run(body, a, a, a)
    expected = [signed(x, 16) ^ x ^ signed(x, 8) for x in (0x80, 0x7F, 0xFFFF, 0x8000)]
    assert [int(x) for x in found] == [x % 2**64 for x in expected]


def test_registers_of_a_scope_hide_others():
    a = np.arange(32, dtype=np.uint64)
    body = """mov.u32 %r0, 7; { .reg .b32 %r0; .reg .pred %p0; mov.u32 %r0, 9; { .reg .b64 %r0; mov.u64 %r0, 1; }
        add.u32 %r0, %r0, 1; st.global.u32 [%rd0], %r0; } st.global.u32 [%rd0+4], %r0;"""
    assert set(run(body, a, a, a).tolist()) == {7 << 32 | 10}


def test_branches_meet_again_and_loops_end_thread_by_thread():
    a = np.arange(64, dtype=np.uint64)
    body = """ld.global.u32 %r0, [%rd1]; mov.u32 %r1, 0; mov.u32 %r2, 0;
        again: setp.ge.u32 %p0, %r2, %r0; @%p0 bra done; add.u32 %r1, %r1, %r2; add.u32 %r2, %r2, 1; bra.uni again;
        done: and.b32 %r3, %r0, 1; setp.eq.u32 %p1, %r3, 0; @!%p1 bra odd; add.u32 %r1, %r1, 1000;
        odd: activemask.b32 %r4; st.global.v2.u32 [%rd0], {%r1, %r4};"""
    found = run(body, a, a, a)
    expected = [n * (n - 1) // 2 + (0 if n % 2 else 1000) | 0xFFFFFFFF << 32 for n in range(64)]
    assert found.tolist() == expected


def barrier_program(text: str) -> str:
    return f"{HEAD}.entry wait()\n{{\n.reg .pred %p<3>; .reg .b32 %r<4>;\nmov.u32 %r0, %tid.x; {text} ret;\n}}\n"


def test_divergent_barriers_are_refused():
    text = "setp.lt.u32 %p0, %r0, 32; @%p0 bra other; bar.sync 0; bra.uni end; other: bar.sync 0; end:"
    with pytest.raises(PtxError, match="divergent barrier: thread 32 .* waits at instruction 3, bar.sync 0; thread 0"):
        Module(barrier_program(text)).launch("wait", grid=1, block=64, arguments=[])


def test_threads_that_left_hold_no_barrier_up():
    text = "setp.lt.u32 %p0, %r0, 40; @%p0 bra end; bar.sync 0; end:"
    profile = Module(barrier_program(text)).launch("wait", grid=2, block=70, arguments=[])
    assert profile.warps == 6 and profile.executed["bar.sync"] == 4


@pytest.mark.parametrize(
    "text",
    [
        "bar.sync 1, 32;",
        "wgmma.fence.sync.aligned;",
        "mbarrier.init.shared.b64 [%r0], 1;",
        "{ .param .b32 x; call.uni (x), vprintf, (x, x); }",
        "ld.async.u32 %r1, [%r0];",
        "add.cc.u32 %r1, %r0, %r0;",
    ],
)
def test_what_is_not_known_is_refused(text):
    with pytest.raises(Unsupported):
        Module(barrier_program(text)).launch("wait", grid=1, block=32, arguments=[])


def test_loops_without_end_are_ended():
    module = Module(barrier_program("again: bra.uni again;"))
    with pytest.raises(PtxError, match="wait: not at its end after 1000 instructions"):
        module.launch("wait", grid=1, block=32, arguments=[], max_steps=1000)


def test_a_program_that_does_not_return_is_refused():
    text = barrier_program("bra.uni end;").replace("ret;", "end:")
    with pytest.raises(PtxError, match="a thread ran past the last instruction"):
        Module(text).launch("wait", grid=1, block=32, arguments=[])


def test_names_of_kernels_and_numbers_of_arguments_are_checked():
    module = Module(barrier_program(""))
    with pytest.raises(PtxError, match="kernel must be a part of one name"):
        module.launch("nothing", grid=1, block=32, arguments=[])
    with pytest.raises(PtxError, match="has 0 parameters, got 1 arguments"):
        module.launch("wait", grid=1, block=32, arguments=[3])


INDEXED = """
#include "device.cuh"
struct Request { const float* data; int count; float weights[4]; };
__constant__ float table[3] = {0.5f, 1.5f, -2.0f};
__device__ int order[4] = {3, 1, 2, 0};
__global__ void indexed(const __grid_constant__ Request request, float* out, int* last) {
  __shared__ float kept_by_all[64];
  float kept[8];
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
  for (int i = 0; i < 8; ++i) kept[(i + thread) % 8] = request.data[(thread * 8 + i) % request.count];
  kept_by_all[thread] = kept[request.count % 8] * table[thread % 3] + request.weights[thread % 4];
  const int here = __syncthreads_or(thread == order[thread % 4]);
  const float* generic = thread % 64 < 64 ? &kept_by_all[63 - thread] : out;
  out[thread] = *generic + static_cast<float>(here + (thread & 1 ? order[thread % 4] : 0));
  const int ten = __syncthreads_count(thread < 10);
  if (thread == 63) *last = ten;
}
"""


def test_local_constant_static_and_parameter_memory(tmp_path):
    source = tmp_path / "indexed.cu"
    source.write_text(INDEXED)
    data = np.random.default_rng(9).standard_normal(101).astype(np.float32)
    data.flags.writeable = False
    weights = (1.0, 2.0, 3.0, 4.0)
    out, last = np.zeros(64, np.float32), np.zeros(1, np.int32)
    request = Struct("<Qi4fxxxx", data, 101, *weights)
    module = Module(building.ptx_of(source))
    module.launch("indexed", grid=1, block=64, arguments=[request, out, last])
    thread = np.arange(64)
    # Place 5 of thread t holds the data of i = (5 - t) mod 8.
    kept = data[(thread * 8 + (5 - thread) % 8) % 101]
    table, order = np.float32([0.5, 1.5, -2.0]), np.array([3, 1, 2, 0])
    shared = kept * table[thread % 3] + np.float32(weights)[thread % 4]
    expected = shared[63 - thread] + 1 + np.where(thread & 1, order[thread % 4], 0)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert last[0] == 10


def test_text_is_parsed_into_operands():
    kernel = parse(program("ld.global.v2.f32 {%f0, %f1}, [%rd1+-8]; @!%p1 st.global.b32 [%rd0], 0f3F800000;"))["probe"]
    load, store = kernel.instructions[-3:-1]
    assert load.mnemonic == "ld.global.v2.f32" and load.operands[1].offset == -8
    assert [register.name for register in load.operands[0].elements] == ["%f0", "%f1"]
    assert store.guard.name == "%p1" and store.guard_negated and store.operands[1].value == 0x3F800000
    assert [parameter.offset for parameter in kernel.parameters] == [0, 8, 16, 24]
