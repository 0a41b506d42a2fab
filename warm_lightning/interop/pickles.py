"""Safe reading of pickles: a stack machine that builds containers, tensors and records without behaviour.

Python's unpickler imports and calls everything that a file names. This one looks names up in a table of constructors
that the caller gives, and stops at any other name; a file can cause no import, and no access to an attribute or a
method. The instructions are decoded by the standard library (`pickletools`). The memory that is used is proportional
to the size of the file: items that an instruction copies from objects which the file refers to again are counted.
"""

import io
import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import Tensor

from warm_lightning.errors import UserError, check, error_text

T = TypeVar("T")

Constructor = Callable[..., Any]
"""A function that makes plain data of the arguments in a file; it must neither call nor keep anything executable."""

# ---- the machine

LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)
CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
SINGLE = {"APPEND": ("APPENDS", 1), "SETITEM": ("SETITEMS", 2)}
"""For an instruction that adds a single item: the instruction that adds several, and the stack places of an item."""
IGNORED = frozenset({"PROTO", "FRAME"})
"""Instructions that do nothing here."""


@dataclass
class Record:
    """The data of an object, without its behaviour.

    Attributes:
        name: the name of its class in the file.
        state: its attributes.
    """

    name: str
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Name:
    """The name of a global in a file, for which the caller has a constructor."""

    name: str


def refuse_training_state(path: Path) -> None:
    """Check that a file is not EDM's state of a training, which users take for its weights.

    Raises:
        UserError: it is.
    """
    check(
        not path.name.startswith("training-state"),
        f"{path}: is the state of a training of EDM; its weights are in network-snapshot-*.pkl beside it, which "
        "`warm convert-edm` converts",
    )


def read_pickle(path: Path, constructors: Mapping[str, Constructor]) -> Any:
    """Read the object in a pickle file (protocols 2 to 5) of literals, containers and results of constructors.

    Args:
        path: the file.
        constructors: for the dotted name of each allowed class or function, what to call in its place.

    Raises:
        UserError: the file is missing or damaged, has a name that is not in `constructors`, an instruction that plain
            data does not need, or arguments that a constructor does not accept, or builds more than its size allows.
    """
    check(path.is_file(), f"{path}: no such file")
    try:
        with path.open("rb") as file:
            return _Machine(constructors, path.stat().st_size).run(file)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # a damaged file may raise any exception
        reason = error_text(error, 200)
        raise UserError(f"{path}: damaged or not a pickle of plain data ({reason}); use another file") from error


class _Machine:
    """The pickle machine without its dangerous instructions.

    Args:
        constructors: see `read_pickle`.
        budget: the number of items that it may copy from objects on the stack: the size of the file, since an item
            takes at least one byte there.
        ignored: instructions that do nothing.
    """

    def __init__(self, constructors: Mapping[str, Constructor], budget: int, ignored: frozenset[str] = IGNORED) -> None:
        self.constructors = constructors
        self.budget = budget
        self.ignored = ignored
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stack below each mark
        self.memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        """Execute the instructions up to STOP, and return the object on top of the stack."""
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise ValueError("ends too early")

    def step(self, name: str, argument: Any) -> None:
        """Execute one instruction."""
        stack = self.stack
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name]())
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.push_global(argument)
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            stack.append(self.construct(stack.pop(), arguments))
        elif name == "BUILD":
            self.build(stack.pop())
        elif name == "MARK":
            self.marked.append(stack)
            self.stack = []
        elif name in SINGLE:
            many, places = SINGLE[name]
            items = [stack.pop() for _ in range(places)][::-1]
            self.collect(many, items)
        elif name in ("TUPLE", "APPENDS", "SETITEMS", "ADDITEMS"):
            self.stack = self.marked.pop()
            self.collect(name, stack)
        elif name not in self.ignored:
            raise UserError(f"uses the pickle instruction {name}, which plain data does not need")

    def spend(self, *values: Any) -> None:
        """Count the items of values that are about to be copied, since a file can refer to them any number of times."""
        self.budget -= 1 + sum(len(value) for value in values if isinstance(value, bytes | tuple | list | dict))
        check(self.budget >= 0, "builds more than a file of its size can contain: it may be hostile, and is not loaded")

    def collect(self, name: str, items: list[Any]) -> None:
        """Put items into the container on top of the stack; for TUPLE, put a new tuple of them there."""
        if name == "TUPLE":
            self.stack.append(tuple(items))
        elif name == "APPENDS":
            _expect(self.stack[-1], list).extend(items)
        elif name == "ADDITEMS":
            _expect(self.stack[-1], set).update(map(_key, items))
        else:
            _expect(self.stack[-1], dict).update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def push_global(self, argument: str | None) -> None:
        """Put a name on the stack.

        Raises:
            UserError: there is no constructor for it.
        """
        if argument is None:  # STACK_GLOBAL takes its two parts from the stack
            name, module = self.stack.pop(), self.stack.pop()
            argument = f"{_expect(module, str)} {_expect(name, str)}"
        name = argument.replace(" ", ".", 1)
        check(
            name in self.constructors,
            f"refers to {ascii(name)[1:-1][:200]}, which such a file does not need: "
            "it may be hostile, and is not loaded",
        )
        self.stack.append(_Name(name))

    def build(self, state: Any) -> None:
        """Set the state of the record on top of the stack."""
        check(
            isinstance(self.stack[-1], Record) and isinstance(state, dict | tuple),
            "sets the state of an object that has none; it is not loaded",
        )
        self.spend(state)
        self.stack[-1].state |= state if isinstance(state, dict) else {"state": state}

    def construct(self, function: Any, arguments: Any) -> Any:
        """Call the constructor for a name."""
        name = _expect(function, _Name).name
        self.spend(_expect(arguments, tuple), *arguments)
        return self.constructors[name](*arguments)


def _expect(value: Any, kind: type[T]) -> T:
    """Check that a value is of exactly this type, and return it."""
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} is due")
    return value


def _key(key: Any) -> str | int:
    """Check the type of a key of a dictionary or member of a set: hashing nested tuples could take for ever."""
    if type(key) not in (str, int):
        raise TypeError(f"{type(key).__name__} as a key")
    return key


def dictionary(items: Any = ()) -> dict[str | int, Any]:
    """The constructor in place of `collections.OrderedDict`: a dictionary of pairs."""
    return {_key(key): value for key, value in items}


# ---- tensors

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""The first numbers of a storage in torch's old format without an archive (torch.serialization)."""
DTYPES: Mapping[str, torch.dtype] = {
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
}


@dataclass(frozen=True)
class Storage:
    """The memory that tensors are views of, as a flat tensor."""

    items: Tensor


def storage_from_bytes(data: bytes) -> Storage:
    """The constructor in place of `torch.storage._load_from_bytes`.

    It does not use torch.load, which unpacks archives, and returns uninitialised memory for a storage whose data are
    missing. The format is: five pickles (magic number, version, system, the storage's persistent id, the list of keys
    of the storages that follow), then the number of items as int64, and the items.
    """
    if _expect(data, bytes).startswith(b"PK"):
        raise ValueError("a storage in an archive, which may be larger than the file")
    file = io.BytesIO(data)
    names = dict.fromkeys(DTYPES, _uncallable)
    # Because BINPERSID is ignored, a persistent id takes the place of its object.
    machines = [_Machine(names, len(data), IGNORED | {"BINPERSID"}) for _ in range(5)]
    magic, version, system, storage, keys = (machine.run(file) for machine in machines)
    kind, dtype, key, _, count, *view = _expect(storage, tuple)
    header = (magic, version, _expect(system, dict).get("little_endian"), kind, keys, view or [None])
    if header != (MAGIC, PROTOCOL, True, "storage", [_expect(key, str)], [None]):
        raise ValueError("not a storage as torch writes it")
    dtype, content = DTYPES[_expect(dtype, _Name).name], memoryview(data)[file.tell() :]
    if content[:8] != _expect(count, int).to_bytes(8, "little") or len(content) != 8 + count * dtype.itemsize:
        raise ValueError("a storage is not as large as it says")
    return Storage(torch.frombuffer(bytearray(content[8:]), dtype=dtype) if count else torch.empty(0, dtype=dtype))


def _uncallable(*_: Any) -> None:
    raise TypeError("a call of a storage type")


def rebuild_tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """The constructor in place of `torch._utils._rebuild_tensor_v2`; checks that the storage contains the tensor."""
    whole = _expect(storage, Storage).items
    numbers = [offset, *_expect(size, tuple), *_expect(stride, tuple)]
    if not all(type(n) is int and n >= 0 for n in numbers) or len(size) != len(stride):
        raise ValueError("a tensor's shape is not made of whole numbers")
    count, last = math.prod(size), offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > len(whole) or (count and last >= len(whole)):  # a stride of 0 would make a large tensor of few items
        raise ValueError("a tensor is larger than its storage")
    return whole.as_strided(size, stride, offset)


def rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    """The constructor in place of `torch._utils._rebuild_parameter`: a plain tensor."""
    return _expect(tensor, Tensor)
