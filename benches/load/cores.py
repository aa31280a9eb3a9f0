"""Which process runs on which core, so that nobody takes time from the proxy that is measured."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Cores:
    """The proxy alone on one; with two workers on two. Origins and clients share another."""

    one: frozenset
    two: frozenset
    load: frozenset

    def of(self, workers):
        return self.one if workers == 1 else self.two

    def told(self):
        def names(cores):
            return ", ".join(str(core) for core in sorted(cores))

        return (
            f"proxy on core {names(self.one)} (two workers: {names(self.two)}), "
            f"origins and client on core {names(self.load)}"
        )


def split(available):
    """With two cores, the second worker shares the load's; with more, nobody shares the proxy's."""
    cores = sorted(available)
    load = cores[-1]
    return Cores(frozenset(cores[:1]), frozenset(cores[:2]), frozenset({load}))


def pinned(cores):
    """Options of Popen that keep a child on these cores."""
    return {"preexec_fn": lambda: os.sched_setaffinity(0, cores)}
