"""Translates the PTX that nvcc emits into C++ that runs on the emulator.

g++ never sees inline assembly, nor what nvcc makes of the rest. Run on the same machine with the same cases, the
translated kernels check that: instruction strings and operand order, fragment layouts, index arithmetic, predicates.
Covered is what the kernels here compile to; anything else raises :class:`Unsupported` with its line.

A register becomes an unsigned integer of its width; a float is read from it and written to it by its bits. Shared
memory is one array, addressed by offsets as in PTX: the kernel's own variables first, the launch's dynamic part then.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

C_TYPES = {
    **{f"{kind}{bits}": f"uint{bits}_t" for kind in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64)},
    **{
        "f32": "float",
        "f64": "double",
        "f16": "uint16_t",
        "bf16": "uint16_t",
        "f16x2": "uint32_t",
        "bf16x2": "uint32_t",
    },
    **{"tf32": "uint32_t", "pred": "bool"},
}
SPECIAL = {
    f"%{ptx}.{axis}": f"{built_in}.{axis}"
    for ptx, built_in in (("tid", "threadIdx"), ("ntid", "blockDim"), ("ctaid", "blockIdx"), ("nctaid", "gridDim"))
    for axis in "xyz"
} | {"%laneid": "emulator::lane()", "%warpid": "emulator::warp()", "WARP_SZ": "32"}
SPACES = ("global", "shared", "local", "param", "const")
MMA = {
    "m16n8k16.row.col.f32.bf16.bf16.f32": "Mma<emulator::Bf16, 16, 16>",
    "m16n8k16.row.col.f32.f16.f16.f32": "Mma<emulator::F16, 16, 16>",
    "m16n8k8.row.col.f32.f16.f16.f32": "Mma<emulator::F16, 16, 8>",
    "m16n8k8.row.col.f32.tf32.tf32.f32": "Mma<emulator::Tf32, 16, 8>",
    "m16n8k32.row.col.s32.s8.s8.s32": "Mma<emulator::S8, 16, 32>",
    "m8n8k16.row.col.s32.s8.s8.s32": "Mma<emulator::S8, 8, 16>",
}


class Unsupported(RuntimeError):
    """An instruction or declaration that the translator does not know."""


@dataclass
class Kernel:
    """One ``.entry`` on its way to C++."""

    name: str
    parameters: list[str] = field(default_factory=list)
    registers: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    shared: dict[str, int] = field(default_factory=dict)  # offsets
    shared_bytes: int = 0
    local: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0


@dataclass
class Instruction:
    """``opcode.modifiers operands;``"""

    opcode: str
    modifiers: list[str]
    operands: list[str]
    line: int

    @property
    def types(self) -> list[str]:
        return [modifier for modifier in self.modifiers if modifier in C_TYPES]

    @property
    def type(self) -> str:
        return self.types[-1]

    def has(self, modifier: str) -> bool:
        return modifier in self.modifiers

    @property
    def where(self) -> str:
        return f'emulator::Location{{"PTX", {self.line}}}'


def identifier(name: str) -> str:
    return re.sub(r"[%$.]", "_", name)


def elements(operand: str) -> list[str]:
    """Of ``{a, b}``, or of what has no braces, one."""
    return [part.strip() for part in operand.strip("{}").split(",")]


def aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


class Translator:
    """Turns one PTX module into one C++ file for each kernel."""

    def __init__(self) -> None:
        self.kernel = Kernel("")
        self.dynamic_shared: set[str] = set()
        self.module_shared: dict[str, int] = {}
        self.module_shared_bytes = 0
        self.constants: dict[str, str] = {}  # declarations

    # ---- operands ----

    def read(self, operand: str, type: str) -> str:
        """A C++ expression of that type."""
        c_type = C_TYPES[type]
        if operand in SPECIAL:
            return f"static_cast<{c_type}>({SPECIAL[operand]})"
        if operand.startswith("!"):
            return f"!{identifier(operand[1:])}"
        if operand.startswith("%"):
            name = identifier(operand)
            return {"f32": f"as_float({name})", "f64": f"as_double({name})", "pred": name}.get(
                type, f"({c_type}){name}"
            )
        if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", operand):
            return f"as_float(0x{match[1]}u)" if type == "f32" else f"({c_type})0x{match[1]}u"
        if match := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", operand):
            return f"as_double(0x{match[1]}ull)" if type == "f64" else f"({c_type})0x{match[1]}ull"
        if re.fullmatch(r"-?\d+U?|0x[0-9a-fA-F]+U?", operand):
            return f"({c_type}){operand.rstrip('U')}{'ull' if operand.startswith('0x') else 'll'}"
        if match := re.fullmatch(r"([A-Za-z_$][\w$]*)(?:\+(\d+))?", operand):
            return f"({c_type})({self.symbol(match[1])} + {match[2] or 0})"
        raise Unsupported(f"operand {operand}")

    def symbol(self, name: str) -> str:
        """The address of a variable, in its own space."""
        if name in self.kernel.shared:
            return f"uint64_t{{{self.kernel.shared[name]}}}"
        if name in self.module_shared:
            return f"uint64_t{{{self.module_shared[name]}}}"
        if name in self.dynamic_shared:
            return "dynamic_offset"
        if name in self.kernel.local:
            return f"uint64_t{{{self.kernel.local[name]}}}"
        if name in self.kernel.parameters:
            return f"(uint64_t)arguments[{self.kernel.parameters.index(name)}]"
        if name in self.constants:
            return f"(uint64_t){identifier(name)}"
        raise Unsupported(f"symbol {name}")

    def write(self, register: str, type: str, value: str) -> str:
        """A C++ statement."""
        if register == "_":
            return f"(void)({value});"
        if type in ("f32", "f64"):
            return f"{identifier(register)} = bits({C_TYPES[type]}({value}));"
        return f"{identifier(register)} = ({C_TYPES[type]})({value});"

    def address(self, operand: str, space: str, bytes: int, line: int) -> str:
        """A checked pointer to ``[register + offset]``."""
        match = re.fullmatch(r"\[\s*([^\]+]+?)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
        if not match:
            raise Unsupported(f"address {operand}")
        at = f"{self.read(match[1], 'u64')} + ({match[2] or 0})"
        if space == "shared":
            return f"shared_at(shared, shared_bytes, (uint32_t)({at}), {bytes}, {line})"
        return f"at({'(uint64_t)local + ' if space == 'local' else ''}{at}, {bytes}, {line})"

    # ---- instructions ----

    def instruction(self, text: str, line: int) -> str:
        guard = ""
        if match := re.match(r"@(!?)(%\w+)\s+", text):
            guard = f"if ({match[1]}{identifier(match[2])}) "
            text = text[match.end() :]
        name, _, rest = text.partition(" ")
        opcode, *modifiers = re.split(r"\.|::", name)
        operands = [o.strip() for o in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+", rest) if o.strip()]
        instruction = Instruction(opcode, modifiers, operands, line)
        translate: Callable[[Instruction], str] | None = getattr(self, f"op_{opcode}", None)
        if translate is None:
            raise Unsupported(f"line {line}: {text}")
        try:
            return f"{guard}{{ {translate(instruction)} }}"
        except (KeyError, IndexError, StopIteration, ValueError) as error:
            raise Unsupported(f"line {line}: {text} ({error!r})") from error

    def op_ret(self, _: Instruction) -> str:
        return "return;"

    op_exit = op_ret

    def op_trap(self, i: Instruction) -> str:
        return f'emulator::fail("trap", {i.where});'

    def op_bra(self, i: Instruction) -> str:
        return f"goto {identifier(i.operands[0])};"

    def op_membar(self, _: Instruction) -> str:
        return "emulator::fence();"

    op_fence = op_membar

    def op_bar(self, i: Instruction) -> str:
        if i.has("warp"):
            return f"emulator::sync_warp({self.read(i.operands[0], 'u32')}, {i.where});"
        if i.has("red"):
            destination, barrier, vote = i.operands
            kind = {"popc": "count", "and": "all", "or": "any"}[
                next(m for m in i.modifiers if m in ("popc", "and", "or"))
            ]
            value = f"emulator::barrier({barrier}, {self.read(vote, 'pred')}, {i.where}).{kind}"
            return f"{identifier(destination)} = {value};"
        if not i.has("sync") or len(i.operands) != 1:
            raise ValueError("only barriers of the whole block")
        return f"emulator::barrier({self.read(i.operands[0], 'u32')}, false, {i.where});"

    op_barrier = op_bar

    def op_mov(self, i: Instruction) -> str:
        to, value = i.operands
        if value.startswith("{") or to.startswith("{"):
            parts = elements(value if value.startswith("{") else to)
            part_bits, whole = int(i.type[1:]) // len(parts), i.type
            if value.startswith("{"):
                packed = " | ".join(
                    f"({C_TYPES[whole]})(uint{part_bits}_t){identifier(p)} << {part_bits * n}"
                    for n, p in enumerate(parts)
                )
                return self.write(to, whole, packed)
            return f"const auto whole = {self.read(value, whole)}; " + " ".join(
                self.write(p, f"u{part_bits}", f"whole >> {part_bits * n}") for n, p in enumerate(parts)
            )
        return self.write(to, i.type, self.read(value, i.type))

    def _access(self, i: Instruction) -> tuple[str, str, list[str]]:
        store = i.opcode == "st"
        space = next((m for m in i.modifiers if m in SPACES), "global")
        values = elements(i.operands[1 if store else 0])
        place = i.operands[0 if store else 1]
        pointer = self.address(place, space, len(values) * int(i.type[1:]) // 8, i.line)
        return pointer, C_TYPES[i.type], values

    def op_ld(self, i: Instruction) -> str:
        pointer, c_type, values = self._access(i)
        loads = " ".join(self.write(v, i.type, f"load<{c_type}>(from, {n})") for n, v in enumerate(values))
        return f"const char* from = {pointer}; {loads}"

    op_ldu = op_ld

    def op_st(self, i: Instruction) -> str:
        pointer, c_type, values = self._access(i)
        stores = " ".join(f"store<{c_type}>(to, {n}, {self.read(v, i.type)});" for n, v in enumerate(values))
        return f"char* to = {pointer}; {stores}"

    def op_cvta(self, i: Instruction) -> str:
        base = next((f"(uint64_t){space}" for space in ("shared", "local") if i.has(space)), "0")
        sign = "-" if i.has("to") else "+"
        return self.write(i.operands[0], "u64", f"{self.read(i.operands[1], 'u64')} {sign} {base}")

    def _arithmetic(self, i: Instruction, operator: str) -> str:
        to, a, b = i.operands
        if i.type in ("f32", "f64"):
            value = f"{self.read(a, i.type)} {operator} {self.read(b, i.type)}"
            if i.type == "f32" and (i.has("rz") or i.has("rm") or i.has("rp")):
                exact = f"(double){self.read(a, 'f32')} {operator} (double){self.read(b, 'f32')}"
                value = f"rounded<'{next(m for m in ('rz', 'rm', 'rp') if i.has(m))[1]}'>({exact})"
            return self.write(to, i.type, f"saturated({value})" if i.has("sat") else value)
        unsigned = "u" + i.type[1:]
        return self.write(to, i.type, f"{self.read(a, unsigned)} {operator} {self.read(b, unsigned)}")

    def op_add(self, i: Instruction) -> str:
        return self._arithmetic(i, "+")

    def op_sub(self, i: Instruction) -> str:
        return self._arithmetic(i, "-")

    def op_mul(self, i: Instruction) -> str:
        if i.type in ("f32", "f64"):
            return self._arithmetic(i, "*")
        return self.write(i.operands[0], *self._product(i))

    def _product(self, i: Instruction) -> tuple[str, str]:
        """Type and value of the integer product."""
        bits, kind = int(i.type[1:]), "s" if i.type[0] == "s" else "u"
        wide = {16: "int32_t", 32: "int64_t", 64: "__int128"}[bits]
        wide = wide if kind == "s" else "unsigned __int128" if bits == 64 else f"u{wide}"
        product = f"({wide}){self.read(i.operands[1], i.type)} * ({wide}){self.read(i.operands[2], i.type)}"
        if i.has("wide"):
            return f"{kind}{2 * bits}", product
        if i.has("hi"):
            return i.type, f"({product}) >> {bits}"
        return i.type, f"({wide})({product})"

    def op_mad(self, i: Instruction) -> str:
        type, product = self._product(i)
        unsigned = "u" + type[1:]
        return self.write(
            i.operands[0], type, f"({C_TYPES[unsigned]})({product}) + {self.read(i.operands[3], unsigned)}"
        )

    def op_fma(self, i: Instruction) -> str:
        to, *factors = i.operands
        if i.type in ("bf16x2", "f16x2"):
            return self.write(to, "u32", f"fma_{i.type}({', '.join(self.read(o, 'u32') for o in factors)})")
        a, b, c = (self.read(o, i.type) for o in factors)
        value = f"std::fma({a}, {b}, {c})"
        if i.has("rm") or i.has("rp") or i.has("rz"):
            mode = next(m for m in ("rz", "rm", "rp") if i.has(m))[1]
            value = f"rounded<'{mode}'>((long double){a} * {b} + {c})"
        return self.write(to, i.type, f"saturated({value})" if i.has("sat") else value)

    def _binary(self, i: Instruction, pattern: str, type: str | None = None) -> str:
        type = type or i.type
        a, b = (self.read(o, type) for o in i.operands[1:3])
        return self.write(i.operands[0], type, pattern.format(a=a, b=b, c_type=C_TYPES[type]))

    def op_div(self, i: Instruction) -> str:
        return self._binary(i, "{a} / {b}" if i.type in ("f32", "f64") else "divided<{c_type}>({a}, {b})")

    def op_rem(self, i: Instruction) -> str:
        return self._binary(i, "remainder<{c_type}>({a}, {b})")

    def op_min(self, i: Instruction) -> str:
        if i.type[0] == "f" and i.has("NaN"):
            raise ValueError("NaN")
        return self._binary(i, "std::fmin({a}, {b})" if i.type[0] == "f" else "std::min<{c_type}>({a}, {b})")

    def op_max(self, i: Instruction) -> str:
        if i.type[0] == "f" and i.has("NaN"):
            raise ValueError("NaN")
        return self._binary(i, "std::fmax({a}, {b})" if i.type[0] == "f" else "std::max<{c_type}>({a}, {b})")

    def op_and(self, i: Instruction) -> str:
        return self._binary(i, "{a} & {b}")

    def op_or(self, i: Instruction) -> str:
        return self._binary(i, "{a} | {b}")

    def op_xor(self, i: Instruction) -> str:
        return self._binary(i, "{a} ^ {b}")

    def _unary(self, i: Instruction, pattern: str, type: str | None = None) -> str:
        type = type or i.type
        return self.write(i.operands[0], type, pattern.format(a=self.read(i.operands[1], type)))

    def op_not(self, i: Instruction) -> str:
        return self._unary(i, "!{a}" if i.type == "pred" else "~{a}")

    def op_neg(self, i: Instruction) -> str:
        return self._unary(i, "-{a}") if i.type[0] == "f" else self._unary(i, "0 - {a}", "u" + i.type[1:])

    def op_abs(self, i: Instruction) -> str:
        return self._unary(i, "std::fabs({a})" if i.type[0] == "f" else "({a} < 0 ? 0 - {a} : {a})")

    def op_popc(self, i: Instruction) -> str:
        return self.write(i.operands[0], "u32", f"__builtin_popcountll({self.read(i.operands[1], 'u' + i.type[1:])})")

    def op_clz(self, i: Instruction) -> str:
        return self.write(i.operands[0], "u32", f"__clz({self.read(i.operands[1], 's32')})")

    def op_brev(self, i: Instruction) -> str:
        return self._unary(i, "__brev({a})", "u32")

    def op_rcp(self, i: Instruction) -> str:
        return self._unary(i, "1 / {a}")

    def op_sqrt(self, i: Instruction) -> str:
        return self._unary(i, "std::sqrt({a})")

    def op_rsqrt(self, i: Instruction) -> str:
        return self._unary(i, "1 / std::sqrt({a})")

    def op_ex2(self, i: Instruction) -> str:
        return self._unary(i, "emulator::flush(std::exp2(emulator::flush({a})))" if i.has("ftz") else "std::exp2({a})")

    def op_lg2(self, i: Instruction) -> str:
        return self._unary(i, "std::log2(emulator::flush({a}))" if i.has("ftz") else "std::log2({a})")

    def op_sin(self, i: Instruction) -> str:
        return self._unary(i, "std::sin({a})")

    def op_cos(self, i: Instruction) -> str:
        return self._unary(i, "std::cos({a})")

    def op_tanh(self, i: Instruction) -> str:
        return self._unary(i, "std::tanh({a})")

    def op_copysign(self, i: Instruction) -> str:
        return self._binary(i, "std::copysign({b}, {a})")

    def op_shl(self, i: Instruction) -> str:
        bits, to, amount = int(i.type[1:]), i.operands[0], self.read(i.operands[2], "u32")
        value = self.read(i.operands[1], f"u{bits}")
        return self.write(to, f"u{bits}", f"{amount} >= {bits} ? 0 : {value} << {amount}")

    def op_shr(self, i: Instruction) -> str:
        bits, to, amount = int(i.type[1:]), i.operands[0], self.read(i.operands[2], "u32")
        value = self.read(i.operands[1], i.type)
        if i.type[0] == "s":
            return self.write(to, i.type, f"{value} >> ({amount} >= {bits} ? {bits - 1} : {amount})")
        return self.write(to, i.type, f"{amount} >= {bits} ? 0 : {value} >> {amount}")

    def op_shf(self, i: Instruction) -> str:
        to, low, high, amount = i.operands
        both = f"((uint64_t){self.read(high, 'u32')} << 32 | {self.read(low, 'u32')})"
        by = self.read(amount, "u32")
        by = f"({by} & 31)" if i.has("wrap") else f"std::min({by}, 32u)"
        return self.write(to, "u32", f"{both} >> {by}" if i.has("r") else f"{both} << {by} >> 32")

    def op_setp(self, i: Instruction) -> str:
        compare, type = i.modifiers[0], i.type
        a, b = self.read(i.operands[1], type), self.read(i.operands[2], type)
        signs = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
        signs |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
        nan = f"std::isnan({a}) || std::isnan({b})"
        if compare == "nan":
            result = nan
        elif compare == "num":
            result = f"!({nan})"
        elif compare in signs:
            result = f"{a} {signs[compare]} {b}"
            if compare == "ne" and type[0] == "f":  # ordered: false for NaN, unlike C's
                result = f"{result} && !({nan})"
        else:  # unordered: true for NaN
            result = f"{a} {signs[compare[:-1]]} {b} || {nan}"
        if len(i.operands) > 3:
            combine = {"and": "&", "or": "|", "xor": "^"}[i.modifiers[1]]
            result = f"({result}) {combine} {self.read(i.operands[3], 'pred')}"
        to, _, negated = i.operands[0].partition("|")
        second = f" {identifier(negated)} = !result;" if negated else ""
        return f"const bool result = {result}; {identifier(to)} = result;{second}"

    def op_selp(self, i: Instruction) -> str:
        to, a, b, predicate = i.operands
        return self.write(
            to, i.type, f"{self.read(predicate, 'pred')} ? {self.read(a, i.type)} : {self.read(b, i.type)}"
        )

    def op_cvt(self, i: Instruction) -> str:
        to, *values = i.operands
        target, source = i.types if len(i.types) == 2 else (i.types[0], i.types[0])
        if target in ("bf16x2", "f16x2"):
            high, low = (f"{target[:-2]}_bits({self.read(v, 'f32')})" for v in values)
            return self.write(to, "u32", f"(uint32_t){high} << 16 | {low}")
        value = self.read(values[0], source)
        if source in ("f16", "bf16"):
            value, source = f"from_{source}({value})", "f32"
        if target == "tf32":
            if not i.has("rna"):
                raise ValueError("rounding")
            return self.write(to, "u32", f"emulator::round_to_tf32({value})")
        if target in ("f16", "bf16"):
            return self.write(to, "u16", f"{target}_bits({value})")
        rounding = {"rni": "std::nearbyint", "rzi": "std::trunc", "rmi": "std::floor", "rpi": "std::ceil"}
        mode = next((rounding[m] for m in i.modifiers if m in rounding), None)
        if source[0] == "f" and target[0] != "f":
            return self.write(to, target, f"emulator::to_integer<{C_TYPES[target]}>({mode or 'std::trunc'}({value}))")
        if source[0] == "f":
            value = f"{mode}({value})" if mode else value
            return self.write(to, target, f"saturated({value})" if i.has("sat") else value)
        if i.has("sat") and target[0] != "f":
            return self.write(to, target, f"clamped<{C_TYPES[target]}>((int64_t){value})")
        return self.write(to, target, value)

    def op_bfi(self, i: Instruction) -> str:
        return self.write(i.operands[0], "u32", f"bfi({', '.join(self.read(o, 'u32') for o in i.operands[1:])})")

    def op_bfe(self, i: Instruction) -> str:
        to, value, *rest = i.operands
        arguments = ", ".join([self.read(value, i.type), *(self.read(o, "u32") for o in rest)])
        return self.write(to, i.type, f"bfe<{C_TYPES[i.type]}>({arguments})")

    def op_prmt(self, i: Instruction) -> str:
        return self.write(
            i.operands[0], "u32", f"__byte_perm({', '.join(self.read(o, 'u32') for o in i.operands[1:])})"
        )

    def op_lop3(self, i: Instruction) -> str:
        return self.write(i.operands[0], "u32", f"lop3({', '.join(self.read(o, 'u32') for o in i.operands[1:])})")

    def op_dp4a(self, i: Instruction) -> str:
        return self.write(i.operands[0], "s32", f"__dp4a({', '.join(self.read(o, 's32') for o in i.operands[1:])})")

    def op_atom(self, i: Instruction) -> str:
        names = {
            "add": "Add",
            "min": "Min",
            "max": "Max",
            "and": "And",
            "or": "Or",
            "exch": "Exch",
            "cas": "CAS",
            "inc": "Inc",
        }
        function = f"atomic{names[next(m for m in i.modifiers if m in names)]}"
        operands = i.operands if i.opcode == "atom" else ["_", *i.operands]
        pointer = self.address(operands[1], "shared" if i.has("shared") else "global", int(i.type[1:]) // 8, i.line)
        arguments = ", ".join([f"({C_TYPES[i.type]}*){pointer}", *(self.read(o, i.type) for o in operands[2:])])
        return self.write(operands[0], i.type, f"{function}({arguments})")

    op_red = op_atom

    def op_shfl(self, i: Instruction) -> str:
        to, _, predicate = i.operands[0].partition("|")
        value, b, c, mask = (self.read(o, "u32") for o in i.operands[1:5])
        mode = {"up": "kUp", "down": "kDown", "bfly": "kButterfly", "idx": "kIndex"}[i.modifiers[1]]
        inside = f" {identifier(predicate)} = inside;" if predicate else ""
        return (
            f"bool inside; const uint32_t got = shuffle<{mode}>({value}, {b}, {c}, {mask}, inside, {i.where}); "
            + self.write(to, "u32", "got")
            + inside
        )

    def op_vote(self, i: Instruction) -> str:
        function = {"ballot": "__ballot_sync", "any": "__any_sync", "all": "__all_sync"}[i.modifiers[1]]
        vote = f"{function}({self.read(i.operands[2], 'u32')}, {self.read(i.operands[1], 'pred')}, {i.where})"
        return self.write(i.operands[0], "u32" if i.modifiers[1] == "ballot" else "pred", vote)

    def op_redux(self, i: Instruction) -> str:
        function = next(f"__reduce_{m}_sync" for m in i.modifiers if m in ("add", "min", "max", "and", "or"))
        value, mask = self.read(i.operands[1], i.type), self.read(i.operands[2], "u32")
        return self.write(i.operands[0], i.type, f"{function}({mask}, {value}, {i.where})")

    def op_match(self, i: Instruction) -> str:
        value, mask = self.read(i.operands[1], i.type), self.read(i.operands[2], "u32")
        return self.write(i.operands[0], "u32", f"__match_any_sync({mask}, {value}, {i.where})")

    def op_ldmatrix(self, i: Instruction) -> str:
        registers = elements(i.operands[0])
        pointer = self.address(i.operands[1], "shared", 16, i.line)
        transposed = "true" if i.has("trans") else "false"
        return (
            f"unsigned r[{len(registers)}]; "
            f"emulator::ldmatrix<{len(registers)}, {transposed}>(r, {pointer}, {i.where}); "
            + " ".join(self.write(register, "u32", f"r[{n}]") for n, register in enumerate(registers))
        )

    def op_mma(self, i: Instruction) -> str:
        d, a, b, c = (elements(o) for o in i.operands)
        shape = ".".join(i.modifiers[2:])
        words = {name: ", ".join(identifier(r) for r in group) for name, group in (("d", c), ("a", a), ("b", b))}
        arrays = " ".join(f"unsigned {name}[] = {{{values}}};" for name, values in words.items())
        return f'{arrays} emulator::{MMA[shape]}::run(d, a, b, "mma", {i.where}); ' + " ".join(
            self.write(register, "u32", f"d[{n}]") for n, register in enumerate(d)
        )

    def op_cp(self, i: Instruction) -> str:
        if i.has("commit_group"):
            return "emulator::async_commit();"
        if i.has("wait_group"):
            return f"emulator::async_wait({i.operands[0]});"
        if i.has("wait_all"):
            return "emulator::async_commit(); emulator::async_wait(0);"
        to, source, bytes = i.operands[:3]
        source_bytes = self.read(i.operands[3], "u32") if len(i.operands) > 3 else bytes
        shared = self.address(to, "shared", int(bytes), i.line)
        match = re.fullmatch(r"\[\s*([^\]+]+?)\s*(?:\+\s*(-?\w+))?\s*\]", source)
        assert match
        start = f"(const void*)({self.read(match[1], 'u64')} + ({match[2] or 0}))"
        return f"emulator::async_copy({shared}, {start}, {bytes}, {source_bytes}, {i.where});"

    # ---- modules ----

    def translate(self, ptx: str) -> dict[str, str]:
        """{name: C++ file} of all kernels of a module."""
        ptx = re.sub(r"//[^\n]*", "", ptx)
        lines = re.sub(r"/\*.*?\*/", "", ptx, flags=re.S).replace("\t", " ").split("\n")
        files, at = {}, 0
        while at < len(lines):
            line = lines[at].strip()
            at += 1
            if match := re.match(r"\.extern \.shared \.align \d+ \.b8 ([\w$]+)\[\];", line):
                self.dynamic_shared.add(match[1])
            elif match := re.match(r"\.shared \.align (\d+) \.b8 ([\w$]+)(?:\[(\d+)\])?;", line):
                offset = aligned(self.module_shared_bytes, int(match[1]))
                self.module_shared[match[2]] = offset
                self.module_shared_bytes = offset + int(match[3] or 1)
            elif match := re.match(
                r"(?:\.visible |\.weak )?\.(?:const|global) \.align (\d+) \.(\w+) ([\w$]+)(?:\[(\d*)\])?"
                r"(?: = \{?(.*?)\}?)?;",
                line,
            ):
                alignment, type, name, size, values = match.groups()
                self.constants[name] = (
                    f"alignas({alignment}) static {C_TYPES[type]} {identifier(name)}[{size or ''}]"
                    f" = {{{values or ''}}};"
                )
            elif match := re.match(r"(?:\.visible |\.weak )?\.entry ([\w$]+)\(", line):
                at = self._kernel(match[1], lines, at)
                files[match[1]] = self._file()
            elif re.match(r"(?:\.visible |\.weak )?\.func", line):
                raise Unsupported(f"line {at}: {line}: functions that are not inlined")
        return files

    def _kernel(self, name: str, lines: list[str], at: int) -> int:
        self.kernel = kernel = Kernel(name, shared_bytes=self.module_shared_bytes)
        while not lines[at].strip().startswith("{"):
            if match := re.search(r"\.param .*?([\w$]+)(?:\[\d+\])?,?$", lines[at].strip()):
                kernel.parameters.append(match[1])
            at += 1
        at += 1
        depth = 1
        while depth:
            statement = lines[at].strip()
            at += 1
            while statement and not re.search(r"[;:{}]$", statement):
                statement += " " + lines[at].strip()
                at += 1
            for part in re.findall(r"[\w$]+:|(?:\{[^{}]*\}|[^;{}])+;|[{}]", statement):
                if part in "{}":
                    depth += 1 if part == "{" else -1
                    if depth:
                        kernel.body.append(part)
                else:
                    self._statement(" ".join(part.split()), at)
        return at

    def _statement(self, text: str, line: int) -> None:
        kernel = self.kernel
        if text.endswith(":"):
            kernel.body.append(f"{identifier(text)};")
        elif match := re.match(r"\.reg \.(\w+)\s+(.*);", text):
            c_type = {"pred": "bool"}.get(match[1], f"uint{max(int(re.sub(r'[^0-9]', '', match[1]) or 0), 16)}_t")
            for name in match[2].split(","):
                if counted := re.match(r"\s*(%\w+?)<(\d+)>", name):
                    names = [f"{identifier(counted[1])}{n}" for n in range(int(counted[2]))]
                    kernel.registers.append(f"{c_type} {', '.join(names)};")
                else:  # of a block of inline assembly, whose names may come again
                    kernel.body.append(f"{c_type} {identifier(name.strip())};")
        elif match := re.match(r"\.(shared|local) \.align (\d+) \.[a-z]+(\d+) ([\w$]+)(?:\[(\d+)\])?;", text):
            space, alignment, bits, name, count = match.groups()
            size = int(bits) // 8 * int(count or 1)
            offset = aligned(kernel.shared_bytes if space == "shared" else kernel.local_bytes, int(alignment))
            if space == "shared":
                kernel.shared[name], kernel.shared_bytes = offset, offset + size
            else:
                kernel.local[name], kernel.local_bytes = offset, offset + size
        elif text.startswith("."):
            if not re.match(r"\.(loc|file|pragma|maxntid|minnctapersm|reqntid)\b", text):
                raise Unsupported(f"line {line}: {text}")
        else:
            kernel.body.append(self.instruction(text.rstrip(";").strip(), line))

    def _file(self) -> str:
        kernel = self.kernel
        static = aligned(kernel.shared_bytes, 128)
        newline = "\n  "
        return f"""#include "ptx_kernel.h"
namespace {{
{chr(10).join(self.constants.values())}
constexpr uint64_t dynamic_offset = {static};
}}
extern "C" __attribute__((visibility("default"))) const size_t static_shared_{kernel.name} = {static};
extern "C" __attribute__((visibility("default"))) void {kernel.name}(const void* const* arguments) {{
  unsigned char* const shared = {"emulator::dynamic_shared()" if static or self.dynamic_shared else "nullptr"};
  const size_t shared_bytes = shared ? emulator::dynamic_shared_bytes() : 0;
  alignas(16) unsigned char local[{max(kernel.local_bytes, 16)}];
  (void)shared_bytes, (void)local;
  {newline.join(kernel.registers)}
  {newline.join(kernel.body)}
}}
"""
