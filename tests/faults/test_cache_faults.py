"""The cache and the text streams under faults: short versions of what the faults suite does at length."""

from faults.cache_faults import DAMAGES, break_streams, damage_shards, fill_disk, kill_writers


def test_writers_that_are_killed_never_leave_a_wrong_tensor(tmp_path):
    """Two processes fill one cache, one after the other is killed in mid-write, files are damaged under them."""
    counts = kill_writers(tmp_path, kills=8, seed=0, n_batches=60)

    assert counts["killed"] == 8
    assert counts["reads"] > 60
    assert counts["wrong"] == 0


def test_any_damage_is_found_and_harvested_again(tmp_path):
    """Bits flipped, cut, deleted, zeroed, appended, another shard in its place: exactly that one is dropped."""
    counts = damage_shards(tmp_path, times=60, seed=0, n_batches=10)

    assert counts["injected"] == sum(counts[kind] for kind in DAMAGES) == 60
    assert counts["found"] > 50
    assert counts["wrong"] == 0


def test_a_full_disk_costs_shards_and_not_the_run(tmp_path):
    """However much of a shard still fits; one warning, no litter."""
    assert fill_disk(tmp_path, times=6, seed=0) == {"injected": 6, "wrong": 0}


def test_streams_that_break_are_read_on():
    """Each example once, in order."""
    counts = break_streams(times=5, seed=0)

    assert counts["injected"] > 20
    assert counts["wrong"] == 0
