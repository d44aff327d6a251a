"""A whole third-party plugin: a drafter that guesses the last token again, and keeps count of its calls."""

import os

import accelplug


class Echo:
    def __init__(self, times: int = 2):
        self.times = times

    def propose_one(self, tokens, budget):
        with open(os.environ.get("ACCELPLUG_ECHO_CALLS", os.devnull), "a") as calls:
            calls.write(".")
        return [tokens[-1]] * min(self.times, budget)


@accelplug.hookimpl
def register_drafters(register):
    register("echo", Echo)
