"""Runs all tests of the measurement's parts, each counted under its name."""

import functools
import os
import subprocess
import sys
import unittest

import test_figures
import test_report
import test_world
from bed import Tally


def succeeds(*command):
    """A command's exit code is the verdict; what it says is shown."""
    code = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
    if code != 0:
        raise AssertionError(f"{' '.join(command)}: exit {code}")


def tests_of(suite):
    """All single tests of a suite."""
    for member in suite:
        if isinstance(member, unittest.TestSuite):
            yield from tests_of(member)
        else:
            yield member


def main():
    tally = Tally()
    here = "benches/load/Cargo.toml"
    for manifest in (here, "benches/load/pingora/Cargo.toml"):
        formatted = ("cargo", "fmt", "--check", "--manifest-path", manifest)
        tally.check(f"{manifest} is formatted", functools.partial(succeeds, *formatted))
    crate = ("--quiet", "--locked", "--manifest-path", here, "--target-dir", "target/load/cargo")
    lints = ("cargo", "clippy", *crate, "--all-targets", "--", "-D", "warnings")
    tally.check("the crate has no lints", lambda: succeeds(*lints))
    tally.check("the crate's own tests", lambda: succeeds("cargo", "test", *crate))
    loader = unittest.TestLoader()
    for module in (test_figures, test_report, test_world):
        for test in tests_of(loader.loadTestsFromModule(module)):
            tally.check(test.id().rpartition(".")[2].replace("_", " "), test.debug)
    smoke = ("benches/load/run", "--smoke")
    tally.check("every proxy that is here answers right in every case", lambda: succeeds(*smoke))
    return tally.close("target/load.result")


if __name__ == "__main__":
    os.environ.setdefault("SESSION_PROXY_BINARY", "target/release/session-proxy")
    sys.exit(main())
