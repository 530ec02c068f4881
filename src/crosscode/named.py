"""Objects by name: `lab.py:Gated` is what a file defines, `lab.parts:Gated` what a module does.

A file or module is imported only where a user names it.
"""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from crosscode.checks import shown
from crosscode.errors import BadInput, close_match, first_line


def object_named(option: str, name: str) -> Any:
    """What a file or module defines under a name; importing it runs its code.

    Args:
        option: the argument that the name was given to, for messages.
        name: `FILE.py:NAME`, or `MODULE:NAME`.

    Raises:
        BadInput: it has another form, there is no such file, it cannot be imported, or it defines no such thing.
    """
    where, _, what = name.rpartition(":")
    if not where or not what.isidentifier():
        raise BadInput(f"{option}={name!r} must have the form FILE.py:NAME or MODULE:NAME.")
    file = Path(where).expanduser().absolute()
    if where.endswith(".py") and not file.is_file():
        raise BadInput(f"{option}={name!r}: there is no file {str(file)!r}.")
    try:
        module = _import_file(file) if where.endswith(".py") else importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise BadInput(f"{option}={name!r} cannot be imported: {type(error).__name__}: {first_line(error)}") from error
    if what not in vars(module):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise BadInput(f"{option}={name!r}: {where} defines no {what!r}.{close_match(what, public)}")
    return vars(module)[what]


def is_name(text: str) -> bool:
    """Whether a text has the form of such a name, and is not that of a file that is there."""
    where, _, what = text.rpartition(":")
    return bool(where) and what.isidentifier() and not Path(text).expanduser().exists()


def made_by(option: str, name: str) -> Any:
    """What the function of that name gives, called without arguments.

    Raises:
        BadInput: there is no such function, or it raised something.
    """
    make = object_named(option, name)
    if not callable(make):
        raise BadInput(f"{option}={name!r} must name a function, got {shown(make)}.")
    try:
        return make()
    except Exception as error:
        raise BadInput(
            f"{option}={name!r} failed when it was called: {type(error).__name__}: {first_line(error)}"
        ) from error


def with_absolute_file(name: str) -> str:
    """A name, its file by its absolute path: it then leads to the same from anywhere."""
    where, _, what = name.rpartition(":")
    return f"{Path(where).expanduser().absolute()}:{what}" if where.endswith(".py") else name


def _import_file(file: Path) -> ModuleType:
    """A file as a module of its name, once; what lies beside it can be imported, as if the file were run."""
    known = sys.modules.get(file.stem)
    same = known is not None and getattr(known, "__file__", None) == str(file)
    name = file.stem if known is None or same else str(file)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def name_of(value: type) -> str | None:
    """The name under which `object_named` finds a class again; None for one made in a function or a notebook.

    That of a package is named by its module; another by its file, since a script's folder is not searched elsewhere.
    """
    if "." in value.__qualname__:
        return None
    if "." in value.__module__:
        return f"{value.__module__}:{value.__qualname__}"
    file = _file_of(value)
    return None if file is None else f"{file}:{value.__qualname__}"


def import_of(value: type) -> str | None:
    """The statement that imports a class, for those who stand beside its file; None as for `name_of`."""
    file = _file_of(value)
    if "." in value.__qualname__ or file is None:
        return None
    module = file.stem if value.__module__ == "__main__" else value.__module__
    return f"from {module} import {value.__qualname__}"


def _file_of(value: type) -> Path | None:
    try:
        file = Path(inspect.getfile(value))
    except (TypeError, OSError):  # made in a notebook, or in C
        return None
    return file.absolute() if file.is_file() else None
