"""A device that cannot be used: one line says why that one, what is usable, and what was probably meant."""

from typing import Any

import pytest
import torch

from crosscode.checks import usable_device, usable_dtype
from crosscode.errors import BadInput


def refusal(device: Any) -> str:
    with pytest.raises(BadInput) as refused:
        usable_device(device)
    line = str(refused.value)
    assert line.startswith(f"device {str(device)!r} is not available here: ")
    assert "\n" not in line
    assert ".." not in line
    assert len(line) < 400
    return line


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As in a build of torch for CUDA, on a machine with so many GPUs."""

    def there_are(n: int, built: bool = True) -> None:
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
        monkeypatch.setattr(torch.xpu, "device_count", lambda: 0)

    return there_are


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *(("gpu", "cuda"), ("GPU", "cuda"), ("gpu:1", "cuda:1"), ("Cuda", "cuda"), ("CUDA:0", "cuda:0")),
        ("CPU", "cpu"),
        *(("cdua", "cuda"), ("cud", "cuda"), ("metal", "mps"), ("MPS", "mps"), ("rocm", "cuda"), ("nvidia", "cuda")),
    ],
)
def test_a_misspelt_device_is_guessed(written: str, meant: str) -> None:
    assert f"torch has no device of that name. Did you mean '{meant}'?" in refusal(written)


@pytest.mark.parametrize("written", ["", "abacus", "banana:3"])
def test_a_device_that_is_none_lists_those_that_are(written: Any) -> None:
    line = refusal(written)
    assert "torch has no device of that name" in line
    assert "Usable: cpu" in line


@pytest.mark.parametrize("written", ["cuda:x", "cuda:-1", "cuda:", "cpu:first"])
def test_a_place_is_a_number(written: str) -> None:
    kind, _, place = written.partition(":")
    assert f"{place!r} is no number; a device is called {kind}, or {kind}:0 by its place" in refusal(written)


def test_a_build_without_cuda_says_so(gpus) -> None:
    """And where to get one; `cpu` is what can be used meanwhile."""
    gpus(0, built=False)
    for written in ("cuda", "cuda:7"):
        line = refusal(written)
        assert f"this torch ({torch.__version__}) was built without CUDA" in line
        assert "https://pytorch.org/get-started" in line
        assert "Usable: cpu." in line


def test_a_machine_without_a_gpu_says_so(gpus) -> None:
    gpus(0)
    assert "finds no NVIDIA or AMD GPU" in refusal("cuda")
    assert "CUDA_VISIBLE_DEVICES" in refusal("cuda:0")
    assert "finds no Intel GPU" in refusal("xpu")


def test_fewer_gpus_than_asked_for(gpus) -> None:
    gpus(1)
    assert "there is 1, counted from cuda:0. Usable: cpu, cuda:0." in refusal("cuda:7")
    gpus(2)
    assert "there are 2, counted from cuda:0. Usable: cpu, cuda:0, cuda:1." in refusal("cuda:2")


def test_a_gpu_that_the_build_is_not_for_is_refused(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found by computing, not by asking; what torch says stands in the line."""
    gpus(1)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device.\nCUDA kernel errors")

    monkeypatch.setattr(torch, "zeros", fails)
    assert "no kernel image is available for execution on the device. Usable" in refusal("cuda")


def test_devices_without_float64_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's: sums over tokens are kept in float64."""
    assert "was built without MPS, which is for Macs" in refusal("mps")
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    monkeypatch.setattr(torch, "zeros", fails)
    assert "it has no float64, in which sums are kept" in refusal("mps")


def test_what_holds_no_values_computes_nothing() -> None:
    assert "it holds no values" in refusal("meta")
    assert "it holds no values" in refusal(torch.device("meta"))
    assert "there is one cpu" in refusal("cpu:1")


@pytest.mark.parametrize("exotic", ["xla", "hpu", "vulkan", "privateuseone", "hip"])
def test_other_backends_are_one_line(exotic: str) -> None:
    """Whatever torch raises for them, of any length and kind."""
    assert "Usable: cpu" in refusal(exotic)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")])
def test_the_cpu_is_always_usable(device: Any) -> None:
    """Under one name, so that what lies there compares equal."""
    assert usable_device(device) == torch.device("cpu")


def test_a_dtype_that_a_device_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the option that asked for it; nothing is tried where nothing can be computed."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        usable_dtype("model_dtype", str(dtype), dtype, torch.device("cpu"))

    def fails(*args: Any, dtype: torch.dtype, **kwargs: Any) -> Any:
        assert dtype == torch.float16
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    monkeypatch.setattr(torch, "ones", fails)
    with pytest.raises(BadInput, match=r"model_dtype='float16' cannot be computed on device 'cpu'.*Half.*Take float32"):
        usable_dtype("model_dtype", "float16", torch.float16, torch.device("cpu"))
    usable_dtype("precision", "bf16", torch.bfloat16, torch.device("meta"))
