"""Tensors out of pickles: what torch reads is read, equal and with the same strides; what would run is refused."""

from __future__ import annotations

import collections
import io
import os
import pickle
import pickletools
import random
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from graftwork.checkpoints.unpickle import PickledTensors, UnsafePickleError, headers, read_pickle
from graftwork.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(os.environ.get("GRAFTWORK_TEST_DATA", "/nowhere"))
PROTO, STOP, MARK = b"\x80\x02", b".", b"("


def state() -> dict[str, torch.Tensor]:
    """Tensors of all kinds that weights come in: views, transposed, empty, scalar, shared, half precision."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    tensors: dict[str, torch.Tensor] = dict(model.state_dict())
    tensors |= {
        "half": torch.randn(4, 2).to(torch.bfloat16),
        "transposed": torch.randn(4, 6).t(),
        "part": torch.arange(10)[3:7],
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(3.0),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "complex": torch.ones(2, dtype=torch.complex64),
        "flags": torch.tensor([True, False]),
    }
    return tensors | {"tied": tensors["0.weight"]}


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found.dtype, found.shape, found.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
    assert not found.requires_grad
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_read(tmp_path: Path, zipped: bool, protocol: int, mmap: bool) -> None:
    file = tmp_path / "model.bin"
    torch.save(state(), file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    reference = torch.load(file, weights_only=True) if protocol == 2 else state()
    found = read_pickle(file, mmap=mmap)
    assert list(found) == list(reference)
    for name, tensor in reference.items():
        assert_same(found[name], tensor)
        assert_same(PickledTensors.of(file).read(name), tensor)
    assert headers(file) == {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in reference.items()}
    assert found["tied"].data_ptr() == found["0.weight"].data_ptr()


def test_the_versions_that_a_module_notes_beside_its_state(tmp_path: Path) -> None:
    module = torch.nn.BatchNorm1d(4)
    assert "_metadata" in vars(module.state_dict())
    torch.save(module.state_dict(), tmp_path / "a.pt")
    found = read_pickle(tmp_path / "a.pt")
    assert list(found) == list(module.state_dict())
    assert module.load_state_dict(found, strict=True)


def test_dtypes_without_a_storage_class(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.ones(4, 2).to(dtype) for dtype in (torch.float8_e4m3fn, torch.uint16, torch.uint64)}
    torch.save(tensors, tmp_path / "a.pt")
    for name, tensor in read_pickle(tmp_path / "a.pt").items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor.float(), tensors[name].float())


@pytest.mark.skipif(not DATA.is_dir(), reason="real files: set GRAFTWORK_TEST_DATA")
def test_a_real_checkpoint() -> None:
    file = DATA / "weights" / "torchtune_tiny_fair_checkpoint.pt"
    reference = torch.load(file, weights_only=True)
    found = read_pickle(file)
    assert len(found) == len(reference) == 21
    for name, tensor in reference.items():
        assert_same(found[name], tensor)


def test_writing_to_a_mapped_tensor_leaves_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save({"a": torch.ones(3)}, file)
    read_pickle(file)["a"].fill_(7)
    assert torch.equal(read_pickle(file)["a"], torch.ones(3))


@pytest.mark.parametrize("wrap", [lambda t: {"model": t}, lambda t: {"state_dict": {"module": t}, "epoch": 3, "x": []}])
def test_wrapped_state_dicts(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    torch.save(wrap({"a": torch.ones(3)}), tmp_path / "a.pt")
    assert list(read_pickle(tmp_path / "a.pt")) == ["a"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([torch.ones(1)], r"it holds a list, not tensors by name"),
        (torch.ones(1), r"it holds a tensor, not tensors by name"),
        ({"a": torch.ones(1), "step": 3}, r"'step' is an int, not a tensor"),
        ({"layers": {"a": torch.ones(1)}}, r"'layers' is a dict, not a tensor.*under model, state_dict"),
        ({3: torch.ones(1)}, r"'3' is a tensor"),
    ],
)
def test_what_is_no_state_dict_is_said(tmp_path: Path, value: Any, text: str) -> None:
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=text):
        headers(tmp_path / "a.pt")


# Hostile pickles: the marker file shows whether anything ran


class Runs:
    """Pickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _in_zip(path: Path, pickled: bytes, **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in more.items():
            archive.writestr(f"archive/{name.replace('__', '/')}", content)
    return path


def _legacy(path: Path, pickled: bytes) -> Path:
    start = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join([*start, pickled, pickle.dumps([], 2)]))
    return path


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


SYSTEM = f"{os.system.__module__}.system"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "reduce": (b"cos\nsystem\n" + _text("touch ran") + b"\x85R", "os.system"),
    "eval": (b"c__builtin__\neval\n" + _text("1") + b"\x85R", "__builtin__.eval"),
    "builtins eval": (b"cbuiltins\neval\n" + _text("1") + b"\x85R", "builtins.eval"),
    "only named": (b"}" + _text("a") + b"cos\nsystem\ns", "os.system"),
    "nested in a state dict": (b"}(" + _text("a") + b"}(" + _text("b") + b"](cposix\nsystem\neuu", "posix.system"),
    "through the memo": (_text("os") + b"q\x01" + _text("system") + b"q\x02" + b"00h\x01h\x02\x93", "os.system"),
    "stack global from long strings": (b"\x8c\x02os\x8c\x06system\x93)R", "os.system"),
    "stack global without a name": (b"]]\x93", "an import whose name is no text"),
    "instance": (b"(" + _text("touch ran") + b"ios\nsystem\n", "os.system"),
    "object": (b"(cos\nsystem\n" + _text("touch ran") + b"o", "os.system"),
    "new object": (b"csubprocess\nPopen\n" + _text("touch ran") + b"\x85\x81", "subprocess.Popen"),
    "new object with keywords": (b"csubprocess\nPopen\n)}\x92", "subprocess.Popen"),
    "build": (b"ctorch.nn.modules.linear\nLinear\n)\x81}b", "torch.nn.modules.linear.Linear"),
    "getattr": (b"cbuiltins\ngetattr\ncos\nsystem\n" + _text("x") + b"\x86R", "builtins.getattr"),
    "import": (b"cimportlib\nimport_module\n" + _text("os") + b"\x85R", "importlib.import_module"),
    "load from bytes": (b"ctorch.storage\n_load_from_bytes\nC\x01.\x85R", "torch.storage._load_from_bytes"),
    "pickle in a pickle": (b"c_pickle\nloads\nC\x01.\x85R", "_pickle.loads"),
    "dotted name": (
        b"ccollections\nOrderedDict.__init__.__globals__\n",
        "collections.OrderedDict.__init__.__globals__",
    ),
    "another tensor function": (b"ctorch\nhub.load\n", "torch.hub.load"),
    "sparse": (b"ctorch._utils\n_rebuild_sparse_tensor\n", "torch._utils._rebuild_sparse_tensor"),
    "subclass": (b"ctorch._tensor\n_rebuild_from_type_v2\n", "torch._tensor._rebuild_from_type_v2"),
    "extension": (b"\x82\x01", "the instruction EXT1"),
    "buffer": (b"\x97", "the instruction NEXT_BUFFER"),
    "many bytes": (b"cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R", "builtins.bytearray"),
    "escaped name": (b"co\\x73\nsystem\n)R", "os.system"),
}


@pytest.mark.parametrize("wrap", [_in_zip, _legacy])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_pickle_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, wrap: Callable[[Path, bytes], Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    body, named = HOSTILE[what]
    file = wrap(tmp_path / "model.bin", PROTO + body + STOP)
    for read in (headers, read_pickle):
        with pytest.raises(UnsafePickleError) as caught:
            read(file)
        text = str(caught.value)
        assert text.startswith(f"{file}: refused: ")
        assert named in text
        assert "Nothing of it was run; use a safetensors file of this model" in text
    assert list(tmp_path.iterdir()) == [file]


def test_pickles_made_by_pickle_itself_are_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in range(6):
        for hostile in (Runs(os.system, "touch ran"), {"a": torch.ones(1), "b": Runs(exec, "open('ran', 'w')")}):
            torch.save({"model": hostile}, "a.pt", pickle_protocol=max(protocol, 2))
            with pytest.raises(UnsafePickleError, match=rf"names ({SYSTEM}|builtins\.exec|__builtin__\.exec)"):
                read_pickle(Path("a.pt"))
        with pytest.raises(UnsafePickleError, match=f"names {SYSTEM}"):
            Path("b.pt").write_bytes(pickle.dumps(Runs(os.system, "touch ran"), protocol))
            read_pickle(Path("b.pt"))
    assert not Path("ran").exists()


def test_the_safe_globals_of_the_process_widen_nothing(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "b": collections.Counter("x")}, tmp_path / "a.pt")
    with (
        torch.serialization.safe_globals([collections.Counter, Runs]),
        pytest.raises(UnsafePickleError, match=r"names collections\.Counter"),
    ):
        read_pickle(tmp_path / "a.pt")


# Tensors that are not what they seem


def _storage(count: int, kind: str = "FloatStorage", key: str = "0") -> bytes:
    number = pickle.dumps(count, 2)[2:-1]
    return MARK + _text("storage") + f"ctorch\n{kind}\n".encode() + _text(key) + _text("cpu") + number + b"tQ"


def _tensor(storage: bytes, offset: Any, shape: Any, stride: Any, tail: bytes = b"\x89}") -> bytes:
    numbers = b"".join(pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"") for value in (offset, shape, stride))
    return b"}" + _text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n" + MARK + storage + numbers + tail + b"tRs"


STRANGE: dict[str, tuple[bytes, str]] = {
    "a storage of more than the file has": (_tensor(_storage(5), 0, (4,), (1,)), r"to have 20 bytes, and the file has"),
    "a storage that is not there": (_tensor(_storage(4, key="7"), 0, (4,), (1,)), r"storage 7 is to have 16 bytes"),
    "a storage elsewhere": (_tensor(_storage(4, key="../../0"), 0, (4,), (1,)), r"storage \.\./\.\./0 is to have"),
    "fewer than none": (_tensor(_storage(-1), 0, (0,), (1,)), r"storage 0 has -1 numbers"),
    "beyond its storage": (_tensor(_storage(4), 0, (5,), (1,)), r"reaches beyond its storage"),
    "an offset beyond": (_tensor(_storage(4), 1, (2, 2), (2, 1)), r"reaches beyond its storage"),
    "a negative offset": (_tensor(_storage(4), -1, (4,), (1,)), r"a stride that none can have"),
    "a negative stride": (_tensor(_storage(4), 3, (4,), (-1,)), r"a stride that none can have"),
    "a negative size": (_tensor(_storage(4), 0, (-4, -1), (1, 1)), r"a stride that none can have"),
    "a size of 70 bits": (_tensor(_storage(4), 0, (0, 2**70), (1, 1)), r"a stride that none can have"),
    "a terabyte of one number": (_tensor(_storage(4), 0, (2**40,), (0,)), r"lie on each other.*grow when it is copied"),
    "a window that slides": (_tensor(_storage(4), 0, (3, 2), (1, 1)), r"lie on each other"),
    "sizes that are no numbers": (_tensor(_storage(4), 0, (True, 4), (1, 1)), r"no plain numbers"),
    "a size that is a text": (_tensor(_storage(4), 0, "4", (1,)), r"no plain numbers"),
    "more strides than sizes": (_tensor(_storage(4), 0, (4,), (1, 1)), r"no plain numbers"),
    "hooks": (_tensor(_storage(4), 0, (4,), (1,), b"\x89}" + _text("a") + b"Ns"), r"other arguments than torch gives"),
    "metadata": (_tensor(_storage(4), 0, (4,), (1,), b"\x89}}" + _text("a") + b"Ns"), r"other arguments than torch"),
    "too few arguments": (
        b"}" + _text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n)Rs",
        r"_rebuild_tensor_v2 with other arguments than torch does",
    ),
    "no tuple of arguments": (b"}" + _text("a") + b"ctorch\nSize\n]Rs", r"torch\.Size without a list of arguments"),
    "something in a storage's place": (_tensor(b"K\x01", 0, (4,), (1,)), r"other arguments than torch gives"),
    "a parameter of nothing": (
        b"}" + _text("a") + b"ctorch._utils\n_rebuild_parameter\n(N\x89}tRs",
        r"a parameter is rebuilt with other arguments",
    ),
    "a storage called": (b"}" + _text("a") + b"ctorch\nFloatStorage\n)Rs", r"it calls torch\.FloatStorage"),
    "a module beside the pickle": (
        b"}" + _text("a") + MARK + _text("module") + b"tQs",
        r"refers to something that is no",
    ),
    "a reference by text": (b"}" + _text("a") + b"Pstorage\ns", r"refers to something that is no storage"),
    "state of a list": (b"]}b", r"it sets the state of a list"),
    "a set": (b"\x8f", r"the instruction EMPTY_SET"),
    "a key that takes forever to hash": (b"})" + b"2\x86" * 60 + b"Ns", r"a key of type tuple"),
    "an OrderedDict of something": (b"ccollections\nOrderedDict\nK\x03\x85R", r"something else than names and values"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_tensor_that_is_not_what_it_seems_is_refused(tmp_path: Path, what: str) -> None:
    body, text = STRANGE[what]
    file = _in_zip(tmp_path / "a.pt", PROTO + body + STOP, data__0=bytes(16))
    with pytest.raises(UnsafePickleError, match=text):
        read_pickle(file)


def test_the_hand_made_tensor_is_fine_when_it_is_plain(tmp_path: Path) -> None:
    body = _tensor(_storage(4), 1, (1, 3), (3, 1))
    file = _in_zip(tmp_path / "a.pt", PROTO + body + STOP, data__0=torch.arange(4.0).numpy().tobytes())
    assert torch.equal(read_pickle(file)["a"], torch.tensor([[1.0, 2.0, 3.0]]))


def test_names_that_view_one_storage_over_and_over_are_refused(tmp_path: Path) -> None:
    tensor = torch.ones(1000)
    torch.save({str(index): tensor for index in range(100)}, tmp_path / "a.pt")
    with pytest.raises(UnsafePickleError, match=r"4,000 bytes in the file are to become 400,000 bytes"):
        headers(tmp_path / "a.pt")


# Archives that are not what they seem


@pytest.mark.parametrize("name", ["../data/0", "/data/0", "archive//0", "archive\\0"])
def test_an_archive_whose_members_leave_it_is_refused(tmp_path: Path, name: str) -> None:
    file = _in_zip(tmp_path / "a.pt", PROTO + b"}" + STOP)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, b"")
    with pytest.raises(UnsafePickleError, match="a member that leaves it"):
        headers(file)


def test_packed_members_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", PROTO + b"}" + STOP)
        archive.writestr("archive/data/0", bytes(1 << 20))
    with pytest.raises(UnsafePickleError, match=r"member 'archive/data\.pkl' is packed, which torch never does"):
        headers(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    file = _in_zip(tmp_path / "a.pt", PROTO + b"}" + STOP)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/data.pkl", PROTO + b"cos\nsystem\n" + STOP)
    with pytest.raises(UnsafePickleError, match=r"two members of the name 'archive/data\.pkl'"):
        headers(file)


def test_members_that_lie_on_each_other_are_refused(tmp_path: Path) -> None:
    file = _in_zip(tmp_path / "a.pt", PROTO + _tensor(_storage(4), 0, (4,), (1,)) + STOP, data__0=bytes(16))
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the list's entry of the storage, now to start where the pickle does
    content[entry + 42 : entry + 46] = struct.pack("<I", 0)
    file.write_bytes(content)
    with pytest.raises(UnsafePickleError, match=r"member 'archive/data/0' is not where its list says"):
        headers(file)


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    file = _in_zip(tmp_path / "a.pt", PROTO + b"}" + STOP, code__model=b"def forward(self): ...")
    with pytest.raises(UnsafePickleError, match="a TorchScript program, which is code with weights in it"):
        headers(file)


def test_an_archive_of_something_else_is_said(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ModelError, match=r"an archive without the data\.pkl that torch\.save writes"):
        headers(tmp_path / "a.pt")


@pytest.mark.parametrize("keep", [0, 3, 200, 700, -1, -30])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_was_cut_off_is_said(tmp_path: Path, zipped: bool, keep: int) -> None:
    file = tmp_path / "a.pt"
    torch.save({"a": torch.ones(300)}, file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"(fetch it again|reaches beyond the file|safetensors)"):
        headers(file)


@pytest.mark.parametrize(
    "content", [b"hello there", b"\x80", b"\x80\x02", b"\x80\x02h\x05.", b"\x80\x02R.", b"\x80\x02t.", b"0.", b"\xff."]
)
def test_bytes_that_are_no_pickle_are_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"this is no file of torch\.save, or it is damaged: .*; fetch it again"):
        headers(tmp_path / "a.pt")


def test_a_plain_pickle_is_not_torchs(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelError, match=r"a pickle, but none that torch\.save wrote; use a safetensors file"):
        headers(tmp_path / "a.pt")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the file cannot be read: No such file or directory"):
        headers(tmp_path / "a.pt")


def test_every_instruction_is_followed_or_refused(tmp_path: Path) -> None:
    """No instruction of any protocol passes unseen: what this does not follow is refused by its name."""
    from graftwork.checkpoints import pickle_machine

    followed = {*pickle_machine._STEPS, *pickle_machine._CONSTANTS, "PROTO", "FRAME", "STOP"}
    rest = {opcode.name for opcode in pickletools.opcodes} - followed
    assert rest == {
        *("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "EMPTY_SET", "ADDITEMS", "FROZENSET"),
    }


def test_values_are_those_of_python(tmp_path: Path) -> None:
    """The stack machine gives what ``pickle.loads`` gives, for plain values in every protocol."""
    from graftwork.checkpoints.pickle_machine import follow
    from graftwork.checkpoints.pickle_tensors import TensorRules

    shared = ["x", 1.5, -3, 2**70, True, None, b"bytes", ("t",), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, []]
    value = {"a": shared, "b": {"c": shared, 1: "\u00e9\U0001f600"}, "d": tuple(range(300)), "e": {"f": 1}}
    for protocol in range(6):
        if protocol < 3:
            shared[6] = "bytes"
        pickled = pickle.dumps(value, protocol)
        assert follow(io.BytesIO(pickled), TensorRules(tmp_path)) == pickle.loads(pickled)
        shared[6] = b"bytes"


@pytest.mark.parametrize("zipped", [True, False])
def test_damage_of_any_kind_is_told_and_nothing_else(tmp_path: Path, zipped: bool) -> None:
    """Bytes changed at random: the tensors are read, or the file is refused, and no other error gets out."""
    stream = io.BytesIO()
    torch.save({"model": {"a": torch.arange(6.0).view(2, 3)}}, stream, _use_new_zipfile_serialization=zipped)
    content, chance = stream.getvalue(), random.Random(zipped)
    refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 2, 5))):
            damaged[chance.randrange(min(len(damaged), 1200))] = chance.randrange(256)
        (tmp_path / "a.pt").write_bytes(damaged)
        try:
            assert all(isinstance(tensor, torch.Tensor) for tensor in read_pickle(tmp_path / "a.pt").values())
        except ModelError:
            refused += 1
    assert refused > 100
