//! Listeners: from what the file says to ports that can be opened.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use super::compile::{Judge, one_of};
use super::{HttpListener, Listener, ListenerKind, OnUnavailable, TlsFiles, address, text};
use crate::config::{self, Place, Placed};
use crate::tls;
use crate::upstream::{Endpoint, Protocol, Source, Upstream};

impl Judge<'_> {
    pub(super) fn listeners(
        &mut self,
        admin: Option<SocketAddr>,
        portless: Option<&str>,
    ) -> Vec<Listener> {
        if self.file.listeners.is_empty() && self.file.problems.is_empty() {
            let advice = "no listener; add one with --listen ADDR or under listeners: in the file";
            self.note(Place::BuiltIn, String::new(), advice);
        }
        let mut addresses: HashMap<SocketAddr, String> = HashMap::new();
        if let Some(admin) = admin {
            addresses.insert(admin, "the admin port".to_owned());
        }
        let mut names = HashSet::new();
        let mut listeners = Vec::new();
        for (index, written) in self.file.listeners.iter().enumerate() {
            let path = format!("listeners[{index}]");
            let name = self.listener_name(index, written, &mut names);
            let address = self.listener_address(&path, written, &mut addresses);
            let kind = self.listener_kind(&path, written, address, portless);
            if let (Some(address), Some(kind)) = (address, kind) {
                listeners.push(Listener {
                    name,
                    address,
                    kind,
                });
            }
        }
        listeners
    }

    fn listener_name(
        &mut self,
        index: usize,
        written: &Placed<config::Listener>,
        names: &mut HashSet<String>,
    ) -> Arc<str> {
        let (name, place) = match &written.value.name {
            Some(text) => (text.value.clone(), text.place),
            None => (format!("listener-{}", index + 1), written.place),
        };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let path = || format!("listeners[{index}].name");
        if name.is_empty() || name.len() > 63 || !name.bytes().all(is_plain) {
            self.note(place, path(), format!("{name:?} is not a listener name; use 1 to 63 letters, digits, dashes, dots and underscores"));
        } else if !names.insert(name.clone()) {
            self.note(
                place,
                path(),
                format!("another listener is named {name:?} already; give each a name of its own"),
            );
        }
        Arc::from(name)
    }

    fn listener_address(
        &mut self,
        path: &str,
        written: &Placed<config::Listener>,
        taken: &mut HashMap<SocketAddr, String>,
    ) -> Option<SocketAddr> {
        let Some(text) = &written.value.address else {
            self.note(
                written.place,
                path,
                "address is missing; write address: IP:PORT, for example 0.0.0.0:8080",
            );
            return None;
        };
        let address = self.read(text, format_args!("{path}.address"), address::listening)?;
        // The system gives each port 0 a port of its own.
        if address.port() != 0
            && let Some(other) = taken.insert(address, path.to_owned())
        {
            let message = format!(
                "{:?} is the address of {other} already; choose another port",
                text.value
            );
            self.note(text.place, format!("{path}.address"), message);
        }
        Some(address)
    }

    fn listener_kind(
        &mut self,
        path: &str,
        written: &Placed<config::Listener>,
        address: Option<SocketAddr>,
        portless: Option<&str>,
    ) -> Option<ListenerKind> {
        let listener = &written.value;
        let known = ["http", "https", "tcp"];
        let protocol = match &listener.protocol {
            Some(text) => self.read(text, format_args!("{path}.protocol"), |text| {
                one_of(text, &known)
            })?,
            None => "http",
        };
        if let ("http" | "tcp", Some(tls)) = (protocol, &listener.tls) {
            let message = format!(
                "tls is given, but the protocol is {protocol}; write protocol: https, or remove tls"
            );
            self.note(tls.place, format!("{path}.tls"), message);
        }
        if protocol == "tcp" {
            return self.tcp_target(path, written).map(ListenerKind::Tcp);
        }
        if let Some(target) = listener.target.0.first() {
            let message = format!(
                "target is for protocol: tcp, this listener is {protocol}; write baseline instead"
            );
            self.note(target.place, format!("{path}.target"), message);
        }
        let http = self.http_listener(path, written, address, portless);
        if protocol == "http" {
            return Some(ListenerKind::Http(Arc::new(http)));
        }
        self.tls_files(path, written)
            .map(|files| ListenerKind::Https(Arc::new(http), files))
    }

    fn http_listener(
        &mut self,
        path: &str,
        written: &Placed<config::Listener>,
        address: Option<SocketAddr>,
        portless: Option<&str>,
    ) -> HttpListener {
        let listener = &written.value;
        let own_port = address.map_or(0, |address| address.port());
        let app_port_text = listener.app_port.as_ref();
        let app_port = self.read_or(
            own_port,
            app_port_text,
            format_args!("{path}.appPort"),
            |text| text::count(text, 1..=u16::MAX),
        );
        let mut baseline = self.endpoints(&listener.baseline, format_args!("{path}.baseline"));
        let portless = portless.or_else(|| {
            baseline
                .iter()
                .any(|endpoint| endpoint.port.is_none())
                .then_some("the baseline")
        });
        if let (Some(portless), Some(0), None) = (
            portless,
            address.map(|address| address.port()),
            app_port_text,
        ) {
            let message = format!(
                "{portless} names no port, and this listener's is 0; add appPort, or the port to each endpoint"
            );
            self.note(written.place, path, message);
        }
        for endpoint in &mut baseline {
            if endpoint.port.is_none() {
                *endpoint = Endpoint::new(endpoint.host.clone(), Some(app_port));
            }
        }
        let on_unavailable = match &listener.on_unavailable {
            Some(text) => {
                let word = self.read(text, format_args!("{path}.onUnavailable"), |text| {
                    one_of(text, &["error", "baseline"])
                });
                if word == Some("baseline") && listener.baseline.0.is_empty() {
                    let message = "\"baseline\" needs a baseline, and this listener has none; add baseline, or write error";
                    self.note(text.place, format!("{path}.onUnavailable"), message);
                }
                if word == Some("baseline") {
                    OnUnavailable::Baseline
                } else {
                    OnUnavailable::Error
                }
            }
            None => OnUnavailable::Error,
        };
        HttpListener {
            app_port,
            baseline: self.baseline(baseline),
            on_unavailable,
        }
    }

    fn baseline(&self, endpoints: Vec<Arc<Endpoint>>) -> Option<Arc<Upstream>> {
        (!endpoints.is_empty()).then(|| {
            Arc::new(Upstream {
                name: Arc::from("baseline"),
                endpoints,
                protocol: Protocol::Auto,
                source: Source::Configuration,
                route: self.metrics.route("baseline"),
            })
        })
    }

    fn tcp_target(
        &mut self,
        path: &str,
        written: &Placed<config::Listener>,
    ) -> Option<Vec<Arc<Endpoint>>> {
        let listener = &written.value;
        let unread = [
            ("baseline", listener.baseline.0.first()),
            ("appPort", listener.app_port.as_ref()),
            ("onUnavailable", listener.on_unavailable.as_ref()),
        ];
        for (key, text) in unread {
            if let Some(text) = text {
                let message = format!(
                    "a tcp listener has no {key}: it reads no requests; every connection goes to target"
                );
                self.note(text.place, format!("{path}.{key}"), message);
            }
        }
        if listener.target.0.is_empty() {
            self.note(
                written.place,
                path,
                "target is missing; a tcp listener needs target: IP:PORT, where its connections go",
            );
            return None;
        }
        let targets = self.endpoints(&listener.target, format_args!("{path}.target"));
        for text in &listener.target.0 {
            if address::endpoint(&text.value).is_ok_and(|endpoint| endpoint.port.is_none()) {
                let message = format!(
                    "{:?} has no port; write for example {}:5432",
                    text.value, text.value
                );
                self.note(text.place, format!("{path}.target"), message);
            }
        }
        Some(targets)
    }

    fn tls_files(&mut self, path: &str, written: &Placed<config::Listener>) -> Option<TlsFiles> {
        let Some(Placed {
            value: options,
            place,
        }) = &written.value.tls
        else {
            let message = "tls is missing; an https listener needs tls: { certificate: FILE, privateKey: FILE }";
            self.note(written.place, path, message);
            return None;
        };
        let path = format!("{path}.tls");
        for (key, file) in [
            ("certificate", &options.certificate),
            ("privateKey", &options.private_key),
        ] {
            if file.is_none() {
                self.note(
                    *place,
                    path.clone(),
                    format!("{key} is missing; it names a PEM file"),
                );
            }
        }
        let (certificate, key) = (options.certificate.as_ref()?, options.private_key.as_ref()?);
        let leaf = self.read(certificate, format_args!("{path}.certificate"), |file| {
            tls::certificates(Path::new(file))
        });
        let secret = self.read(key, format_args!("{path}.privateKey"), |file| {
            tls::private_key(Path::new(file))
        });
        leaf.and(secret)?;
        let files = TlsFiles {
            certificate: certificate.value.clone().into(),
            private_key: key.value.clone().into(),
        };
        // Both can be read: what is left is that they do not belong together.
        self.read(key, format_args!("{path}.privateKey"), |_| {
            tls::server(&files)
        })?;
        Some(files)
    }
}
