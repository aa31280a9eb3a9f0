//! Who calls whom: orders and circles of a graph, each app a number.
//!
//! Nothing here recurses: how deep a stack is, is up to whoever wrote it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// For each app the apps it calls.
pub(super) type Graph = Vec<Vec<usize>>;

/// A way that leads back to where it began.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Circle {
    /// Each calls the next, the last calls the first.
    pub(super) apps: Vec<usize>,
    /// Which call of the last one that is.
    pub(super) call: usize,
}

/// The calls that close a circle, at most `most` of them: without them there is none. The way is walked
/// depth first, from the first app on.
pub(super) fn circles(calls: &Graph, most: usize) -> Vec<Circle> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Never,
        OnTheWay,
        Done,
    }
    let mut seen = vec![Seen::Never; calls.len()];
    let mut circles = Vec::new();
    for root in 0..calls.len() {
        if seen[root] != Seen::Never {
            continue;
        }
        // Each app on the way, and which of its calls is next.
        let mut way = vec![(root, 0)];
        seen[root] = Seen::OnTheWay;
        while let Some((app, next)) = way.last_mut() {
            let (app, call) = (*app, *next);
            let Some(callee) = calls[app].get(call).copied() else {
                seen[app] = Seen::Done;
                way.pop();
                continue;
            };
            *next += 1;
            match seen[callee] {
                Seen::Done => {}
                Seen::Never => {
                    seen[callee] = Seen::OnTheWay;
                    way.push((callee, 0));
                }
                Seen::OnTheWay => {
                    let apps = way.iter().map(|(app, _)| *app);
                    circles.push(Circle {
                        apps: apps.skip_while(|app| *app != callee).collect(),
                        call,
                    });
                    if circles.len() == most {
                        return circles;
                    }
                }
            }
        }
    }
    circles
}

/// Callers before callees; of those whose callers all stand already, the first in the file comes next.
/// Apps on a circle, and those behind it, are left out.
pub(super) fn order(calls: &Graph) -> Vec<usize> {
    let mut callers = callers(calls);
    let without = |(app, callers): (usize, &usize)| (*callers == 0).then_some(Reverse(app));
    let mut free: BinaryHeap<_> = callers.iter().enumerate().filter_map(without).collect();
    let mut order = Vec::with_capacity(calls.len());
    while let Some(Reverse(app)) = free.pop() {
        order.push(app);
        for callee in &calls[app] {
            callers[*callee] -= 1;
            if callers[*callee] == 0 {
                free.push(Reverse(*callee));
            }
        }
    }
    order
}

/// The first app that nobody calls.
pub(super) fn entry(calls: &Graph) -> Option<usize> {
    callers(calls).iter().position(|callers| *callers == 0)
}

/// What can be reached from an app: depth first, each once, itself first.
pub(super) fn chain(calls: &Graph, from: usize) -> Vec<usize> {
    let mut is_met = vec![false; calls.len()];
    let mut chain = Vec::new();
    let mut next = vec![from];
    while let Some(app) = next.pop() {
        if !is_met[app] {
            is_met[app] = true;
            chain.push(app);
            next.extend(calls[app].iter().rev());
        }
    }
    chain
}

/// How many calls lead to each app.
fn callers(calls: &Graph) -> Vec<usize> {
    let mut callers = vec![0; calls.len()];
    for callee in calls.iter().flatten() {
        callers[*callee] += 1;
    }
    callers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_file_where_calls_leave_a_choice() {
        for (calls, expected) in [
            (vec![vec![], vec![], vec![]], vec![0, 1, 2]),
            (vec![vec![], vec![0], vec![1]], vec![2, 1, 0]),
            (vec![vec![2, 1], vec![3], vec![3], vec![]], vec![0, 1, 2, 3]),
            (vec![vec![], vec![3], vec![0], vec![]], vec![1, 2, 0, 3]),
        ] {
            assert_eq!(order(&calls), expected, "{calls:?}");
        }
    }

    #[test]
    fn the_chain_goes_deep_first_and_meets_each_once() {
        let diamond = vec![vec![2, 1], vec![3], vec![3], vec![4], vec![], vec![3]];
        assert_eq!(chain(&diamond, 0), [0, 2, 3, 4, 1]);
        assert_eq!(entry(&diamond), Some(0));
        assert_eq!(entry(&vec![vec![1], vec![0]]), None);
    }

    #[test]
    fn a_circle_is_named_from_where_it_is_entered() {
        let calls = vec![vec![1], vec![2], vec![3, 1], vec![], vec![4]];
        let circle = |apps: &[usize], call| Circle {
            apps: apps.to_vec(),
            call,
        };
        assert_eq!(circles(&calls, 9), [circle(&[1, 2], 1), circle(&[4], 0)]);
        assert_eq!(circles(&calls, 1).len(), 1);
        assert_eq!(circles(&vec![vec![1], vec![]], 9), []);
    }

    #[test]
    fn a_hundred_thousand_apps_in_a_row_are_no_crash() {
        let mut row: Graph = (1..=100_000).map(|next| vec![next]).collect();
        row.push(Vec::new());
        assert_eq!(order(&row).len(), 100_001);
        assert_eq!(chain(&row, 0).len(), 100_001);
        row[100_000] = vec![0];
        assert_eq!(circles(&row, 9)[0].apps.len(), 100_001);
    }
}
