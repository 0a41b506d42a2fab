"""A CUDA device without data, on any machine: mixing it with the CPU fails as it would on a GPU."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses import FakeTensor, FakeTensorMode

ATEN = torch.ops.aten
INDEXING = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default)


class FakeDevice(FakeTensorMode):
    """A mode in which tensors on "cuda" have shapes, dtypes and a device but no data, and those on the CPU are real.

    What is read from the device is made up: every number is 9, every truth value true, and a copy to the CPU is full of
    ½, or 0 where it is of integers. Checks of numbers on the device pass, as a rule, and the code after them runs.

    Attributes:
        reads: how often anything was read, for which a GPU would be waited for.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.inside = False
        self.reads = 0

    def __torch_dispatch__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        fakes, target = any(issubclass(each, FakeTensor) for each in types), kwargs.get("device")
        to_cpu = func is ATEN._to_copy.default and target is not None and target.type == "cpu"
        self.reads += fakes and (to_cpu or func in (ATEN.nonzero.default, ATEN._local_scalar_dense.default))
        if func is ATEN.nonzero.default and fakes:  # all elements, since their number must be known
            shape = args[0].numel(), args[0].dim()
            func, args, kwargs = ATEN.new_zeros.default, (args[0], shape), {"dtype": torch.int64}
        if func is ATEN._standard_gamma.default and fakes:  # which has no shapes alone before PyTorch 2.15
            func, args, kwargs = ATEN.empty_like.default, args[:1], {}
        if self.inside:  # of an operation on the device, which PyTorch makes of others
            return super().__torch_dispatch__(func, types, args, kwargs)
        if not fakes and (target is None or target.type != "cuda"):
            return func(*args, **kwargs)
        if func is ATEN._local_scalar_dense.default:
            return torch.tensor(9, dtype=args[0].dtype).item()
        if to_cpu:
            return torch.full(args[0].shape, 0.5).to(kwargs.get("dtype") or args[0].dtype)
        if func in INDEXING and args[0].device.type == "cpu":
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor")
        self.inside = True
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self.inside = False
