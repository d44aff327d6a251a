"""What hosts count."""

from __future__ import annotations

from accelplug.hosts.stats import Stats


def test_siblings_are_counted_by_their_place():
    stats = Stats()
    stats.count_siblings([4, 7], 7)
    stats.count_siblings([2, 5, 6], -1)
    assert stats.siblings == [[2, 0], [2, 1], [1, 0]]
