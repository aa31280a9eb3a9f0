//! Whether a session travels from the entry to every app that needs it, and who lost it if not.
//!
//! Seen is what an intercepted app's proxy saw. Of the apps in between nothing is seen; they are judged by
//! what is seen behind them, and by what they say themselves if they are so kind.

use std::collections::{BTreeMap, BTreeSet};

use super::echo::Told;
use super::report::{Hop, HopSeen};
use crate::control::stack::PropagationRole;

/// An app of the chain.
#[derive(Debug, Clone)]
pub(super) struct Link<'a> {
    pub app: &'a str,
    pub role: PropagationRole,
    /// Whom it calls.
    pub downstream: &'a [String],
    pub is_intercepted: bool,
}

/// What an intercepted app's proxy saw after our request to the entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sight {
    /// Our request, which brought its id along.
    Ours,
    /// A request of the session, which may be ours or somebody else's.
    Session,
    /// A request of the session, which it sent elsewhere.
    Strayed(String),
    Nothing,
    /// Nobody knows, for this reason.
    Blind(String),
}

/// What is known after one request with a session was sent to the first link.
#[derive(Debug)]
pub(super) struct Chain<'a> {
    pub session: &'a str,
    /// In the order in which a request passes them.
    pub links: Vec<Link<'a>>,
    /// Of every intercepted link.
    pub sights: BTreeMap<&'a str, Sight>,
    /// What apps said in the answer.
    pub told: Vec<Told>,
    /// How the entry was asked, or why it was not.
    pub asked: Result<String, String>,
    /// How long was waited.
    pub waited: String,
}

impl Chain<'_> {
    /// One hop for each app from the entry to the last intercepted one on every branch.
    pub(super) fn hops(&self) -> Vec<Hop> {
        let needed = self.needed();
        needed.into_iter().map(|place| self.hop(place)).collect()
    }

    /// The intercepted links, and all that a request has to pass to reach them.
    fn needed(&self) -> BTreeSet<usize> {
        let intercepted = |place: &usize| self.links[*place].is_intercepted;
        let mut waiting: Vec<usize> = (0..self.links.len()).filter(intercepted).collect();
        let mut needed = BTreeSet::new();
        while let Some(place) = waiting.pop() {
            if needed.insert(place) {
                waiting.extend(self.callers(place));
            }
        }
        needed
    }

    /// Who calls a link: as the stack has it, or else its predecessor in a chain that people made.
    fn callers(&self, place: usize) -> Vec<usize> {
        let app = self.links[place].app;
        let calls = |other: &usize| {
            *other != place
                && self.links[*other]
                    .downstream
                    .iter()
                    .any(|callee| callee == app)
        };
        let callers: Vec<usize> = (0..self.links.len()).filter(calls).collect();
        match (callers.is_empty(), place.checked_sub(1)) {
            (true, Some(predecessor)) => vec![predecessor],
            _ => callers,
        }
    }

    fn hop(&self, place: usize) -> Hop {
        let link = &self.links[place];
        let (seen, verdict) = match self.rewritten(link) {
            Some(other) => {
                let detail = format!(
                    "it says that its session was {other:?}: somebody before it, or itself, rewrote it"
                );
                (HopSeen::No, Err(detail))
            }
            None if link.is_intercepted => self.judge_seen(place),
            None => self.judge_between(place),
        };
        Hop {
            app: link.app.to_owned(),
            role: link.role.word(),
            intercepted: link.is_intercepted,
            ok: verdict.is_ok(),
            seen,
            detail: verdict.unwrap_or_else(|failure| failure),
        }
    }

    fn judge_seen(&self, place: usize) -> (HopSeen, Result<String, String>) {
        let session = self.session;
        let app = self.links[place].app;
        match self.sight(app) {
            Sight::Ours => (HopSeen::Probe, Ok("seen with our id".to_owned())),
            Sight::Session if self.says_so(app) => (
                HopSeen::Told,
                Ok("seen, and the answer says that it was ours".to_owned()),
            ),
            Sight::Session => (
                HopSeen::Session,
                Ok(format!(
                    "a request of {session} was seen, ours or another's"
                )),
            ),
            Sight::Strayed(route) => (
                HopSeen::Session,
                Err(format!(
                    "a request of {session} arrived, but did not reach the PR pod: {route}"
                )),
            ),
            Sight::Blind(why) => (HopSeen::Unknown, Err(why.clone())),
            Sight::Nothing => (HopSeen::No, Err(self.blame(place))),
        }
    }

    fn judge_between(&self, place: usize) -> (HopSeen, Result<String, String>) {
        match (&self.asked, place) {
            (Err(why), 0) => return (HopSeen::No, Err(why.clone())),
            (Ok(how), 0) => return (HopSeen::Probe, Ok(how.clone())),
            _ => {}
        }
        if self.says_so(self.links[place].app) {
            return (HopSeen::Told, Ok("it says so itself".to_owned()));
        }
        match self.received(place) {
            Some(true) => (
                HopSeen::Inferred,
                Ok("an app behind it saw the session".to_owned()),
            ),
            Some(false) => (
                HopSeen::No,
                Err("it says that it received no session".to_owned()),
            ),
            None => (
                HopSeen::Unknown,
                Err("not known: no app behind it saw the session".to_owned()),
            ),
        }
    }

    /// Whether the session reached a link, as far as anybody knows.
    fn received(&self, place: usize) -> Option<bool> {
        let link = &self.links[place];
        if link.is_intercepted {
            return match self.sight(link.app) {
                Sight::Ours | Sight::Session | Sight::Strayed(_) => Some(true),
                Sight::Nothing => Some(false),
                Sight::Blind(_) => None,
            };
        }
        // An app may pass on what it does not read, and then says nothing of it.
        if place == 0 || self.says_so(link.app) || self.was_seen_behind(place) {
            return Some(true);
        }
        let mut said = self.told.iter().filter(|told| told.app == link.app);
        said.any(|told| told.session.is_none()).then_some(false)
    }

    /// Whether an intercepted link saw the session that this one may have passed on.
    fn was_seen_behind(&self, place: usize) -> bool {
        let mut waiting: Vec<usize> = self.callees(place);
        let mut visited = BTreeSet::from([place]);
        while let Some(next) = waiting.pop() {
            if !visited.insert(next) {
                continue;
            }
            if self.links[next].is_intercepted {
                if matches!(
                    self.sight(self.links[next].app),
                    Sight::Ours | Sight::Session
                ) {
                    return true;
                }
            } else {
                waiting.extend(self.callees(next));
            }
        }
        false
    }

    fn callees(&self, place: usize) -> Vec<usize> {
        let calls = |other: &usize| self.callers(*other).contains(&place);
        (0..self.links.len()).filter(calls).collect()
    }

    /// Who may have lost the session before it came to this link.
    fn blame(&self, place: usize) -> String {
        let app = self.links[place].app;
        let saw_nothing = format!(
            "{app}'s proxy saw no request of {} within {}",
            self.session, self.waited
        );
        let mut suspects = BTreeSet::new();
        let mut waiting = self.callers(place);
        while let Some(caller) = waiting.pop() {
            match self.received(caller) {
                Some(true) => {
                    suspects.insert(caller);
                }
                Some(false) => {}
                None => {
                    if suspects.insert(caller) {
                        waiting.extend(self.callers(caller));
                    }
                }
            }
        }
        if place == 0 {
            return match &self.asked {
                Ok(how) => format!("{saw_nothing} of ours ({how})"),
                Err(why) => why.clone(),
            };
        }
        if suspects.is_empty() {
            return format!("{saw_nothing}; nor did the apps before it");
        }
        let named = |place: usize| {
            let Link { app, role, .. } = &self.links[place];
            format!("{app} ({})", role.word())
        };
        let suspects: Vec<String> = suspects.into_iter().map(named).collect();
        format!(
            "{} did not pass the session on: {saw_nothing}; if the request's path does not lead there, --chain-path \
             names another",
            suspects.join(" or ")
        )
    }

    fn sight(&self, app: &str) -> &Sight {
        self.sights.get(app).unwrap_or(&Sight::Nothing)
    }

    fn says_so(&self, app: &str) -> bool {
        let mut said = self.told.iter().filter(|told| told.app == app);
        said.any(|told| told.session.as_deref() == Some(self.session))
    }

    /// Another session than ours that an app says it had.
    fn rewritten(&self, link: &Link<'_>) -> Option<&str> {
        let said = self.told.iter().filter(|told| told.app == link.app);
        let mut sessions = said.filter_map(|told| told.session.as_deref());
        sessions.find(|session| *session != self.session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a chain is made from: apps as `NAME[*] -> CALLEE ...`, `*` where they are intercepted.
    struct World {
        apps: Vec<(String, bool, Vec<String>)>,
        sights: Vec<(&'static str, Sight)>,
        told: Vec<Told>,
        asked: Result<String, String>,
    }

    fn world(apps: &str) -> World {
        let app = |text: &str| {
            let (name, callees) = text.split_once("->").unwrap_or((text, ""));
            let name = name.trim();
            let callees = callees.split_whitespace().map(str::to_owned);
            (
                name.trim_end_matches('*').to_owned(),
                name.ends_with('*'),
                callees.collect(),
            )
        };
        World {
            apps: apps.split(',').map(app).collect(),
            sights: vec![],
            told: vec![],
            asked: Ok("asked at its Service".to_owned()),
        }
    }

    impl World {
        fn saw(mut self, app: &'static str, sight: Sight) -> Self {
            self.sights.push((app, sight));
            self
        }

        fn told(mut self, app: &str, session: Option<&str>) -> Self {
            self.told.push(Told {
                app: app.to_owned(),
                session: session.map(str::to_owned),
            });
            self
        }

        /// Each hop as `NAME ok|FAIL seen: detail`.
        fn hops(self) -> Vec<String> {
            let link = |(app, is_intercepted, downstream): &'_ (String, bool, Vec<String>)| {
                // The tests name their apps after what they do.
                let role = match (app.as_str(), downstream.is_empty()) {
                    ("web", _) => PropagationRole::Originator,
                    (_, true) => PropagationRole::Terminal,
                    (_, false) => PropagationRole::Forwarder,
                };
                (role, *is_intercepted)
            };
            let links = self.apps.iter().map(|app| {
                let (role, is_intercepted) = link(app);
                Link {
                    app: &app.0,
                    role,
                    downstream: &app.2,
                    is_intercepted,
                }
            });
            let chain = Chain {
                session: "pr-42",
                links: links.collect(),
                sights: self.sights.into_iter().collect(),
                told: self.told,
                asked: self.asked,
                waited: "10s".to_owned(),
            };
            let hops = chain.hops().into_iter().map(|hop| {
                let verdict = if hop.ok { "ok" } else { "FAIL" };
                format!("{} {verdict} {:?}: {}", hop.app, hop.seen, hop.detail)
            });
            hops.collect()
        }
    }

    #[test]
    fn a_session_that_every_proxy_saw_travelled_all_the_way() {
        let hops = world("web*->api,api*->db,db*")
            .saw("web", Sight::Ours)
            .saw("api", Sight::Session)
            .saw("db", Sight::Session)
            .told("api", Some("pr-42"))
            .hops();

        assert_eq!(
            hops,
            [
                "web ok Probe: seen with our id",
                "api ok Told: seen, and the answer says that it was ours",
                "db ok Session: a request of pr-42 was seen, ours or another's",
            ]
        );
    }

    #[test]
    fn the_caller_that_had_it_last_lost_it() {
        let hops = world("web->api,api*->db,db*")
            .saw("api", Sight::Ours)
            .saw("db", Sight::Nothing)
            .hops();

        assert_eq!(
            hops,
            [
                "web ok Probe: asked at its Service",
                "api ok Probe: seen with our id",
                "db FAIL No: api (forwarder) did not pass the session on: db's proxy saw no request of pr-42 within \
                 10s; if the request's path does not lead there, --chain-path names another",
            ]
        );
    }

    #[test]
    fn where_nothing_is_seen_in_between_either_may_have_lost_it() {
        let hops = world("web->api,api->db,db*")
            .saw("db", Sight::Nothing)
            .hops();

        assert_eq!(
            hops,
            [
                "web ok Probe: asked at its Service",
                "api FAIL Unknown: not known: no app behind it saw the session",
                "db FAIL No: web (originator) or api (forwarder) did not pass the session on: db's proxy saw no \
                 request of pr-42 within 10s; if the request's path does not lead there, --chain-path names another",
            ]
        );
    }

    #[test]
    fn what_an_app_says_of_itself_narrows_it_down() {
        let said = world("web->api,api->db,db*").saw("db", Sight::Nothing);
        let hops = said.told("api", Some("pr-42")).hops();
        assert_eq!(hops[1], "api ok Told: it says so itself");
        assert!(
            hops[2].contains("No: api (forwarder) did not pass"),
            "{hops:?}"
        );

        let said = world("web->api,api->db,db*").saw("db", Sight::Nothing);
        let hops = said.told("api", None).hops();
        assert_eq!(hops[1], "api FAIL No: it says that it received no session");
        assert!(hops[2].contains("nor did the apps before it"), "{hops:?}");
    }

    #[test]
    fn an_app_in_between_is_judged_by_what_is_seen_behind_it() {
        let hops = world("web->api,api->db,db*")
            .saw("db", Sight::Session)
            .told("api", None)
            .hops();

        assert_eq!(hops[1], "api ok Inferred: an app behind it saw the session");
    }

    #[test]
    fn nobody_has_to_pass_it_on_behind_the_last_intercepted_app() {
        let hops = world("web->api auth,api*->db,db,auth->mail,mail")
            .saw("api", Sight::Ours)
            .hops();

        let apps: Vec<_> = hops
            .iter()
            .filter_map(|hop| hop.split(' ').next())
            .collect();
        assert_eq!(apps, ["web", "api"]);
    }

    #[test]
    fn a_rewritten_session_is_a_failure_even_where_it_was_seen() {
        let hops = world("web->api,api*")
            .saw("api", Sight::Session)
            .told("web", Some("pr-42"))
            .told("api", Some("pr-4"))
            .hops();

        assert!(
            hops[1].starts_with("api FAIL No: it says that its session was \"pr-4\""),
            "{hops:?}"
        );
    }

    #[test]
    fn a_request_that_strayed_and_a_proxy_that_cannot_be_asked_are_failures() {
        let hops = world("web->api db,api*,db*")
            .saw(
                "api",
                Sight::Strayed("it went to nobody (no-endpoint)".to_owned()),
            )
            .saw(
                "db",
                Sight::Blind("its proxy cannot be listened to".to_owned()),
            )
            .hops();

        assert!(hops[1].starts_with("api FAIL Session: ") && hops[1].contains("no-endpoint"));
        assert_eq!(hops[2], "db FAIL Unknown: its proxy cannot be listened to");
    }

    #[test]
    fn an_entry_that_does_not_answer_fails_its_own_hop() {
        for (apps, sight) in [
            ("web->api,api*", None),
            ("web*->api,api*", Some(Sight::Nothing)),
        ] {
            let mut silent = world(apps).saw("api", Sight::Ours);
            if let Some(sight) = sight {
                silent = silent.saw("web", sight);
            }
            silent.asked = Err("the entry did not answer: refused".to_owned());

            let hops = silent.hops();
            assert_eq!(hops[0], "web FAIL No: the entry did not answer: refused");
            assert_eq!(hops[1], "api ok Probe: seen with our id");
        }
    }

    #[test]
    fn in_a_chain_that_people_made_each_app_is_called_by_the_one_before_it() {
        let hops = world("a,b*,c*")
            .saw("b", Sight::Ours)
            .saw("c", Sight::Nothing)
            .hops();

        assert!(
            hops[2].contains("b (terminal) did not pass the session on"),
            "{hops:?}"
        );
    }
}
