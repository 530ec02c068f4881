"""Files are data: every reader gives a result or an error of ours, whatever stands in the file.

`nox -s fuzz` does the same for ten minutes a reader, guided by coverage.
"""

import pytest
from fuzz.targets import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KEPT: list[tuple[str, str]] = [
    ("options", "08000ef40a0ef40c"),
    ("cache", "247575616161616161616161757575ffffffff7575ffff" + "c8" * 10 + "ffffffff00" + "c8" * 18 + "ffff"),
    ("spec", "fc3c941b06cb79c9a862b60b329de8d34b"),
    ("weights", "0c04000200082a24" + "c5" * 85 + "2a2a2a"),
    ("checkpoint", "f967bdafdf0e7337420c13f8f5d40f6ce079d1b987376f07"),
    ("checkpoint", "6b5e248acec88aeb64f33bdc"),
    ("checkpoint", "86d2c96e760e819b85c924c3597164c4a6058a00581a22b2"),
    ("checkpoint", "ee950ecce317edd9150a02d1b6bd52ee41f35a41d63d4f08c0967cd7eed18df12b51ac"),
    ("checkpoint", "460d5fc8b1bd9822ecf8ce563bb3e26deb1e8936c5aa3b447916a9ac3e01ae18d69373d6"),
    ("checkpoint", "fc91baefae179bf759340f6cf6c1f9810d387dd45ce301e94a2599abf5fd9930"),
    ("checkpoint", "ccc788d7cf4780f7943ce3a86feec6af74ec4db3bc7efe147a5eef710e32d9d9bf6f9fec8ab13d"),
    ("checkpoint", "3437b3e77711a164ac77bc1db01b2a9b17a997daa23fac7a54a7171b9d2d26"),
    ("checkpoint", "c48c1bee1053bfafb2c49ca30f783ebbb17ac939791f063df4c61f50"),
    ("checkpoint", "f324f5e73070b203cd891409b78f7789fb930f"),
    ("checkpoint", "a671ec945ffd0e1d91ba74097492e592a18b9087817cae03420fd6191b26f7e673e90055"),
    ("checkpoint", "52841faa0500a99e1338c3f347588ed81251b66efbeacad3f5e529b547de0a954d4ff657"),
    ("metrics", "3c344c41"),
    ("metrics", "13abbe48a1ae6b96681c34f9c424eae131d67f"),
    ("metrics", "4a58b791df6af1d8"),
    ("text", "cde765345c5d1c54cb1494cb7d4a668f"),
    ("text", "5f3fd1cbbfcd63a285e09567f026b4ddbdce80a76a4be92d4b5fc0c71680b2f1"),
    ("metrics", "6b158536a24c9c44357055c2dd400d552449a7994de88181807054d700c45a413c5e"),
]
"""Inputs that once failed: (target, bytes in hexadecimal)."""


@pytest.mark.parametrize("target", TARGETS)
def test_a_damaged_file_is_read_or_refused(target: str) -> None:
    """Only errors of ours, in one line; little memory; nothing outside the folder; nothing started or unpickled."""

    @settings(
        max_examples=50 if target == "report" else 150,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(data=st.binary(max_size=64))
    def holds(data: bytes) -> None:
        TARGETS[target](data)

    holds()


@pytest.mark.parametrize(("target", "data"), KEPT)
def test_what_was_once_found_stays_mended(target: str, data: str) -> None:
    """The inputs that fuzzing found, for ever."""
    TARGETS[target](bytes.fromhex(data))
