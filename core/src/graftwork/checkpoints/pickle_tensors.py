"""Which tensors a file of ``torch.save`` holds and where their bytes lie, read without torch and without running it.

Two layouts: the zip archive that torch writes since 1.6, and the row of pickles with raw storages behind it that
it wrote before. Allowed are tensors of plain storages in plain containers. Everything else is refused, and what
the pickle would have imported is named. ``torch.load(weights_only=True)`` is not strict enough for this: it calls
constructors and rebuilding functions with whatever arguments the file gives (``bytearray(10**12)``, a tensor that
is one byte in the file and a terabyte when copied), any library in the process can widen its list, and it cannot
say which global a newer protocol names.
"""

from __future__ import annotations

import io
import mmap
import struct
import sys
import zipfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from graftwork.checkpoints.pickle_machine import follow
from graftwork.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

REMEDY = "use a safetensors file of this model: ask its author for one, or convert it where you trust it"

ITEM_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32", "complex32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    "complex128": 16,
}
"""The bytes of one number, by the name of torch's dtype."""

_STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.storage.UntypedStorage": "uint8",
}
_DTYPES = {f"torch.{name}": name for name in ITEM_BYTES}
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
_MOST_COPIES = 64  # layers that share their weights; more is a file that is meant to grow
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class UnsafePickleError(ModelError):
    """A pickle would do more than give tensors. Nothing of it was run."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the file describes it: ``stride`` and ``offset`` count numbers, ``start`` and ``size`` bytes of the
    storage that it views.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    start: int
    size: int


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name, out of ``{"model": ...}``, ``{"state_dict": ...}`` and the like where needed.

    Raises :class:`UnsafePickleError` for a pickle that would do anything else, :class:`ModelError` for a file that is
    damaged or no file of ``torch.save``.
    """
    value, rules = _described(path)
    described = _tensors_of(value, path)
    _check_growth(described.values(), path)
    return {name: rules.placed(tensor) for name, tensor in described.items()}


def stored_values(path: Path) -> Any:
    """The whole value of a file, a run's state for one: plain containers, with a :class:`StoredTensor` for each tensor.

    Raises as :func:`stored_tensors` does.
    """
    value, rules = _described(path)
    tensors: list[_Tensor] = []

    def placed(leaf: Any) -> Any:
        if isinstance(leaf, _Tensor):
            tensors.append(leaf)
            return rules.placed(leaf)
        if isinstance(leaf, _Storage | _Named):
            raise rules.refusal("it holds something that is neither a tensor nor plain data")
        return leaf

    try:
        whole = changed(value, placed, {})
    except RecursionError:
        raise rules.refusal("its containers lie too deep in each other") from None
    _check_growth(tensors, path)
    return whole


def changed(value: Any, change: Callable[[Any], Any], done: dict[int, Any]) -> Any:
    """``value`` with ``change`` done to all that is no container; what stands in several places is one there too."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, dict):
        filled: dict[Any, Any] = {}
        done[id(value)] = filled
        filled.update({key: changed(item, change, done) for key, item in value.items()})
    elif isinstance(value, list):
        items: list[Any] = []
        done[id(value)] = items
        items.extend(changed(item, change, done) for item in value)
    elif isinstance(value, tuple):
        done[id(value)] = tuple(changed(item, change, done) for item in value)
    else:
        done[id(value)] = change(value)
    return done[id(value)]


def _described(path: Path) -> tuple[Any, TensorRules]:
    rules = TensorRules(path)
    try:
        with path.open("rb") as file:
            head = file.read(16)
            value = _read_zip(file, rules) if head.startswith(b"PK") else _read_legacy(file, head, rules)
    except (ValueError, OverflowError, EOFError, NotImplementedError, zipfile.BadZipFile, struct.error) as error:
        raise ModelError(f"{path}: this is no file of torch.save, or it is damaged: {error}; fetch it again") from error
    except OSError as error:
        raise ModelError(f"{path}: the file cannot be read: {error.strerror or error}") from error
    return value, rules


# What the pickle may say


@dataclass(frozen=True, slots=True)
class _Named:
    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class TensorRules:
    """Allows what ``torch.save`` writes for plain containers of plain tensors, and describes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[str, tuple[int, int]] = {}  # of each storage: first byte, number of bytes
        self.storages: dict[str, _Storage] = {}

    def named(self, module: str, name: str) -> _Named:
        full = f"{module}.{name}"
        if full not in TENSOR_GLOBALS:
            raise UnsafePickleError(
                f"{self.path}: refused: its pickle names {full[:120]}, which is no part of a tensor and could run "
                f"code. Nothing of it was run; {REMEDY}"
            )
        return _Named(full)

    def called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Named) or function.name not in _CALLS:
            raise self.refusal(f"it calls {_said(function)}")
        if not isinstance(arguments, tuple):
            raise self.refusal(f"it calls {function.name} without a list of arguments")
        try:
            return _CALLS[function.name](self, *arguments)
        except TypeError as error:
            raise self.refusal(f"it calls {function.name} with other arguments than torch does") from error

    def built(self, target: Any, state: Any) -> None:
        """The attribute ``_metadata`` of a state dict is all that torch sets, and it holds version numbers."""
        if not isinstance(target, dict) or not isinstance(state, dict):
            raise self.refusal(f"it sets the state of {_said(target)}")

    def referred(self, identity: Any) -> _Storage:
        match identity:
            case ("storage", _Named(name=kind), str(key), str(), int(count), *view) if kind in _STORAGES:
                if any(part is not None for part in view):
                    raise self.refusal(f"storage {key} is a view of another one")
                storage = _Storage(key, _STORAGES[kind], count)
                self.storages.setdefault(key, storage)
                self.check_storage(storage)
                return storage
        raise self.refusal("it refers to something that is no storage")

    def unusual(self, what: str) -> Any:
        raise self.refusal(f"it has {what}")

    def refusal(self, what: str) -> UnsafePickleError:
        return UnsafePickleError(
            f"{self.path}: refused: its pickle is no plain state dict: {what}. Nothing of it was run; {REMEDY}"
        )

    def check_storage(self, storage: _Storage) -> None:
        wanted = storage.count * ITEM_BYTES[storage.dtype]
        if storage.count < 0:
            raise self.refusal(f"storage {storage.key} has {storage.count} numbers")
        if self.places and (storage.key not in self.places or self.places[storage.key][1] < wanted):
            there = self.places.get(storage.key, (0, 0))[1]
            raise self.refusal(f"storage {storage.key} is to have {wanted:,} bytes, and the file has {there:,} of it")

    def placed(self, tensor: _Tensor) -> StoredTensor:
        start, size = self.places[tensor.storage.key]
        return StoredTensor(tensor.dtype, tensor.shape, tensor.stride, tensor.offset, start, size)

    def tensor(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        stride: Any,
        requires_grad: Any = False,
        hooks: Any = None,
        metadata: Any = None,
        *,
        dtype: str | None = None,
    ) -> _Tensor:
        """``torch._utils._rebuild_tensor_v2``, with every argument checked to describe a part of its storage."""
        if not isinstance(storage, _Storage) or not isinstance(requires_grad, bool) or hooks or metadata:
            raise self.refusal("a tensor is rebuilt with other arguments than torch gives")
        numbers = (offset, *_numbers(shape), *_numbers(stride))
        if None in numbers or len(shape) != len(stride):
            raise self.refusal("a tensor's shape, stride and offset are no plain numbers")
        if min(numbers) < 0 or max(numbers) >= 2**63:
            raise self.refusal(f"a tensor has an offset, a shape or a stride that none can have: {numbers[:9]}")
        kind = dtype or storage.dtype
        room = storage.count * ITEM_BYTES[storage.dtype] // ITEM_BYTES[kind]
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if last >= room if 0 not in shape else offset > room:
            raise self.refusal(f"a tensor of shape {list(shape)[:8]} reaches beyond its storage {storage.key}")
        if _overlaps(shape, stride):
            raise self.refusal(
                f"a tensor of shape {list(shape)[:8]} has the strides {list(stride)[:8]}: its numbers lie on each "
                "other, so that it would grow when it is copied"
            )
        return _Tensor(storage, kind, offset, tuple(shape), tuple(stride))

    def tensor_of_dtype(self, *arguments: Any) -> _Tensor:
        """``torch._utils._rebuild_tensor_v3``: the dtype is an argument, as there is no storage class for it."""
        *head, dtype = arguments[:7]
        if len(head) != 6 or not isinstance(dtype, _Named) or dtype.name not in _DTYPES:
            raise self.refusal("a tensor is rebuilt with other arguments than torch gives")
        return self.tensor(*head, *arguments[7:], dtype=_DTYPES[dtype.name])

    def parameter(self, data: Any, requires_grad: Any, hooks: Any) -> _Tensor:
        if not isinstance(data, _Tensor) or not isinstance(requires_grad, bool) or hooks:
            raise self.refusal("a parameter is rebuilt with other arguments than torch gives")
        return data

    def ordered_dict(self, pairs: Any = ()) -> dict[Any, Any]:
        if not isinstance(pairs, list | tuple) or not all(
            isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
        ):
            raise self.refusal("an OrderedDict is made of something else than names and values")
        return dict(pairs)

    def size(self, numbers: Any = ()) -> tuple[int, ...]:
        if None in _numbers(numbers):
            raise self.refusal("a torch.Size is made of something else than numbers")
        return tuple(numbers)


_CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": TensorRules.ordered_dict,
    "torch.Size": TensorRules.size,
    "torch._utils._rebuild_tensor": TensorRules.tensor,
    "torch._utils._rebuild_tensor_v2": TensorRules.tensor,
    "torch._utils._rebuild_tensor_v3": TensorRules.tensor_of_dtype,
    "torch._utils._rebuild_parameter": TensorRules.parameter,
}

TENSOR_GLOBALS = frozenset({*_CALLS, *_STORAGES, *_DTYPES})
"""All that a pickle of tensors names."""


def _said(value: Any) -> str:
    if isinstance(value, _Named):
        return value.name
    kind = type(value).__name__.strip("_").lower()
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _numbers(value: Any) -> list[int | None]:
    """The integers of a sequence, None for what is not one: to torch, True is no size."""
    if not isinstance(value, list | tuple):
        return [None]
    return [number if type(number) is int else None for number in value]


def _overlaps(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether two numbers of a tensor may lie at one place."""
    if 0 in shape:
        return False
    reach = 0
    for step, size in sorted((step, size) for step, size in zip(stride, shape, strict=True) if size > 1):
        if step <= reach:
            return True
        reach += (size - 1) * step
    return False


# Which of the pickle's values are the weights


def _tensors_of(value: Any, path: Path) -> dict[str, _Tensor]:
    for _ in _WRAPPERS:
        if not isinstance(value, dict) or any(isinstance(item, _Tensor) for item in value.values()):
            break
        inner = [value[name] for name in _WRAPPERS if isinstance(value.get(name), dict)]
        if not inner:
            break
        value = inner[0]
    if not isinstance(value, dict):
        raise ModelError(f"{path}: it holds {_said(value)}, not tensors by name; {REMEDY}")
    for name, item in value.items():
        if not isinstance(name, str) or not isinstance(item, _Tensor):
            raise ModelError(
                f"{path}: {str(name)[:80]!r} is {_said(item)}, not a tensor. A file of weights holds tensors by name, "
                f"by itself or under {', '.join(_WRAPPERS)}; {REMEDY}"
            )
    return value


def _check_growth(tensors: Collection[_Tensor], path: Path) -> None:
    storages = {tensor.storage.key: tensor.storage for tensor in tensors}
    there = sum(storage.count * ITEM_BYTES[storage.dtype] for storage in storages.values())
    total = 0
    for tensor in tensors:
        count = 1
        for size in tensor.shape:
            count *= size
        total += count * ITEM_BYTES[tensor.dtype]
    if total > _MOST_COPIES * there:
        raise UnsafePickleError(
            f"{path}: refused: {there:,} bytes in the file are to become {total:,} bytes of tensors that all view the "
            f"same storages; {REMEDY}"
        )


# The two layouts


def _read_zip(file: IO[bytes], rules: TensorRules) -> Any:
    with zipfile.ZipFile(file) as archive:
        root, members = _members(archive, rules)
        order = archive.read(f"{root}/byteorder") if f"{root}/byteorder" in members else b"little"
        if order.decode("ascii", "replace") != sys.byteorder:
            raise ModelError(f"{rules.path}: its numbers are {order[:10]!r} endian, this machine's are not; {REMEDY}")
        starts = _data_starts(file, archive, rules)
        prefix = f"{root}/data/"
        rules.places = {
            name.removeprefix(prefix): (starts[name], info.file_size)
            for name, info in members.items()
            if name.startswith(prefix)
        }
        rules.places.setdefault("", (0, 0))  # a file without storages has places too: none
        return follow(io.BytesIO(archive.read(f"{root}/data.pkl")), rules)


def _members(archive: zipfile.ZipFile, rules: TensorRules) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        parts = info.filename.split("/")
        if ".." in parts or "" in parts[:-1] or "\\" in info.filename:
            raise rules.refusal(f"its archive has a member that leaves it: {info.filename[:80]!r}")
        if info.filename in members:
            raise rules.refusal(f"its archive has two members of the name {info.filename[:80]!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise rules.refusal(f"its archive's member {info.filename[:80]!r} is packed, which torch never does")
        members[info.filename] = info
    roots = [name.removesuffix("/data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ModelError(f"{rules.path}: an archive without the data.pkl that torch.save writes; {REMEDY}")
    if f"{roots[0]}/constants.pkl" in members or any(name.startswith(f"{roots[0]}/code/") for name in members):
        raise UnsafePickleError(
            f"{rules.path}: refused: a TorchScript program, which is code with weights in it; {REMEDY}"
        )
    return roots[0], members


def _data_starts(file: IO[bytes], archive: zipfile.ZipFile, rules: TensorRules) -> dict[str, int]:
    """Where each member's bytes begin, by the header before them; members may not lie on each other."""
    starts: dict[str, int] = {}
    end = 0
    for info in sorted(archive.infolist(), key=lambda member: member.header_offset):
        file.seek(info.header_offset)
        signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        name = file.read(name_bytes).decode("utf-8", "replace")
        start = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        if signature != b"PK\x03\x04" or name != info.filename or info.header_offset < end:
            raise rules.refusal(f"its archive's member {info.filename[:80]!r} is not where its list says")
        end = start + info.file_size
        starts[info.filename] = start
    if end > archive.start_dir:
        raise rules.refusal("its archive's members reach beyond its end")
    return starts


def _read_legacy(file: IO[bytes], head: bytes, rules: TensorRules) -> Any:
    """Magic number, protocol, machine; the pickle; the storages' keys; and each storage: its length, its bytes."""
    if not head:
        raise ModelError(f"{rules.path}: the file is empty; fetch it again")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        first = follow(stream, rules)  # type: ignore[arg-type]
        if first != _LEGACY_MAGIC or follow(stream, rules) != _LEGACY_PROTOCOL:  # type: ignore[arg-type]
            raise ModelError(f"{rules.path}: a pickle, but none that torch.save wrote; {REMEDY}")
        machine = follow(stream, rules)  # type: ignore[arg-type]
        if not isinstance(machine, dict) or machine.get("little_endian") != (sys.byteorder == "little"):
            raise ModelError(f"{rules.path}: written on a machine of the other byte order; {REMEDY}")
        value = follow(stream, rules)  # type: ignore[arg-type]
        keys = follow(stream, rules)  # type: ignore[arg-type]
        rules.places = _legacy_places(stream, keys, rules)
    for storage in rules.storages.values():
        rules.check_storage(storage)
    return value


def _legacy_places(stream: mmap.mmap, keys: Any, rules: TensorRules) -> dict[str, tuple[int, int]]:
    if not isinstance(keys, list) or set(map(str, keys)) != set(rules.storages):
        raise rules.refusal("its list of storages is not that of its tensors")
    places = {"": (0, 0)}
    position = stream.tell()
    for key in map(str, keys):
        (count,) = struct.unpack("<q", stream[position : position + 8])
        start = position + 8
        size = count * ITEM_BYTES[rules.storages[key].dtype]
        if count < 0 or start + size > len(stream):
            raise rules.refusal(f"storage {key} of {count:,} numbers reaches beyond the file")
        places[key] = (start, size)
        position = start + size
    return places
