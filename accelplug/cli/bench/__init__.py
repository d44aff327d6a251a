"""``accelplug bench``: what techniques are worth on this model, by task."""
