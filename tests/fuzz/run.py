"""Coverage-guided fuzzing of everything that reads files, by atheris.

    python tests/fuzz/run.py spec --minutes 10
    python tests/fuzz/run.py --write benchmarks/fuzz.md     # every target, one after the other, and a table

Prints the bytes of the first input that fails; keep them in `KEPT` of `test_fuzz.py`, then mend the reader.
"""

import argparse
import logging
import re
import subprocess
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["crosscode"], enable_loader_override=False):
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from fuzz.targets import TARGETS, originals

EXECUTED = re.compile(r"stat::number_of_executed_units:\s+(\d+)")


def fuzz(target: str, minutes: float, corpus: Path | None) -> None:
    """Until the time is over or something is found; ends the process."""
    logging.getLogger("crosscode").setLevel(logging.CRITICAL)
    originals()

    def one(data: bytes) -> None:
        try:
            TARGETS[target](data)
        except BaseException:
            print(f"FOUND {target} {data.hex()}", flush=True)
            raise

    options = [
        f"-max_total_time={round(60 * minutes)}",
        "-max_len=256",
        "-rss_limit_mb=0",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, *([] if corpus is None else [str(corpus)])], one)
    atheris.Fuzz()


def fuzz_all(minutes: float) -> tuple[str, bool]:
    """Every target in a process of its own: a table, and whether nothing was found."""
    rows = ["| what is damaged | inputs tried | found |", "|---|---:|---:|"]
    sound = True
    for target, damaged in TARGETS.items():
        command = [sys.executable, __file__, target, "--minutes", str(minutes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        executed = EXECUTED.search(done.stderr)
        found = done.returncode != 0 or executed is None
        if found:
            print(done.stdout[-2000:], done.stderr[-4000:], sep="\n")
        sound &= not found
        what = " ".join((damaged.__doc__ or target).strip().splitlines()[0].rstrip(".").split())
        rows.append(f"| `{target}`: {what} | {0 if executed is None else int(executed[1]):,} | {int(found)} |")
        print(rows[-1], flush=True)
    return "\n".join(rows), sound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=sorted(TARGETS), help="all if not given")
    parser.add_argument("--minutes", type=float, default=10, help="for each target")
    parser.add_argument("--corpus", type=Path, help="where one target's inputs that reach new code are kept")
    parser.add_argument("--write", type=Path, help="a file for the table")
    asked = parser.parse_args()
    if asked.target is not None:
        fuzz(asked.target, asked.minutes, asked.corpus)
    table, sound = fuzz_all(asked.minutes)
    if asked.write is not None:
        what = "atheris, guided by the coverage of crosscode's own code"
        setting = f"`python tests/fuzz/run.py --minutes {asked.minutes:g}`: {what}."
        asked.write.write_text(f"# Damaged files, fuzzed\n\n{setting}\n\n{table}\n")
    raise SystemExit(0 if sound else 1)


if __name__ == "__main__":
    main()
