from accelplug.testing import DrafterConformance


class TestEcho(DrafterConformance):
    technique = "echo(times=2)"
