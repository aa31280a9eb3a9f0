//! Requests counted by reason and status code, without a lock or a lookup by text.

use std::sync::OnceLock;

use prometheus::IntCounter;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;

/// A list that only grows: one counter for each pair of reason and status code seen so far.
///
/// A route sees a handful of pairs, so walking the list costs less than hashing the pair would.
/// Only the first request of a pair allocates.
#[derive(Debug, Default)]
pub(super) struct Tally {
    first: OnceLock<Box<Node>>,
}

impl Tally {
    /// The counter of this pair, made by `make` when the pair is new.
    pub(super) fn count(&self, reason: &'static str, code: u16, make: impl Fn() -> IntCounter) {
        let mut slot = &self.first;
        loop {
            // When two threads come here with a new pair at once, one of them makes the node. The
            // other finds it, and walks on if it is not the pair it came with.
            let node = slot.get_or_init(|| Box::new(Node::new(reason, code, make())));
            if node.code == code && node.reason == reason {
                return node.counter.inc();
            }
            slot = &node.next;
        }
    }

    /// The sum over all pairs whose status code is wanted.
    pub(super) fn sum(&self, wanted: impl Fn(u16) -> bool) -> u64 {
        self.nodes()
            .filter(|node| wanted(node.code))
            .map(|node| node.counter.get())
            .sum()
    }

    /// All counters as the registry wants them.
    pub(super) fn collect(&self) -> impl Iterator<Item = MetricFamily> {
        self.nodes().flat_map(|node| node.counter.collect())
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        std::iter::successors(self.first.get(), |node| node.next.get()).map(|node| &**node)
    }
}

#[derive(Debug)]
struct Node {
    reason: &'static str,
    code: u16,
    counter: IntCounter,
    next: OnceLock<Box<Node>>,
}

impl Node {
    fn new(reason: &'static str, code: u16, counter: IntCounter) -> Self {
        Self {
            reason,
            code,
            counter,
            next: OnceLock::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_meet_a_new_pair_at_once_share_its_counter() {
        let tally = Tally::default();
        let make = || IntCounter::new("n", "n").unwrap();

        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for code in 200..220 {
                        tally.count("session", code, make);
                        tally.count("no-session", code, make);
                    }
                });
            }
        });

        assert_eq!(tally.nodes().count(), 40);
        assert_eq!(tally.sum(|_| true), 8 * 40);
        assert_eq!(tally.sum(|code| code == 204), 16);
    }
}
