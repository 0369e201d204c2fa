"""The kinds of array the operators take, behind one small interface.

An operator asks `arrays_of(first_argument)` for its adaptor, takes every argument through it, lets
it make the outputs, and hands results back through it. Torch tensors, NumPy arrays and CuPy's have
an adaptor each; everything else with DLPack is seen as NumPy when it lies in host memory.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class SupportsDLPack(Protocol):
    """An array of another library (CuPy, JAX), as a type checker knows it: JAX declares no more."""

    def __dlpack__(self) -> Any: ...


# What the public functions take, for type checkers. The kind of the first argument is that of the
# results; the others are of the same kind, which is left to the call: a NumPy array's dtype is a
# part of its type, and the arguments of one call differ in it.
Array = TypeVar("Array", "NDArray[Any]", "Tensor", "SupportsDLPack")
AnyArray: TypeAlias = "NDArray[Any] | Tensor | SupportsDLPack"
if not TYPE_CHECKING:  # whoever asks for the hints of a function gets some, with torch or without
    Array, AnyArray = TypeVar("Array"), Any

_CPU_DEVICE_TYPES = (1, 3)  # DLPack: host memory, pinned host memory
_TEXTS = (str, bytes, bytearray)
# What is taken where an argument is cast to the first.
_TAKEN = {None: "float32 or float64", "float32": "float32", "int64": "integers"}


class NumpyArrays:
    """NumPy arrays in, NumPy arrays out. Nothing here needs a stream."""

    stream = 0
    threads = 0  # as many as fastrcnn_engine.set_num_threads says
    new_bytes = None  # gives a GPU's operators temporary memory; None: from CUDA's own pool
    _xp: Any = np

    def take(self, array: Any, name: str, cast: str | None = None) -> Any:
        """The array, row-major; `cast` names a dtype that floats (or for int64, integers and bools)
        go to.
        """
        result = self._own(array, name)
        if is_bfloat16(result):
            if cast != "float32":
                raise ValueError(f"{name} must be {_TAKEN[cast]}, got bfloat16")
            result = result.astype(cast)
        elif cast is not None and result.dtype.kind in ("f" if cast == "float32" else "iub"):
            if result.dtype != cast:
                with np.errstate(over="ignore"):  # beyond float32 is infinite, as to torch
                    result = result.astype(cast)
        elif cast == "int64":
            raise ValueError(f"{name} must be {_TAKEN[cast]}, got {result.dtype}")
        return self._row_major(result)

    def take_signed(self, array: Any, name: str) -> Any:
        """An array that may be one number, of which torch may keep the sign apart."""
        return self.take(array, name)

    def take_map(self, array: Any, name: str) -> Any:
        """A (N, C, H, W) array, left alone when dense in NCHW or channels-last order."""
        result = self._own_map(array, name)
        return result if self.is_channels_last(result) else self._row_major(result)

    def take_like(self, array: Any, like: Any, name: str) -> Any:
        """A (N, C, H, W) array in the memory layout of `like`."""
        result = self._own_map(array, name)
        if not self.is_channels_last(like):
            return self._row_major(result)
        shape_of(result, 4, name)
        return self._row_major(result.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

    def is_channels_last(self, array: Any) -> bool:
        return (
            array.ndim == 4
            and not array.flags.c_contiguous
            and array.transpose(0, 2, 3, 1).flags.c_contiguous
            and getattr(array.flags, "aligned", True)  # CuPy's are
        )

    def empty(self, shape: Sequence[int], dtype: Any, like: Any) -> Any:
        del like
        return np.empty(shape, dtype)

    def empty_like(self, taken: Any) -> Any:
        return self.empty(taken.shape, taken.dtype, taken)

    def empty_map(self, shape: Sequence[int], dtype: Any, like: Any) -> Any:
        """A new (R, C, PH, PW) array in the memory layout of `like`."""
        if not self.is_channels_last(like):
            return self.empty(shape, dtype, like)
        r, c, h, w = shape
        return self.empty((r, h, w, c), dtype, like).transpose(0, 3, 1, 2)

    def first(self, array: Any, count: int) -> Any:
        """The first `count` rows of a new array, which is given up."""
        return array[:count]

    def indexed_boxes(self, boxes: Sequence[Any], like: Any) -> Any:
        """A list of (L_i, 4) arrays, one per image, as (R, 5) rows with the image's index.

        Without arrays to go by, the rows lie where `like` does.
        """
        rows = [self.empty((0, 5), "float32", like)]
        for i, item in enumerate(boxes):
            item = self.take(item, f"boxes[{i}]", "float32")
            _require_boxes(item, i)
            index = self.empty((item.shape[0], 1), "float32", like)
            index.fill(i)
            rows.append(self._xp.concatenate([index, item], axis=1))
        return self._xp.concatenate(rows)

    def join_rows(self, results: Sequence[Any]) -> Any:
        """Results (R, ...) beside each other, each row flat: (R, the sum of their sizes)."""
        arrays = [self._own(result, "results") for result in results]
        flat = [array.reshape(array.shape[0], math.prod(array.shape[1:])) for array in arrays]
        return self.give(self._xp.concatenate(flat, axis=1))

    def give(self, result: Any, like: Any = None) -> Any:
        """A result as its caller gets it: where `like` is bfloat16, in that type."""
        if is_bfloat16(like):
            return result.astype(like.dtype)
        return result

    def _own(self, array: Any, name: str) -> Any:
        """The array as NumPy's, in the machine's byte order. bfloat16 is a type of `ml_dtypes`."""
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"{name} must be an array without a mask, got numpy.ma.MaskedArray: "
                            "its filled() is one")
        if isinstance(array, (np.ndarray, np.generic)):
            array = np.asarray(array)
        elif hasattr(array, "__dlpack__") and not is_tensor(array):
            try:  # NumPy reads no bfloat16 by DLPack, but whoever has it has a type for NumPy, too
                array = np.asarray(array) if is_bfloat16(array) else np.from_dlpack(array)
            except Exception as error:  # another library's, of any type
                raise _unreadable(array, name, error) from error
        else:
            raise TypeError(f"{name} must be a NumPy array (or another DLPack array in host "
                            f"memory) like the other arguments, got {type(array).__name__}")
        foreign = array.dtype.kind not in "biufc" or array.dtype.isbuiltin == 2
        if foreign and not is_bfloat16(array):
            raise ValueError(f"{name} must hold NumPy's own numbers, got dtype {array.dtype}")
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def _own_map(self, array: Any, name: str) -> Any:
        """Of bfloat16 as float32: the engine cannot be shown that memory of NumPy's.

        No bit of a result differs: float32 holds every bfloat16, and sums are made in it anyway.
        """
        result = self._own(array, name)
        return result.astype("float32") if is_bfloat16(result) else result

    def _row_major(self, array: Any) -> Any:
        return np.require(array, requirements=["C", "A"])


class HostDlpackArrays(NumpyArrays):
    """Another library's arrays in host memory: computed on as NumPy, given back as their own."""

    def __init__(self, example: Any) -> None:
        namespace = getattr(example, "__array_namespace__", None)
        self._theirs: Any = namespace() if namespace else None

    def give(self, result: Any, like: Any = None) -> Any:
        result = super().give(result, like)
        if not hasattr(self._theirs, "from_dlpack"):
            return result
        if is_bfloat16(result):
            return self._theirs.asarray(result)
        return self._theirs.from_dlpack(result)


class CupyArrays(NumpyArrays):
    """CuPy's arrays on a GPU. Work is queued on CuPy's current stream, and results are CuPy's."""

    def __init__(self, example: Any) -> None:
        self._xp = sys.modules["cupy"]
        self._device = example.device

    @property
    def stream(self) -> int:
        return self._xp.cuda.get_current_stream(self._device.id).ptr

    # CuPy computes on its current GPU, wherever its arrays lie.

    def take(self, array: Any, name: str, cast: str | None = None) -> Any:
        with self._device:
            return super().take(array, name, cast)

    def take_map(self, array: Any, name: str) -> Any:
        with self._device:
            return super().take_map(array, name)

    def take_like(self, array: Any, like: Any, name: str) -> Any:
        with self._device:
            return super().take_like(array, like, name)

    def empty(self, shape: Sequence[int], dtype: Any, like: Any) -> Any:
        del like
        with self._device:
            return self._xp.empty(tuple(shape), dtype)

    def indexed_boxes(self, boxes: Sequence[Any], like: Any) -> Any:
        with self._device:
            return super().indexed_boxes(boxes, like)

    def join_rows(self, results: Sequence[Any]) -> Any:
        with self._device:
            return super().join_rows(results)

    def _own(self, array: Any, name: str) -> Any:
        if not isinstance(array, self._xp.ndarray):
            raise TypeError(f"{name} must be a cupy.ndarray like the other arguments, "
                            f"got {type(array).__name__}")
        return array

    def _own_map(self, array: Any, name: str) -> Any:
        return self._own(array, name)

    def _row_major(self, array: Any) -> Any:
        return self._xp.asarray(array, order="C")


class TorchArrays:
    """Torch tensors; work is queued on the current stream of the first argument's device.

    Every method asks before it converts: on tiny tensors a detach() that is not needed costs as
    much as the operator.
    """

    stream = 0
    new_bytes = None

    def __init__(self) -> None:
        self._torch = torch = sys.modules["torch"]
        self.tensor_type = torch.Tensor
        self._narrow = (torch.float16, torch.bfloat16)
        self._floats = (*self._narrow, torch.float32, torch.float64)
        self._dtypes = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32,
                        "uint16": torch.uint16}  # fmt: skip

    @property
    def threads(self) -> int:
        """As many as torch's own operators may use."""
        return self._torch.get_num_threads()

    def take(self, array: Any, name: str, cast: str | None = None) -> Any:
        tensor = self._tensor(array, name)
        if cast is not None:
            dtype: Any = self._dtypes[cast]
            if cast == "int64" and (tensor.is_floating_point() or tensor.is_complex()):
                given = str(tensor.dtype).removeprefix("torch.")
                raise ValueError(f"{name} must be {_TAKEN[cast]}, got {given}")
            if tensor.dtype is not dtype and (
                tensor.dtype in self._floats if cast == "float32" else not tensor.is_quantized
            ):
                tensor = tensor.to(dtype)
        elif tensor.dtype in self._narrow:
            tensor = widened(tensor)
        try:
            return tensor.contiguous()
        except RuntimeError:
            self.require_dense(tensor, name)
            raise

    def take_signed(self, array: Any, name: str) -> Any:
        return self._with_its_sign(self.take(array, name))

    def take_map(self, array: Any, name: str) -> Any:
        tensor = self._with_its_sign(self._tensor(array, name))
        try:
            return tensor if self.is_channels_last(tensor) else tensor.contiguous()
        except RuntimeError:
            self.require_dense(tensor, name)
            raise

    def take_like(self, array: Any, like: Any, name: str) -> Any:
        tensor = self._with_its_sign(self._tensor(array, name))
        try:
            if not self.is_channels_last(like):
                return tensor.contiguous()
            return tensor.contiguous(memory_format=self._torch.channels_last)
        except RuntimeError:
            self.require_dense(tensor, name)
            shape_of(tensor, 4, name)
            raise

    def is_channels_last(self, tensor: Any) -> bool:
        if tensor.is_contiguous() or tensor.dim() != 4:
            return False
        try:
            return tensor.is_contiguous(memory_format=self._torch.channels_last)
        except RuntimeError:  # within vmap torch has no answer, but strides
            dense = 1
            for dim in (1, 3, 2, 0):
                if tensor.shape[dim] != 1 and tensor.stride(dim) != dense:
                    return False
                dense *= tensor.shape[dim]
            return True

    def empty(self, shape: Sequence[int], dtype: Any, like: Any) -> Any:
        try:
            if dtype is like.dtype:
                return like.new_empty(shape)
            return like.new_empty(shape, dtype=self._dtypes.get(dtype, dtype))
        except RuntimeError:
            self.require_dense(like, "the first array")
            raise

    def empty_like(self, taken: Any) -> Any:
        try:
            return self._torch.empty_like(taken)  # half of what a shape and a dtype cost
        except RuntimeError:
            self.require_dense(taken, "the first array")
            raise

    def empty_map(self, shape: Sequence[int], dtype: Any, like: Any) -> Any:
        if not self.is_channels_last(like):
            return self.empty(shape, dtype, like)
        return self._torch.empty(
            tuple(shape), dtype=self._dtypes.get(dtype, dtype), device=like.device,
            memory_format=self._torch.channels_last,
        )  # fmt: skip

    def indexed_boxes(self, boxes: Sequence[Any], like: Any) -> Any:
        rows = []
        for i, item in enumerate(boxes):
            item = self.take(item, f"boxes[{i}]", "float32")
            _require_boxes(item, i)
            rows.append(self._torch.cat([item.new_full((item.shape[0], 1), i), item], dim=1))
        return self._torch.cat(rows) if rows else self.empty((0, 5), "float32", like)

    def first(self, array: Any, count: int) -> Any:
        if 2 * count < len(array) and len(array) > 1000:
            return array[:count].clone()  # else the memory of all would be kept
        # In place: half of what a slice costs.
        return array.resize_((count, *array.shape[1:])) if count < len(array) else array

    def join_rows(self, results: Sequence[Any]) -> Any:
        return self._torch.cat([result.flatten(1) for result in results], dim=1)

    def give(self, result: Any, like: Any = None) -> Any:
        del like
        return result

    def require_dense(self, tensor: Any, name: str) -> None:
        if not isinstance(tensor, self.tensor_type):
            raise self._other_kind(tensor, name)
        if tensor.layout is not self._torch.strided:
            raise ValueError(f"{name} must be a dense tensor, got {tensor.layout}")
        if tensor.is_nested:
            raise ValueError(f"{name} must be a dense tensor, got a nested one")

    def _tensor(self, array: Any, name: str) -> Any:
        if not isinstance(array, self.tensor_type):
            raise self._other_kind(array, name)
        return array.detach() if array.requires_grad else array

    def _with_its_sign(self, tensor: Any) -> Any:
        """`imag` of a conjugate is torch's view of memory with the other sign. With more than one
        element it is not contiguous, and `contiguous()` turns the sign, too.
        """
        return tensor.resolve_neg() if tensor.is_neg() else tensor

    def _other_kind(self, array: Any, name: str) -> TypeError:
        return TypeError(
            f"{name} must be a torch.Tensor like the other arguments, got {type(array).__name__}"
        )


class CudaTensors(TorchArrays):
    """Torch tensors on a GPU. Temporary memory is torch's too: what its pool holds is reused, and a
    CUDA graph that is being captured keeps it."""

    def __init__(self, example: Any) -> None:
        super().__init__()
        self._device = example.device

    @property
    def stream(self) -> int:
        return self._torch.cuda.current_stream(self._device).cuda_stream

    def new_bytes(self, count: int) -> Any:
        return self._torch.empty(count, dtype=self._torch.uint8, device=self._device)


Arrays = NumpyArrays | TorchArrays
_NUMPY = NumpyArrays()
_torch_cpu: TorchArrays | None = None  # made with the first tensor: torch may not be there at all


def arrays_of(example: Any, name: str) -> Arrays:
    """The adaptor for arrays of the kind of `example`.

    Raises TypeError, naming the argument, when it is no array.
    """
    global _torch_cpu
    if _torch_cpu is not None and isinstance(example, _torch_cpu.tensor_type):
        return CudaTensors(example) if example.is_cuda else _torch_cpu
    if is_tensor(example):
        _torch_cpu = TorchArrays()
        return arrays_of(example, name)
    if isinstance(example, np.ndarray):
        return _NUMPY
    if not hasattr(example, "__dlpack_device__"):
        raise TypeError(f"{name} must be an array (torch, NumPy or any other with DLPack), "
                        f"got {type(example).__name__}")
    try:
        device_type, _ = example.__dlpack_device__()
    except Exception as error:  # another library's, of any type
        raise _unreadable(example, name, error) from error
    if device_type in _CPU_DEVICE_TYPES:
        return HostDlpackArrays(example)
    cupy = sys.modules.get("cupy")
    if cupy is None or not isinstance(example, cupy.ndarray):
        raise TypeError(
            f"{name} must be a torch.Tensor or a cupy.ndarray on a GPU, or in host memory, got "
            f"{type(example).__module__}.{type(example).__name__}; torch.from_dlpack makes a "
            "tensor of it without a copy"
        )
    return CupyArrays(example)


def _unreadable(array: Any, name: str, error: Exception) -> ValueError:
    kind = getattr(array, "dtype", type(array).__name__)
    return ValueError(f"{name} cannot be read by DLPack ({kind}): {error}")


def shape_of(array: Any, rank: int | None, name: str) -> tuple[int, ...]:
    """The array's shape; ValueError, naming the argument, unless it has `rank` dimensions, or any
    number of them where that is None.
    """
    try:
        shape = tuple(array.shape)
    except RuntimeError as error:  # torch's nested tensors
        wanted = "a shape" if rank is None else f"{rank} dimensions"
        raise ValueError(f"{name} must have {wanted}, but: {error}") from error
    if rank is not None and len(shape) != rank:
        raise ValueError(f"{name} must have {rank} dimensions, got shape {shape}")
    return shape


def whole(number: Any) -> int:
    """The number as an int; TypeError for what is none. One that stands for many, which torch has
    where it traces (SymInt), stays as it is: `operator.index` would decide on one of them.
    """
    if type(number) is int or type(number).__name__ == "SymInt":
        return number
    if isinstance(number, bool):  # an int to Python, which NumPy takes for no size
        raise TypeError("a truth value")
    return operator.index(number)


def count_of(number: Any, name: str, least: int = 0) -> int:
    """As `whole`; ValueError, naming the argument, unless it is at least so much."""
    try:
        count = whole(number)
        if count >= least:
            return count
    except TypeError:
        pass  # the same message as for a number that is too small
    raise ValueError(f"{name} must be an int >= {least}, got {number!r}")


def number_of(number: Any, name: str) -> float:
    """As a float; ValueError, naming the argument, for what is no number, or is a tensor whose
    gradient would end here. As in `whole`, one that stands for many stays as it is.
    """
    kind = type(number)
    if kind is float:
        return number
    if kind is int and abs(number) < 2**1000:  # torch.compile of torch 2.4 asks int for no name
        return float(number)
    if kind.__name__ in ("SymInt", "SymFloat"):
        return number
    if is_tensor(number) and number.requires_grad and sys.modules["torch"].is_grad_enabled():
        raise ValueError(f"{name} must be a number, got a tensor that requires a gradient, which "
                         "would end here: detach() it")
    try:
        # float() would read texts, and of NumPy's complex numbers a part.
        is_numpy = isinstance(number, (np.ndarray, np.generic))
        if not (number.dtype.kind in "cSU" if is_numpy else isinstance(number, _TEXTS)):
            return float(number)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass  # the last two are those of 10**400 and of torch's complex numbers
    raise ValueError(f"{name} must be a number, got {number!r}")


def flag_of(flag: Any, name: str) -> bool:
    """True or False, NumPy's too; ValueError, naming the argument, for what is neither."""
    if flag is True or flag is False or isinstance(flag, np.bool_):
        return bool(flag)
    raise ValueError(f"{name} must be True or False, got {flag!r}")


def is_traced(array: Any) -> TypeGuard[Tensor]:
    """Whether torch looks at the call instead of making it: torch.compile, export, jit.trace, fake
    tensors, vmap and the like. Then it goes to `ops.torch_ops`.
    """
    if not is_tensor(array):
        return False
    torch = sys.modules["torch"]
    if type(array) is torch.Tensor or type(array) is torch.nn.Parameter:
        c = torch._C  # asked in every call: the way to each answer counts
        return (
            torch.compiler.is_dynamo_compiling()
            or array.is_meta
            or c._len_torch_dispatch_stack() > 0
            or c._are_functorch_transforms_active()
            or c._functorch.is_legacy_batchedtensor(array)  # is_grads_batched
            or c._get_tracing_state() is not None
            or torch.autograd.forward_ad._current_level >= 0
        )
    return True  # of another class: fake, functional


def widened(array: Any) -> Any:
    """A 16-bit tensor as float32 where autocast made it 16 bits wide; all else as it is.

    Boxes and losses are not made of 16-bit numbers: above 2048 those skip whole pixels.
    """
    if not is_tensor(array) or array.dtype.itemsize != 2 or not array.is_floating_point():
        return array
    torch = sys.modules["torch"]
    return array.float() if torch.is_autocast_enabled(array.device.type) else array


def require_no_gradient(operator: str, names: Sequence[str], *arrays: Any) -> None:
    """ValueError when a gradient is being recorded that the operator would silently end."""
    for array in arrays:
        if is_tensor(array) and array.requires_grad and sys.modules["torch"].is_grad_enabled():
            name = next(name for name, x in zip(names, arrays, strict=True) if x is array)
            raise ValueError(
                f"{operator} has no gradient in {name}, which requires one: "
                "detach() it, or call under torch.no_grad()"
            )


def written(out: Any) -> None:
    """Tells torch, which keeps a book of it, that the engine wrote into the caller's tensor."""
    if not is_tensor(out):
        return
    if out.is_neg():  # memory that is read with the other sign
        out.neg_()
    if not out.is_inference():  # those have no version
        sys.modules["torch"].autograd.graph.increment_version(out)


def is_bfloat16(array: Any) -> bool:
    """Whether an array that is not torch's holds bfloat16, which NumPy has from `ml_dtypes`."""
    return getattr(getattr(array, "dtype", None), "name", None) == "bfloat16"


def is_tensor(array: Any) -> bool:
    """Asked before its members: torch.compile of 2.4 does not follow `getattr` with a default."""
    torch: Any = sys.modules.get("torch")  # whoever holds a tensor has imported it
    # Another thread may be importing it just now: then it has no Tensor yet.
    return hasattr(torch, "Tensor") and isinstance(array, torch.Tensor)


def _require_boxes(boxes: Any, i: int) -> None:
    """What is joined must be of one type, or the mixture's would be named, or taken."""
    dtype = str(boxes.dtype).removeprefix("torch.")
    shape = shape_of(boxes, 2, f"boxes[{i}]")
    if dtype != "float32":
        raise ValueError(f"boxes[{i}] must be float32, got {dtype}")
    if shape[1] != 4:
        raise ValueError(f"boxes[{i}] must be (L, 4) rows of [x1, y1, x2, y2], got {shape}")
