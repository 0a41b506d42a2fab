"""Small pickles that would become large, or show memory that is not theirs: each is refused in one line."""

import io
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from snapshots import Persistent, reference_state, tree, write

from warm_lightning.errors import UserError
from warm_lightning.interop.edm_snapshot import CONSTRUCTORS, read_snapshot
from warm_lightning.interop.pickles import read_pickle, storage_from_bytes

HEAD = b"\x80\x02"
DICT = b"ccollections\nOrderedDict\n"
SHELL = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"


def storage(tensor: torch.Tensor) -> torch.TypedStorage:
    """As torch itself makes one to pickle a tensor; asked by the public way it warns."""
    return torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)


def storage_of(*values: float, dtype: torch.dtype = torch.float32) -> bytes:
    """A tensor's storage as torch pickles it in a snapshot."""
    _, (data,) = storage(torch.tensor(values, dtype=dtype)).__reduce__()
    return data


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_a_storage_is_as_torch_itself_reads_it(dtype: torch.dtype) -> None:
    data = storage_of(1.5, -2, 300, dtype=dtype)
    theirs = torch.storage._load_from_bytes(data)
    ours = storage_from_bytes(data).items
    assert ours.dtype == theirs.dtype == dtype
    assert ours.tolist() == theirs.tolist()
    assert storage_from_bytes(storage_of(dtype=dtype)).items.shape == (0,)


def binary(data: bytes) -> bytes:
    """As a literal."""
    return b"B" + struct.pack("<I", len(data)) + data


def keys_emptied(data: bytes) -> bytes:
    """The list of what follows becomes empty, and the bytes are left out: torch.load then returns what memory held."""
    return data[: data.rindex(b"\x80\x02]")] + pickle.dumps([], 2)


@pytest.mark.parametrize(
    "change",
    [
        keys_emptied,
        lambda d: keys_emptied(d) + struct.pack("<q4f", 4, 1, 2, 3, 4),
        lambda d: d[:-1],
        lambda d: d + b"\0",
        lambda d: d[:-16] + bytes(12),
        lambda d: d[:-24] + struct.pack("<q", 3) + d[-16:],
        lambda d: d.replace(b"FloatStorage", b"DoubleStorage"),
        lambda d: d.replace(b"little_endianq", b"little_endiamq"),
        lambda d: d.replace(b"\x8a\nl\xfc", b"\x8a\nl\xfd"),
        lambda d: d[:-24] + b"PK" + d[-24:],
        lambda _: pickle.dumps(0) * 5,
        lambda _: b"",
    ],
)
def test_storages_that_are_not_all_there(change: Any, tmp_path: Path) -> None:
    data = storage_of(1, 2, 3, 4)
    changed = change(data)
    assert changed != data
    with pytest.raises(Exception):  # noqa: B017, PT011  (of any kind: the next function sees them all in one line)
        storage_from_bytes(changed)
    path = tmp_path / "hostile.pkl"
    path.write_bytes(HEAD + b"ctorch.storage\n_load_from_bytes\n" + binary(changed) + b"\x85R.")
    refused(path)


def refused(path: Path, words: str = "") -> None:
    with pytest.raises(UserError, match=rf"hostile\.pkl.*{words}") as raised:
        read_snapshot(path)
    assert "\n" not in str(raised.value)


def test_memory_that_is_not_the_files_does_not_come_out(reference_dir: Path, tmp_path: Path) -> None:
    """The reference snapshot with its storages emptied, the pickle otherwise whole."""
    contents = bytearray((reference_dir / "edm_snapshot.pkl").read_bytes())
    emptied, start = 0, 0
    while (start := contents.find(b"\x80\x02]q\x00X", start)) >= 0:
        end = contents.index(b"q\x01a.", start) + 4
        contents[start:end] = HEAD + b"]." + b"." * (end - start - 4)
        emptied += 1
    assert emptied > 100
    (tmp_path / "hostile.pkl").write_bytes(contents)
    refused(tmp_path / "hostile.pkl", "storage")


def test_archives_are_not_inflated(tmp_path: Path) -> None:
    """A storage as torch.save writes it today, deflated: 64 MB in 64 kB."""
    whole, deflated = io.BytesIO(), io.BytesIO()
    torch.save(storage(torch.zeros(16 << 20)), whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    data = deflated.getvalue()
    assert len(data) < 1 << 17
    path = tmp_path / "hostile.pkl"
    path.write_bytes(HEAD + b"ctorch.storage\n_load_from_bytes\n" + binary(data) + b"\x85R.")
    refused(path, "archive")


PAIRS = b"](" + b"".join(b"J" + struct.pack("<i", i) + b"N\x86" for i in range(3000)) + b"e"
ITEMS = b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(3000)) + b"u"
THOUSANDS = binary(storage_of(*range(3000)))
TIMES = 5000
CONTENTS = {
    "dictionaries of one list": b"(" + PAIRS + b"q\x00" + (DICT + b"h\x00\x85R") * TIMES + b"t.",
    "one state for many": b"(" + ITEMS + b"q\x00" + (b"cnumpy\ndtype\n)Rh\x00b") * TIMES + b"t.",
    "one list of arguments": b"((" + b"N" * 3000 + b"tq\x00" + b"cnumpy\ndtype\nh\x00R" * TIMES + b"t.",
    "one storage's bytes": b"("
    + THOUSANDS
    + b"q\x00"
    + b"ctorch.storage\n_load_from_bytes\nh\x00\x85R" * TIMES
    + b"t.",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_what_is_built_of_one_thing_many_times(content: bytes, tmp_path: Path) -> None:
    """15 million items from 100 kB, were they built; a few times the file's size is what it may take."""
    path = tmp_path / "hostile.pkl"
    path.write_bytes(HEAD + content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="more than a file of its size"):
            read_pickle(path, CONSTRUCTORS)
        assert tracemalloc.get_traced_memory()[1] < 200 * len(content)  # Python's objects are that much larger
    finally:
        tracemalloc.stop()


def test_inside_a_storage_too() -> None:
    data = pickle.dumps(1, 2) + HEAD + CONTENTS["dictionaries of one list"].replace(DICT, b"ctorch\nFloatStorage\n")
    with pytest.raises((UserError, TypeError)):
        storage_from_bytes(data)


def test_a_name_is_a_string(tmp_path: Path) -> None:
    """Tuples of the same tuple twice, forty times: as text it would have 2^40 characters."""
    path = tmp_path / "hostile.pkl"
    laughs = b")" + b"".join(b"q\x00h\x00\x86" for _ in range(40))
    shell = SHELL + b"}(X\x0a\x00\x00\x00class_name" + laughs + b"X\x05\x00\x00\x00state}u\x85R"
    path.write_bytes(HEAD + b"}X\x03\x00\x00\x00ema" + shell + b"s.")
    refused(path, "name")


class View:
    """Pickles as a tensor whose storage is another's too; torch itself writes every tensor's own."""

    def __init__(self, memory: torch.TypedStorage, shape: torch.Size) -> None:
        stride = torch.empty(shape, device="meta").stride()
        self.call = (torch._utils._rebuild_tensor_v2, (memory, 0, tuple(shape), stride, False, OrderedDict()))

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def shared(module: Persistent, memory: torch.TypedStorage | None = None) -> None:
    """All weights are views of the same memory."""
    memory = memory or storage(torch.zeros(10_000))
    weights = module.state["_parameters"]
    weights |= {name: View(memory, weight.shape) for name, weight in weights.items() if weight.numel() < 10_000}
    for child in module.state["_modules"].values():
        if child is not None:
            shared(child, memory)


def hollow(ema: Persistent) -> None:
    """One module many times, with many tensors."""
    inner = Persistent("Module", _parameters={f"p{i}": torch.zeros(0) for i in range(200)})
    ema.state["_modules"]["model"].state["_modules"] |= {f"m{i}": inner for i in range(200)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shared, "larger than the file"),
        (hollow, "too many tensors"),
        (lambda e: e.state["_modules"].update({"x" * 65: None}), "plain names"),
        (lambda e: e.state["_parameters"].update({"x" * 65: torch.zeros(1)}), "not a tensor"),
        (lambda e: e.state["_parameters"].update(x=torch.zeros(1, dtype=torch.int64)), "not a tensor"),
        (lambda e: e.state["_modules"].update({f"n{i}": None for i in range(10_000)}), "too many modules"),
    ],
)
def test_tensors_and_modules_that_are_named_too_often(
    change: Any, words: str, reference_dir: Path, tmp_path: Path
) -> None:
    ema = tree(reference_state(reference_dir / "edm_ddpmpp_cond.npz"))
    change(ema)
    refused(write(tmp_path / "hostile.pkl", ema), words)
