//! One configuration from all places it can come from: the file, then the environment and the flags,
//! which override it.
//!
//! What a flag says gets the same shape as what the file says, with the flag's name for its place, and is
//! judged together with it by `plan`.

use std::path::Path;

use crate::cli::Sources;
use crate::config::{Admin, File, Listener, OneOrList, Place, Placed, Problem, Session, Text};

impl Sources {
    /// Reads the file, if one is named, and lays environment and flags over it.
    ///
    /// # Errors
    /// When the file cannot be read or is not YAML. Everything else is told by `Plan::compile`.
    pub fn file(&self) -> Result<File, Vec<Problem>> {
        let mut file = match self.path() {
            Some(path) => File::read(Path::new(&path)).map_err(|problem| vec![problem])?,
            None => File::default(),
        };
        self.overlay(&mut file);
        Ok(file)
    }

    fn overlay(&self, file: &mut File) {
        let listeners = self.listeners(file);
        if !listeners.is_empty() {
            file.listeners = listeners;
        }
        for written in &self.session {
            overlay_session(file, written);
        }
        if let Some(written) = given(
            self.baseline.as_deref(),
            "--baseline",
            "SESSION_PROXY_BASELINE",
        ) {
            let reads_http = |listener: &&mut Placed<Listener>| {
                listener
                    .value
                    .protocol
                    .as_ref()
                    .is_none_or(|protocol| protocol.value != "tcp")
            };
            for listener in file.listeners.iter_mut().filter(reads_http) {
                listener.value.baseline = split(&written.value, written.place);
            }
        }
        let session = &mut file.session;
        session.header = given(self.header.as_deref(), "--header", "SESSION_PROXY_HEADER")
            .or(session.header.take());
        if let Some(key) = &self.baggage_key {
            // Empty has a meaning here: baggage off.
            session.baggage_key = Some(Placed::new(
                key.clone(),
                origin(key, "--baggage-key", "SESSION_PROXY_BAGGAGE_KEY"),
            ));
        }
        if let Some(address) = given(self.admin.as_deref(), "--admin", "SESSION_PROXY_ADMIN") {
            file.admin = Some(Admin {
                address: Some(address),
            });
        }
        if let Some(drain) = &self.drain_timeout {
            file.timeouts.drain = Some(Placed::new(drain.clone(), Place::Flag("--drain-timeout")));
        }
    }

    fn listeners(&self, file: &mut File) -> Vec<Placed<Listener>> {
        let mut listeners = Vec::new();
        for (index, address) in self
            .listen
            .iter()
            .filter(|address| !address.is_empty())
            .enumerate()
        {
            let place = origin(address, "--listen", "SESSION_PROXY_LISTEN");
            let listener = Listener {
                name: Some(Placed::new(format!("listen-{}", index + 1), place)),
                address: Some(Placed::new(address.clone(), place)),
                ..Listener::default()
            };
            listeners.push(Placed::new(listener, place));
        }
        let place = Place::Flag("--tcp");
        for (index, written) in self.tcp.iter().enumerate() {
            let Some((address, target)) = written.split_once('=') else {
                let message = format!(
                    "{written:?} is not ADDR=ENDPOINT; write for example 127.0.0.1:5432=10.244.1.17:5432"
                );
                let problem = file.problem(place, "", message);
                file.problems.push(problem);
                continue;
            };
            let listener = Listener {
                name: Some(Placed::new(format!("tcp-{}", index + 1), place)),
                address: Some(Placed::new(address.to_owned(), place)),
                protocol: Some(Placed::new("tcp".to_owned(), place)),
                target: split(target, place),
                ..Listener::default()
            };
            listeners.push(Placed::new(listener, place));
        }
        listeners
    }
}

fn overlay_session(file: &mut File, written: &str) {
    let place = Place::Flag("--session");
    // From the right: a regular expression may contain the sign, an endpoint cannot.
    let Some((name, endpoints)) = written.rsplit_once('=') else {
        let message =
            format!("{written:?} is not NAME=ENDPOINT; write for example pr-42=10.244.1.17:8080");
        let problem = file.problem(place, "", message);
        file.problems.push(problem);
        return;
    };
    let session = Session {
        endpoints: Some(split(endpoints, place)),
        ..Session::default()
    };
    let sessions = &mut file.sessions.0;
    let written_in_file = |(known, _): &&mut (Text, Session)| {
        known.value == name && matches!(known.place, Place::At { .. })
    };
    match sessions.iter_mut().find(written_in_file) {
        Some(known) => *known = (Placed::new(name.to_owned(), place), session),
        None => sessions.push((Placed::new(name.to_owned(), place), session)),
    }
}

fn split(endpoints: &str, place: Place) -> OneOrList {
    let texts = endpoints.split(',').filter(|text| !text.is_empty());
    OneOrList(
        texts
            .map(|text| Placed::new(text.to_owned(), place))
            .collect(),
    )
}

/// A value with the name of the flag or of the variable it came from; an empty one, as a pipeline's unset
/// parameter leaves behind, counts as none.
pub fn given(value: Option<&str>, flag: &'static str, variable: &'static str) -> Option<Text> {
    let value = value.filter(|value| !value.is_empty())?;
    Some(Placed::new(value.to_owned(), origin(value, flag, variable)))
}

/// A path, unless it is empty: what a pipeline's unset parameter leaves behind.
pub fn given_path(path: Option<&Path>) -> Option<&Path> {
    path.filter(|path| !path.as_os_str().is_empty())
}

fn origin(value: &str, flag: &'static str, variable: &'static str) -> Place {
    match std::env::var(variable) {
        // When both say the same, either name is true.
        Ok(text) if text.split(',').any(|part| part == value) || text == value => {
            Place::Env(variable)
        }
        _ => Place::Flag(flag),
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::metrics::Metrics;
    use crate::plan::{ListenerKind, Plan};

    fn sources() -> Sources {
        Sources {
            listen: vec!["127.0.0.1:8080".to_owned()],
            ..Sources::default()
        }
    }

    fn compiled(sources: &Sources) -> Result<Plan, String> {
        let file = sources.file().expect("readable");
        Plan::compile(&file, &Metrics::new("test", "none")).map_err(|problems| {
            problems
                .iter()
                .map(|problem| format!("{problem}\n"))
                .collect()
        })
    }

    #[test]
    fn flags_alone_make_a_configuration() {
        let plan = compiled(&Sources {
            session: vec!["pr-42=127.0.0.1:9142,127.0.0.1:9143".to_owned()],
            baseline: Some("127.0.0.1:9100".to_owned()),
            tcp: vec!["127.0.0.1:5432=10.0.0.1:5432".to_owned()],
            ..sources()
        })
        .expect("valid");

        assert_eq!(
            plan.sessions.find("pr-42").expect("known").endpoints.len(),
            2
        );
        assert_eq!(
            plan.listeners
                .iter()
                .map(|listener| &*listener.name)
                .collect::<Vec<_>>(),
            ["listen-1", "tcp-1"]
        );
        let ListenerKind::Http(http) = &plan.listeners[0].kind else {
            panic!("not http")
        };
        assert_eq!(
            http.baseline.as_ref().expect("given").endpoints[0].to_string(),
            "127.0.0.1:9100"
        );
    }

    #[test]
    fn flags_override_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file.yaml");
        std::fs::write(
            &path,
            "listeners: [{name: web, address: ':1', baseline: 10.0.0.9}]\nsessions: {pr-1: 10.0.0.1, pr-2: 10.0.0.2}\nadmin: ':7'\n",
        )
        .expect("written");
        let plan = compiled(&Sources {
            config: Some(path.into()),
            listen: Vec::new(),
            session: vec!["pr-1=10.0.0.5".to_owned()],
            baseline: Some("10.0.0.8:80".to_owned()),
            admin: Some("off".to_owned()),
            drain_timeout: Some("1m".to_owned()),
            ..Sources::default()
        })
        .expect("valid");

        assert_eq!(
            plan.sessions.find("pr-1").expect("known").endpoints[0].to_string(),
            "10.0.0.5"
        );
        assert_eq!(
            plan.sessions.find("pr-2").expect("known").endpoints[0].to_string(),
            "10.0.0.2"
        );
        assert_eq!(plan.admin, None);
        assert_eq!(plan.timeouts.drain.as_secs(), 60);
        let ListenerKind::Http(http) = &plan.listeners[0].kind else {
            panic!("not http")
        };
        assert_eq!(
            http.baseline.as_ref().expect("given").endpoints[0].to_string(),
            "10.0.0.8:80"
        );
    }

    #[test]
    fn problems_name_the_flag() {
        let problems = compiled(&Sources {
            session: vec!["pr-42".to_owned(), "pr-1=http://x".to_owned()],
            drain_timeout: Some("soon".to_owned()),
            ..sources()
        })
        .expect_err("invalid");

        assert_eq!(
            problems,
            "--session: \"pr-42\" is not NAME=ENDPOINT; write for example pr-42=10.244.1.17:8080\n\
             --session: \"http://x\" is a URL; leave out http:// and write \"x\"\n\
             --drain-timeout: \"soon\" is not a duration; write for example 500ms, 2s, 5m or 1m30s\n"
        );
    }
}
