"""Coverage-guided fuzzing of everything that reads files, by atheris.

    python tests/fuzz/run.py spec --minutes 10

Prints the bytes of the first input that fails; keep them in `KEPT` of `test_fuzz.py`, then mend the reader.
"""

import argparse
import logging
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["crosscode"], enable_loader_override=False):
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from fuzz.targets import TARGETS, originals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--corpus", type=Path, help="where inputs that reach new code are kept")
    asked = parser.parse_args()
    logging.getLogger("crosscode").setLevel(logging.CRITICAL)
    originals()

    def one(data: bytes) -> None:
        try:
            TARGETS[asked.target](data)
        except BaseException:
            print(f"FOUND {asked.target} {data.hex()}", flush=True)
            raise

    options = [
        f"-max_total_time={round(60 * asked.minutes)}",
        "-max_len=256",
        "-rss_limit_mb=0",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, *([] if asked.corpus is None else [str(asked.corpus)])], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
