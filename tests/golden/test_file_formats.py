"""Files of format 1 as they have always been: what is written today reads them, and is read by what wrote them."""

import copy
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crosscode.activations import BatchTopK, SeparateBudgets
from crosscode.models import DenseEncoder, SharedDecoder, SparseCoder
from crosscode.saving import NotLoadable, load, save

SPEC = {
    "format": 1,
    "coder": {
        "class": "crosscode.models.SparseCoder",
        "fields": {
            "encoder": {
                "class": "crosscode.models.DenseEncoder",
                "fields": {"in_dims": [2], "d_in": 3, "n_latents": 4, "bias": True, "widths_Xi": None},
            },
            "activation": {
                "class": "crosscode.activations.SeparateBudgets",
                "fields": {
                    name: {
                        "class": "crosscode.activations.BatchTopK",
                        "fields": {
                            "k": k,
                            "weighted": True,
                            "norm": "l1_of_l2",
                            "ema_decay": 0.999,
                            "ema_start": 1000,
                        },
                    }
                    for name, k in (("shared", 1), ("exclusive", 2))
                }
                | {"n_shared": 1},
            },
            "decoder": {
                "class": "crosscode.models.SharedDecoder",
                "fields": {
                    "n_latents": 4,
                    "n_shared": 1,
                    "out_dims": [2],
                    "d_out": 3,
                    "bias": True,
                    "widths_Xo": None,
                },
            },
            "skip": None,
        },
    },
}
SIZES = {
    "scale_in_Xi": (2,),
    "scale_out_Xo": (2,),
    "shift_in_XiDi": (2, 3),
    "shift_out_XoDo": (2, 3),
    "encoder.W_enc_XiDiL": (2, 3, 4),
    "encoder.b_enc_L": (4,),
    "decoder.W_shared_LsPD": (1, 3),
    "decoder.W_exclusive_LfMPD": (3, 2, 3),
    "decoder.b_dec_XoDo": (2, 3),
}
THRESHOLDS = {"activation.shared.threshold": 0.25, "activation.exclusive.threshold": 1 / 3}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.rand(size, generator=generator) + 0.5 for name, size in SIZES.items()}
    return drawn | {name: torch.tensor(value, dtype=torch.float64) for name, value in THRESHOLDS.items()}


def test_a_coder_of_format_1_is_read(tmp_path: Path) -> None:
    """With its checksum or without: every tensor by its name, in its precision, in eval mode."""
    save_file(tensors(), tmp_path / "model.safetensors")
    checksum = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    former = json.loads(json.dumps(SPEC))  # annealing of k once was two fields beside it
    for name in ("shared", "exclusive"):
        former["coder"]["fields"]["activation"]["fields"][name]["fields"] |= {"k_start": None, "anneal_steps": 0}
    for spec in (SPEC, {**SPEC, "sha256": checksum}, former):
        (tmp_path / "coder.json").write_text(json.dumps(spec))
        coder = load(tmp_path)
        assert not coder.training
        stored = coder.state_dict()
        assert stored.keys() == tensors().keys()
        for name, tensor in tensors().items():
            assert torch.equal(stored[name], tensor), name
            assert stored[name].dtype == tensor.dtype


def test_a_field_that_another_version_has_is_read_where_it_says_nothing(tmp_path: Path) -> None:
    """Earlier encoders had a mask, mostly none: such files are read, one with a mask is refused by that name."""
    save_file(tensors(), tmp_path / "model.safetensors")
    spec = copy.deepcopy(SPEC)
    for mask in (None, [0]):
        spec["coder"]["fields"]["encoder"]["fields"]["mask"] = mask
        (tmp_path / "coder.json").write_text(json.dumps(spec))
        if mask is None:
            load(tmp_path)
        else:
            with pytest.raises(NotLoadable, match="mask"):
                load(tmp_path)


def test_a_coder_is_written_in_format_1(tmp_path: Path) -> None:
    """The same names, fields and precisions, and the checksum of the weights; the directory is told."""
    coder = SparseCoder(
        DenseEncoder((2,), 3, 4), SeparateBudgets(BatchTopK(1), BatchTopK(2), 1), SharedDecoder(4, 1, (2,), 3)
    )
    coder.load_state_dict(tensors())
    directory = tmp_path / "new" / "folder"
    assert save(coder, str(directory)) == directory
    assert {file.name for file in directory.iterdir()} == {"coder.json", "model.safetensors"}
    checksum = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads((directory / "coder.json").read_text()) == {**SPEC, "sha256": checksum}
    written = load_file(directory / "model.safetensors")
    assert written.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert torch.equal(written[name], tensor)
