"""``accelplug new``: a whole plugin package that works, for an author to change."""
