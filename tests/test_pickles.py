"""Pickles as data: what a hostile file tries, and the one line it gets. Nothing in them may ever run."""

import io
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from snapshots import Persistent, reference_state, torch_utils, tree

from warm_lightning.cli import main
from warm_lightning.errors import UserError
from warm_lightning.interop.edm_snapshot import read_snapshot
from warm_lightning.interop.pickles import Storage, read_pickle, rebuild_tensor


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def with_global(snapshot: bytes, module: str, name: str) -> bytes:
    """A snapshot in which `collections.OrderedDict` has become another global; still a well-formed pickle."""
    old = b"\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93"
    new = b"".join(b"\x8c" + bytes([len(n)]) + n.encode() + b"\x94" for n in (module, name)) + b"\x93"
    start, frame = snapshot.index(old), snapshot.index(b"\x95")
    (length,) = struct.unpack("<Q", snapshot[frame + 1 : frame + 9])
    assert frame < start < frame + length
    changed = snapshot[:start] + new + snapshot[start + len(old) :]
    return changed[: frame + 1] + struct.pack("<Q", length + len(new) - len(old)) + changed[frame + 9 :]


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("torch", "load"), ("posix", "system")],
)
def test_one_global_replaced(
    module: str, name: str, reference_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hostile.pkl"
    path.write_bytes(with_global((reference_dir / "edm_snapshot.pkl").read_bytes(), module, name))
    assert main(["convert-edm", str(path), str(tmp_path / "out.ckpt")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"{module}.{name}" in lines[0]
    assert "hostile.pkl" in lines[0]
    assert not (tmp_path / "out.ckpt").exists()


def nested(payload: Any) -> bytes:
    """A snapshot whose tensor bytes are a pickle of their own."""
    return pickle.dumps({"ema": Call(torch.storage._load_from_bytes, pickle.dumps(payload))})


def nested_archive(payload: Any) -> bytes:
    """A snapshot whose tensor bytes are a file written by `torch.save`."""
    content = io.BytesIO()
    torch.save(payload, content)
    return pickle.dumps({"ema": Call(torch.storage._load_from_bytes, content.getvalue())})


def in_shell(payload: Any) -> bytes:
    with torch_utils():
        return pickle.dumps({"ema": Persistent("EDMPrecond", sigma_data=payload)})


@pytest.mark.parametrize("wrap", [pickle.dumps, nested, nested_archive, in_shell, lambda p: pickle.dumps(p, 2)])
def test_nothing_runs(wrap: Any, tmp_path: Path) -> None:
    path, trace = tmp_path / "hostile.pkl", tmp_path / "ran"
    path.write_bytes(wrap(Call(os.mkdir, str(trace))))
    with pytest.raises(UserError, match=r"hostile\.pkl") as raised:
        read_snapshot(path)
    assert "\n" not in str(raised.value)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Call(os.mkdir, str(trace))))
    assert trace.exists()  # so the payload does run where it can


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"(S'touch ran'\nios\nsystem\n.", "STRING|INST"),  # INST
        (b"\x80\x02(cos\nsystem\nX\x02\x00\x00\x00lso.", r"os\.system"),  # OBJ
        (b"\x80\x02cbuiltins\nobject\n)\x81.", r"builtins\.object"),  # NEWOBJ
        (b"\x80\x04\x8c\x03os\n\x94\x8c\x06system\x94\x93.", r"os\\n\.system"),
        (b"\x80\x02Pan-id\n.", "PERSID"),
        (b"\x80\x02NQ.", "BINPERSID"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x02}}b.", "state"),  # BUILD on a dict
        (b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aNsb.", "state"),  # BUILD on a global
        (b"\x80\x02ccollections\nOrderedDict\nN\x85R.", "pickle of plain data"),  # odd arguments
        (b"\x80\x02ccollections\nOrderedDict\n}R.", "tuple"),
        (b"\x80\x02ccollections\nOrderedDict\n])" + b"\x85" * 100_000 + b"N\x86a\x85R.", "as a key"),
        (b"\x80\x02X\x01\x00\x00\x00a)R.", "_Name"),  # a string is no function
        (b"\x80\x02Nr\xff\xff\xff\xff.", "not a snapshot"),  # a memo of 2^32 places
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "hostile"),  # 2^63 bytes
        (b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns.", "as a key"),  # a key whose hash overflows the stack
        (b"\x80\x02]q\x00h\x00a.", "not a snapshot"),  # a list that contains itself
        (b"\x80\x02h\x05.", "hostile"),
        (b"\x80\x02.", "hostile"),
        (b"\x80\x02e.", "hostile"),
        (b"", "hostile"),
        (b"PK\x03\x04" + bytes(100), "hostile"),
        (b"\x80\x04}\x94.", "under 'ema'"),
    ],
)
def test_instructions_that_plain_data_does_not_need(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as raised:
        read_snapshot(path)
    assert "hostile.pkl" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_truncated_at_every_kind_of_place(reference_dir: Path, tmp_path: Path) -> None:
    whole = (reference_dir / "edm_snapshot.pkl").read_bytes()
    path = tmp_path / "short.pkl"
    for length in [*range(0, 400, 37), *range(1000, len(whole), 50_021), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"short\.pkl"):
            read_snapshot(path)


STORAGE = Storage(torch.arange(12, dtype=torch.float32))


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (13,), (1,)),
        (12, (1,), (1,)),
        (0, (3, 4), (5, 1)),
        (-1, (3,), (1,)),
        (0, (3,), (-1,)),
        (0, (-3,), (1,)),
        (0, (2**40,), (0,)),  # a view of little that becomes much when copied
        (0, (2**31, 2**31, 4), (0, 0, 0)),  # 2^64 elements, which is 0 in 64 bits
        (2**64, (1,), (1,)),
        (0, (3,), (1, 1)),
        (0, (3.0,), (1,)),
        (0, [3], [1]),
    ],
)
def test_tensors_that_their_storage_does_not_hold(offset: int, size: Any, stride: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        rebuild_tensor(STORAGE, offset, size, stride, False, OrderedDict())


def test_tensors_that_it_does() -> None:
    def rebuild(*arguments: Any) -> torch.Tensor:
        return rebuild_tensor(STORAGE, *arguments, False, OrderedDict())

    assert rebuild(1, (2, 3), (4, 1)).tolist() == [[1, 2, 3], [5, 6, 7]]
    assert rebuild(3, (), ()).item() == 3
    assert rebuild(0, (0, 5), (5, 1)).shape == (0, 5)


def test_what_python_itself_reads(reference_dir: Path, tmp_path: Path) -> None:
    """Containers and literals come out as Python's own unpickler has them; the second route."""
    state = {
        name: tensor.tolist()
        for name, tensor in list(reference_state(reference_dir / "edm_ddpmpp_cond.npz").items())[:5]
    }
    data = [
        None,
        True,
        False,
        0,
        255,
        2**15,
        -1,
        2**31,
        -(2**70),
        1.5,
        "é",
        "x" * 300,
        b"",
        b"y" * 300,
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
    ]
    data += [(1, 2, 3, 4), [], [1], {}, {"a": [()]}, {1, "b"}, set(), state, data[:3]]
    path = tmp_path / "data.pkl"
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps(data[:12] + data[14:] if protocol == 2 else data, protocol))
        read = read_pickle(path, {"__builtin__.set": set, "builtins.set": set})
        assert repr(read) == repr(pickle.loads(path.read_bytes()))  # repr tells True from 1


def test_tree_of_the_test_is_as_in_the_snapshot(reference_dir: Path, tmp_path: Path) -> None:
    """The helper makes what EDM's own file has: both read as the same names and shapes."""
    theirs = read_snapshot(reference_dir / "edm_snapshot.pkl")
    with torch_utils():
        (tmp_path / "ours.pkl").write_bytes(pickle.dumps({"ema": tree(theirs.state)}))
    ours = read_snapshot(tmp_path / "ours.pkl")
    assert ours.network | {"dropout": 0.1} == theirs.network
    assert all(torch.equal(ours.state[name], tensor) for name, tensor in theirs.state.items())
    assert ours.state.keys() == theirs.state.keys()
