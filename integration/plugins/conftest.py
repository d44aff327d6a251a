"""The packages here bring tests of their own, which run where they are installed: see integration/stranger."""

collect_ignore_glob = ["*/test_*.py"]
