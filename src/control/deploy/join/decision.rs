//! What to do about one shared object, given what is there. Pure, so that every case can be seen.

/// What was found under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Nothing,
    /// It is being deleted, and cannot be saved.
    Ending,
    There {
        /// In the order in which it names them.
        owners: Vec<Owner>,
        fit: Fit,
    },
}

/// A PR pod that an object names as its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Ours,
    Living,
    /// It is being deleted.
    Ending,
    /// There is no such pod any more; the collector has not come by yet.
    Gone,
    /// It is there for ours only, and goes before long.
    Placeholder,
}

/// How what is there compares with what this call would make. Each says how it differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fit {
    Same,
    /// It serves as well: another image.
    Tolerable(String),
    /// It does something else: other ports.
    Other(String),
    /// It serves nobody, and never will again.
    Useless(String),
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Create,
    /// Look again in a moment: something must end first.
    Await(&'static str),
    /// Add our owner.
    Join,
    /// Nothing.
    Holds,
    /// Delete it, as it was seen, for this reason.
    Replace(String),
    /// Others use it as it is, and it must stay so.
    Refuse(String),
}

/// What to do about an object.
pub(super) fn step(seen: &Seen) -> Step {
    let Seen::There { owners, fit } = seen else {
        return match seen {
            Seen::Nothing => Step::Create,
            _ => Step::Await("the old one to end"),
        };
    };
    let join = || {
        if owners.contains(&Owner::Ours) {
            Step::Holds
        } else {
            Step::Join
        }
    };
    let is_used = owners.contains(&Owner::Living);
    let is_left = owners.contains(&Owner::Ending);
    match fit {
        Fit::Same => join(),
        Fit::Useless(why) => Step::Replace(why.clone()),
        // Whoever is about to go is not worth a restart of what serves as well.
        Fit::Tolerable(_) if is_used || is_left => join(),
        Fit::Other(why) if is_used => Step::Refuse(why.clone()),
        Fit::Other(_) if is_left => Step::Await("the last session that uses it otherwise to end"),
        Fit::Tolerable(why) | Fit::Other(why) => Step::Replace(why.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Owner::{Ending, Gone, Living, Ours, Placeholder};

    fn there(owners: &[Owner], fit: Fit) -> Step {
        step(&Seen::There {
            owners: owners.to_vec(),
            fit,
        })
    }

    fn because() -> String {
        "because".to_owned()
    }

    #[test]
    fn what_is_not_there_is_created_and_what_ends_is_waited_for() {
        assert_eq!(step(&Seen::Nothing), Step::Create);
        assert!(matches!(step(&Seen::Ending), Step::Await(_)));
    }

    #[test]
    fn what_fits_is_joined_once_whoever_else_owns_it() {
        for others in [
            &[][..],
            &[Living],
            &[Ending],
            &[Gone],
            &[Gone, Living, Ending],
        ] {
            assert_eq!(there(others, Fit::Same), Step::Join, "{others:?}");
            let with_us = [others, &[Ours]].concat();
            assert_eq!(there(&with_us, Fit::Same), Step::Holds, "{others:?}");
        }
    }

    #[test]
    fn what_others_use_is_never_replaced_unless_it_is_of_no_use_to_anybody() {
        for owners in [
            &[Living][..],
            &[Ours, Living],
            &[Gone, Living, Ending, Ours],
        ] {
            let joined = if owners.contains(&Ours) {
                Step::Holds
            } else {
                Step::Join
            };
            assert_eq!(there(owners, Fit::Tolerable(because())), joined);
            assert_eq!(
                there(owners, Fit::Other(because())),
                Step::Refuse(because())
            );
            assert_eq!(
                there(owners, Fit::Useless(because())),
                Step::Replace(because())
            );
        }
    }

    #[test]
    fn what_nobody_else_uses_is_made_as_this_call_wants_it() {
        for owners in [
            &[][..],
            &[Ours],
            &[Gone],
            &[Ours, Gone, Gone],
            &[Placeholder],
            &[Ours, Placeholder, Gone],
        ] {
            for fit in [Fit::Tolerable, Fit::Other, Fit::Useless] {
                assert_eq!(there(owners, fit(because())), Step::Replace(because()));
            }
        }
    }

    #[test]
    fn the_last_that_uses_it_otherwise_may_end_in_peace() {
        for owners in [&[Ending][..], &[Ours, Ending], &[Gone, Ending]] {
            assert!(matches!(
                there(owners, Fit::Other(because())),
                Step::Await(_)
            ));
        }
        assert_eq!(there(&[Ending], Fit::Tolerable(because())), Step::Join);
    }
}
