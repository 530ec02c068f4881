"""Coders on disk: `model.safetensors` and a readable `coder.json`. Files are data: loading runs no code of theirs.

A part's attrs fields are its spec, so nothing is written by hand and nothing can be forgotten. A spec names only parts
of `crosscode`; a user's own class is handed to `load`. A tensor of several names (tied weights) is stored once, and the
spec says which names are tied to it.
"""

import importlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
import torch
from torch import nn

from crosscode.checks import shown, usable_device
from crosscode.errors import DAMAGE, BadInput, CrosscodeError, close_match, first_line
from crosscode.files import sha256_of, write_tensors
from crosscode.models import SparseCoder
from crosscode.module import fields_of
from crosscode.run_folder import CODER

SPEC, WEIGHTS = "coder.json", "model.safetensors"
FORMAT = 1
TIED = "tied"  # in the spec's file: names that are stored under another
SHA256 = "sha256"  # of the weights' file, in the spec's; those of a checkpoint are in its manifest
CoderType = TypeVar("CoderType", bound=nn.Module)


class NotLoadable(CrosscodeError):
    """A saved coder is damaged, incomplete or names parts that are not allowed."""


class UnknownClass(NotLoadable):
    """A saved coder names a class that is no part of crosscode and was not handed over."""


def classes_named(directory: str | os.PathLike[str]) -> list[str]:
    """Full names of the classes that a saved coder is made of and crosscode does not have; nothing if it is damaged."""
    found: dict[str, None] = {}

    def walk(spec: Any) -> None:
        for value in spec if isinstance(spec, list) else spec.values() if isinstance(spec, dict) else ():
            walk(value)
        name = spec.get("class") if isinstance(spec, dict) else None
        if isinstance(name, str) and not name.startswith("crosscode."):
            found[name] = None

    try:
        walk(json.loads((Path(directory) / SPEC).read_text())["coder"])
    except (OSError, *DAMAGE):
        return []
    return list(found)


def spec_of(part: object, name: str = "coder") -> Any:
    """What a part was built from, in JSON's types.

    Args:
        part: plain data or an attrs class.
        name: what to call it in messages.

    Raises:
        BadInput: it, or one of its fields, is neither plain data nor an attrs class; the field is named.
    """
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, list | tuple | nn.ModuleList):
        return [spec_of(item, f"{name}[{i}]") for i, item in enumerate(part)]
    if isinstance(part, slice):
        return {"slice": [part.start, part.stop]}
    if attrs.has(type(part)) and not isinstance(part, type):
        fields = {f.name: spec_of(getattr(part, f.name), f"{name}.{f.name}") for f in fields_of(part) if f.init}
        return {"class": class_name(type(part)), "fields": fields}
    if isinstance(part, nn.Module):
        raise BadInput(
            f"{name} is a {type(part).__name__}, which cannot be saved: make its class a @module (crosscode.module)."
        )
    cure = "an attrs class, or a list"
    if isinstance(part, torch.Tensor):
        cure = "a buffer or parameter, made in __attrs_post_init__"
    elif callable(part):
        cure = "an attrs class with a __call__"
    raise BadInput(
        f"{name}={shown(part)} cannot be saved: a field holds numbers, texts, slices, attrs classes or lists of these. "
        f"Make it {cure}."
    )


def spec_text(coder: nn.Module, **more: str) -> str:
    """What `coder.json` holds.

    Raises:
        BadInput: a part or a field cannot be saved.
    """
    ties = ties_of(coder)
    tied = {TIED: ties} if ties else {}
    return json.dumps({"format": FORMAT, **more, "coder": spec_of(coder), **tied}, indent=2) + "\n"


def ties_of(coder: nn.Module) -> dict[str, str]:
    """Second names of tensors, each with the tensor's first name: tied weights, which modules share."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(tensor), name) for name, tensor in coder.state_dict(keep_vars=True).items()}
    return {name: of for name, of in names.items() if name != of}


def stored_tensors(coder: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a coder's state, each under its first name alone."""
    ties = ties_of(coder)
    return {name: tensor for name, tensor in coder.state_dict().items() if name not in ties}


def own_classes(part: object) -> list[type]:
    """The classes of a part, and of what it is made of, that are not crosscode's: what `load` must be handed."""
    if isinstance(part, list | tuple | nn.ModuleList):
        found = [cls for item in part for cls in own_classes(item)]
    elif attrs.has(type(part)):
        mine = [] if type(part).__module__.startswith("crosscode.") else [type(part)]
        found = mine + [cls for f in fields_of(part) if f.init for cls in own_classes(getattr(part, f.name))]
    else:
        return []
    return list(dict.fromkeys(found))


def class_name(cls: type) -> str:
    """The public name of one of our parts (`crosscode.activations.TopK`), or a user's class's full name."""
    path = cls.__module__.split(".")
    return ".".join([*(path[:2] if path[0] == "crosscode" else path), cls.__qualname__])


def _find_class(name: str, classes: Mapping[str, type]) -> type:
    """One of ours by its public name; a user's by its full name or, if but one that was handed over has it, its own.

    So a class is found whether its file was run (`__main__.Gated`) or imported (`lab.Gated`).
    """
    if name in classes:
        return classes[name]
    match = re.fullmatch(r"(crosscode\.(?:activations|models|schedulers))\.([A-Z]\w*)", name)
    found = match and getattr(importlib.import_module(match[1]), match[2], None)
    if isinstance(found, type) and attrs.has(found):
        return found
    called_so = [cls for cls in classes.values() if cls.__name__ == name.rpartition(".")[2]]
    if len(called_so) == 1 and not name.startswith("crosscode."):
        return called_so[0]
    raise UnknownClass(
        f"coder.json names {name!r}, which is no part of crosscode; hand the class to load(..., classes=[...])."
        + (close_match(name, classes) if classes else "")
    )


def build(spec: Any, classes: Iterable[type] = ()) -> Any:
    """The part that a spec describes.

    Args:
        spec: what `spec_of` gave.
        classes: the user's own classes that it may name, by full name or by class name where that is unique.

    Raises:
        NotLoadable: it names something else, or does not fit the class it names.
    """
    return _build(spec, {class_name(cls): cls for cls in classes})


def _build(spec: Any, classes: Mapping[str, type]) -> Any:
    if spec is None or isinstance(spec, bool | int | float | str):
        return spec
    if isinstance(spec, list):
        return tuple(_build(item, classes) for item in spec)
    if isinstance(spec, dict) and set(spec) == {"slice"}:
        match spec["slice"]:
            case [int() | None as start, int() | None as stop]:
                return slice(start, stop)
    if isinstance(spec, dict) and set(spec) == {"class", "fields"} and isinstance(spec["fields"], dict):
        cls = _find_class(str(spec["class"]), classes)
        try:
            given = _as_written_now(str(spec["class"]), spec["fields"])
            fields = {str(name): _build(value, classes) for name, value in given.items()}
            _check_types(cls, fields)
            return cls(**fields)
        except UnknownClass:
            raise
        except CrosscodeError as error:
            raise NotLoadable(f"coder.json describes a {cls.__name__} that cannot be: {error}") from error
        except Exception as error:  # wrong fields or types in a file somebody edited
            why = first_line(error)
            raise NotLoadable(f"coder.json's fields do not fit {cls.__name__}: {why}") from error
    raise NotLoadable(f"coder.json holds something that is no spec: {str(spec)[:80]!r}.")


def _as_written_now(name: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of one of our parts as they are called now.

    Of one that was saved when dense parts might have a mask, or when annealing of `k` was two fields beside it: such a
    coder was loaded with the `k` that it ended with.
    """
    gone = {"k_start", "anneal_steps"} if "k" in fields else set()
    gone |= {"mask"} if fields.get("mask", ...) is None else set()
    ours = name.startswith("crosscode.")
    return {field: value for field, value in fields.items() if field not in gone} if ours else fields


PLAIN: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}


def _check_types(cls: type, fields: dict[str, Any]) -> None:
    """Numbers, flags and choices are what the class says they are: `k = 2.5` would fail only when first used."""
    for field in attrs.fields(cls):
        if field.name in fields:
            value, allowed, choices = fields[field.name], PLAIN.get(field.type), get_args(field.type)
            if get_origin(field.type) is Literal and value not in choices:
                raise BadInput(f"{field.name}={value!r} is not one of {', '.join(map(repr, choices))}.")
            is_flag = isinstance(value, bool)
            if allowed is not None and not (isinstance(value, allowed) and is_flag == (allowed == (bool,))):
                raise BadInput(f"{field.name}={value!r} is no {field.type.__name__}.")


def save(coder: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Write a coder to a directory, made if need be.

    Args:
        coder: a `SparseCoder`, or any module made of attrs fields.
        directory: where `model.safetensors` and `coder.json` go.

    Returns:
        The directory.

    Raises:
        OSError: it could not be written, for want of room say.
    """
    directory = Path(directory)
    spec_text(coder)  # what cannot be saved is told before anything is written
    directory.mkdir(parents=True, exist_ok=True)
    # Copies: safetensors refuses tensors that share memory, as views of one another do.
    weights = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in stored_tensors(coder).items()
    }
    write_tensors(weights, directory / f".{WEIGHTS}")
    (directory / f".{SPEC}").write_text(spec_text(coder, **{SHA256: sha256_of(directory / f".{WEIGHTS}")}))
    os.replace(directory / f".{WEIGHTS}", directory / WEIGHTS)
    os.replace(directory / f".{SPEC}", directory / SPEC)
    return directory


def load(
    directory: str | os.PathLike[str], classes: Iterable[type] = (), device: str | torch.device = "cpu"
) -> SparseCoder:
    """Read a coder written by `save`, in eval mode.

    Args:
        directory: where it was saved.
        classes: the user's own classes that the coder is made of, in any order.
        device: where to put it.

    Raises:
        BadInput: the directory holds no coder.
        NotLoadable: a file is damaged or not the one that was saved, names foreign code, or sizes do not agree.
    """
    from safetensors import SafetensorError, safe_open

    directory, classes, device = Path(directory), list(classes), usable_device(device)
    for name in (SPEC, WEIGHTS):
        if not (directory / name).is_file():
            within = f" There is one in {str(directory / CODER)!r}." if (directory / CODER / SPEC).is_file() else ""
            raise BadInput(f"{str(directory)!r} holds no saved coder: {name} is missing.{within}")
    try:
        content = json.loads((directory / SPEC).read_text())
    except (ValueError, RecursionError, OSError) as error:  # bad JSON, bad UTF-8, brackets without end
        raise NotLoadable(f"{directory / SPEC} is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or "coder" not in content:
        raise NotLoadable(f"{directory / SPEC} is not of format {FORMAT}.")
    try:
        if content.get(SHA256) is not None and content[SHA256] != sha256_of(directory / WEIGHTS):
            raise NotLoadable(f"{directory / WEIGHTS} has been altered: it is not what was saved with {SPEC}.")
        with safe_open(directory / WEIGHTS, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _check_sizes(content, shapes, classes, directory)
            weights = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise NotLoadable(f"{directory / WEIGHTS} is damaged: {error}") from error
    except RecursionError as error:
        raise NotLoadable(f"{directory / SPEC} is nested too deeply.") from error
    coder = build(content["coder"], classes)
    tied: dict[str, str] = content.get(TIED, {})
    for name, parameter in coder.state_dict().items():
        if name not in tied and parameter.dtype != weights[name].dtype:
            if parameter.is_floating_point() != weights[name].is_floating_point():
                raise NotLoadable(f"{directory / WEIGHTS}: {name} is {weights[name].dtype}, not {parameter.dtype}.")
            _set_dtype(coder, name, weights[name].dtype)
    for name, of in tied.items():
        owner, _, leaf = name.rpartition(".")
        setattr(coder.get_submodule(owner), leaf, coder.state_dict(keep_vars=True)[of])
    coder.load_state_dict(weights | {name: weights[of] for name, of in tied.items()})
    moved: SparseCoder = coder.to(device).eval()
    return moved


def _set_dtype(coder: nn.Module, name: str, dtype: torch.dtype) -> None:
    owner, _, leaf = name.rpartition(".")
    held = getattr(coder.get_submodule(owner), leaf) if leaf.isidentifier() else coder.get_parameter(name)
    held.data = held.data.to(dtype)


def _check_sizes(
    content: Mapping[str, Any], shapes: dict[str, tuple[int, ...]], classes: list[type], directory: Path
) -> None:
    """Compare the spec's sizes and ties with the file's tensors before anything large is allocated."""
    spec, tied = content["coder"], content.get(TIED, {})
    _check_magnitudes(spec, sum(map(prod, shapes.values())), directory)
    with torch.device("meta"):
        skeleton = build(spec, classes)
    if not isinstance(skeleton, nn.Module):
        raise NotLoadable(f"{directory / SPEC} describes no module.")
    held = skeleton.state_dict(keep_vars=True)
    wanted = {name: tuple(tensor.shape) for name, tensor in held.items()}
    if not isinstance(tied, dict):
        raise NotLoadable(f"{directory / SPEC}: {TIED} is no table of names.")
    for name, of in tied.items():
        both = isinstance(of, str) and name in held and of in shapes and of in held and name not in shapes
        if not both or wanted[name] != wanted[of] or type(held[name]) is not type(held[of]):
            raise NotLoadable(f"{directory / SPEC} ties {name!r} to {str(of)[:80]!r}, which cannot be one tensor.")
        del wanted[name]
    for name in sorted(wanted.keys() | shapes.keys()):
        if wanted.get(name) != shapes.get(name):
            raise NotLoadable(
                f"{directory / WEIGHTS} does not fit {SPEC}: {name} is {shapes.get(name, 'missing')},"
                f" expected {wanted.get(name, 'no such tensor')}."
            )


def _check_magnitudes(spec: Any, n_numbers: int, directory: Path) -> None:
    """No number of latents, sites or coordinates may exceed the numbers that the file holds.

    Even a skeleton without values loops over sites and coordinates, so that absurd sizes must not get that far.
    """
    if isinstance(spec, list):
        for item in spec:
            _check_magnitudes(item, n_numbers, directory)
    if not isinstance(spec, dict):
        return
    for side in ("in", "out"):  # a coder stores a shift for each coordinate of each site
        sizes = [spec.get(f"d_{side}", 1), *(dims if isinstance(dims := spec.get(f"{side}_dims"), list) else [])]
        if all(isinstance(size, int) for size in sizes) and prod(map(abs, sizes)) > n_numbers:
            raise NotLoadable(
                f"{directory / SPEC} asks for more than {WEIGHTS} holds: {side}puts of {sizes[1:]} x {sizes[0]}."
            )
    for name, value in spec.items():
        if name.startswith("n_") and isinstance(value, int) and abs(value) > n_numbers:
            raise NotLoadable(f"{directory / SPEC} asks for more than {WEIGHTS} holds: {name} = {value}.")
        _check_magnitudes(value, n_numbers, directory)
