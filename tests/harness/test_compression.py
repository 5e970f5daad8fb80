"""Large artifacts: smaller on the disk, and bit for bit the same when they are read."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.harness.core.cell_names import CellName
from aftershock.harness.core.errors import AftershockError
from aftershock.harness.store.artifacts import Artifact, ArtifactTensors
from aftershock.harness.store.compression import _STRIP, DamagedTensorError, compress, decompress, read_metadata
from aftershock.harness.store.run_directory import Store
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors import safe_open
from support.cells import artifact, ledger, replace_record
from torch import Tensor

KEY, NAME = "a" * 64, CellName("digits", "mlp", 0, "thing")
DRAWS = torch.Generator().manual_seed(0)


def relu(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=DRAWS).clamp(min=0)


def bits(*shape: int) -> Tensor:
    """Packed bits, most of which are 0 in each place."""
    rare = torch.rand(*shape, 8, generator=DRAWS) < 0.15
    return torch.from_numpy(np.packbits(rare.numpy(), axis=-1)).squeeze(-1)


ODD = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45])
TENSORS = {
    "one-strip": bits(9000, 64 * 8)[:, :_STRIP].contiguous(),
    "bits": bits(256, 512),
    "some-rows": bits(3, 64 * 400),
    "activations": relu(200, 3, 16),
    "many": relu(256, 256),
    "images": (torch.rand(64, 3, 32, 32, generator=DRAWS) * 255).round() / 255,
    "odd": ODD.repeat(5000),
    "doubles": relu(100, 100).double(),
    "zeros": torch.zeros(50_000),
    "long": torch.arange(50_000) // 100,
    "noise": torch.randint(-(2**31), 2**31 - 1, (100, 300), dtype=torch.int32, generator=DRAWS),
    "few": torch.arange(5),
    "none": torch.empty(0, 7),
    "one": torch.tensor(3.0),
    "flags": torch.rand(70_000, generator=DRAWS) < 0.5,
    "half": relu(300, 300).bfloat16(),
}


def test_tensors_that_are_read_in_slices_are_decompressed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taps = {str(i): bits(2048, 1024) for i in range(4)}
    times = []

    def counted(data: bytes, about: Any) -> Any:
        times.append(len(data))
        return decompress(data, about)

    monkeypatch.setattr("aftershock.harness.store.artifacts.decompress", counted)
    with Store(tmp_path / "run") as store:
        store.put(KEY, NAME, Artifact.of(taps), {}, 0.0)
        for start in range(0, 2048, 256):
            for name, tap in taps.items():
                assert torch.equal(store.tensor(KEY, name)[start : start + 256], tap[start : start + 256])
    assert len(times) == len(taps)


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    tensor = TENSORS[name]
    held = {name: tensor, "beside": relu(300, 300)}
    with Store(tmp_path) as store:
        store.put(KEY, NAME, Artifact.of(held), {}, 0.0)
        for found in (store.load(KEY)[name], store.tensor(KEY, name), store.tensor(KEY, name)):
            assert found.dtype == tensor.dtype and found.shape == tensor.shape
            assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8)) if tensor.ndim else found == tensor
            # What is given away is the receiver's own.
            if found.numel():
                found.zero_()


def test_a_tensor_that_was_read_can_be_written_into(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Torch says it once in a process.
    monkeypatch.setattr(torch, "from_numpy", lambda array, make=torch.from_numpy: make(writeable(array)))
    with Store(tmp_path / "run") as store:
        for number, (name, tensor) in enumerate(TENSORS.items()):
            key = f"{number:064x}"
            store.put(key, NAME, Artifact.of({name: tensor}), {}, 0.0)
            for found in (store.load(key)[name], store.tensor(key, name)):
                found.zero_()
            assert torch.equal(store.load(key)[name].nan_to_num(), tensor.nan_to_num()), name
    assert not [str(w.message) for w in recwarn if "writable" in str(w.message)]


def writeable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    assert array.flags.writeable
    return array


def test_what_is_compressed_is_smaller_and_what_is_not_is_read_in_place(tmp_path: Path) -> None:
    sizes = {name: Artifact.of({name: tensor}).size for name, tensor in TENSORS.items()}
    share = {name: sizes[name] / (t.numel() * t.element_size()) for name, t in TENSORS.items() if t.numel() > 60_000}
    assert share["bits"] < 0.75 and share["many"] < 0.6 and share["images"] < 0.5
    with Store(tmp_path) as store:
        store.put(KEY, NAME, Artifact.of({n: TENSORS[n] for n in ("noise", "many")}), {}, 0.0)
    with safe_open(artifact(tmp_path, KEY), "pt") as stream:
        assert read_metadata(stream.metadata()["compressed"]).keys() == {"many"}
        assert torch.equal(stream.get_tensor("noise"), TENSORS["noise"])


@settings(max_examples=30, deadline=None)
@given(
    arrays(
        st.sampled_from(["float32", "float64", "float16", "uint8", "int64"]),
        array_shapes(min_dims=1, max_dims=3, max_side=9),
        elements={"allow_subnormal": True},
    ),
    st.integers(2000, 4000),
)
def test_any_array_comes_back(array: np.ndarray[Any, Any], times: int) -> None:
    whole = np.tile(array, (times, *[1] * (array.ndim - 1)))
    found = compress(whole)
    if found is not None:
        back = decompress(found[1], {"how": found[0], "dtype": whole.dtype.name, "shape": whole.shape})
        assert back.dtype == whole.dtype and back.shape == whole.shape and back.tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"how": "other"}, {"how": "strips"}, {"how": "plain"}, {"dtype": "object"}, {"dtype": "float64"},
        {"shape": [10**6, 10**6]}, {"shape": [-1, -256]}, {"shape": "x"}, {"shape": [255, 256]}, {"shape": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_file_says_of_a_compressed_tensor_is_checked(change: dict[str, Any], tmp_path: Path) -> None:
    how, data = compress(TENSORS["many"].numpy()) or ("", b"")
    about = {"how": how, "dtype": "float32", "shape": [256, 256], **change}
    with pytest.raises(DamagedTensorError):
        decompress(data, about)


def test_a_stream_that_grows_without_end_is_refused() -> None:
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = bomb.compress(bytes(10**8)) + bomb.flush()
    with pytest.raises(DamagedTensorError):
        decompress(data, {"how": "plain", "dtype": "uint8", "shape": [1000]})
    for text in ("[]", "{", '{"x": 1}'):
        with pytest.raises(DamagedTensorError):
            read_metadata(text)


def test_a_compressed_tensor_that_somebody_made_wrong_is_a_sentence(tmp_path: Path) -> None:
    from dataclasses import replace

    with Store(tmp_path) as store:
        store.put(KEY, NAME, Artifact.of({"x": TENSORS["many"]}), {}, 0.0)
    path = artifact(tmp_path, KEY)
    data = path.read_bytes()
    wrong = data.replace(json.dumps([256, 256])[:-1].encode(), json.dumps([256, 257])[:-1].encode())
    assert wrong != data
    path.write_bytes(wrong)
    import hashlib

    replace_record(tmp_path, replace(ledger(tmp_path)[KEY], digest=hashlib.sha256(wrong).hexdigest()))
    with Store(tmp_path) as store:
        assert store.find(KEY) is not None
        with pytest.raises(AftershockError, match="damaged"):
            store.load(KEY)


@pytest.mark.parametrize(("count", "fits"), [(15, True), (17, False)])
def test_an_artifact_has_four_gib_of_tensors_together(
    count: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The limit is that of 16 of these tensors, one of which is not compressed.
    tensors = {str(i): TENSORS["many"] for i in range(count - 1)} | {"plain": TENSORS["noise"][:65536]}
    limit = 16 * TENSORS["many"].nbytes
    with Store(tmp_path) as store:
        store.put(KEY, NAME, Artifact.of(tensors), {}, 0.0)
        monkeypatch.setattr("aftershock.harness.store.artifacts.TENSORS_LIMIT", limit)
        if fits:
            assert store.load(KEY).keys() == tensors.keys()
            return
        monkeypatch.setattr("aftershock.harness.store.artifacts.decompress", None)
        for read in (lambda: store.load(KEY), lambda: store.tensor(KEY, "0")):
            with pytest.raises(AftershockError, match="damaged"):
                read()


@pytest.mark.parametrize("shape", [[-1], None, "x", [10**30], [float("inf")]], ids=str)
def test_what_an_artifact_says_of_sizes_is_checked_before_anything_is_read(shape: Any) -> None:
    about = {"x": {"how": "plain", "dtype": "uint8", "shape": shape}}
    with pytest.raises(DamagedTensorError):
        ArtifactTensors(["x"], lambda name: TENSORS["many"], {"compressed": json.dumps(about)}, 0)
