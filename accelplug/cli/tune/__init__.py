"""``accelplug tune``: which options of a drafter are fastest on a user's own prompts."""
