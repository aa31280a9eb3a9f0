//! Addresses as people write them: where we listen, and where we send.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::upstream::{Endpoint, Host};

/// Where to listen: `IP:PORT`, `:PORT` for every IPv4 address, `localhost:PORT`. Port 0 lets the system choose.
pub(super) fn listening(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let advice = || format!("{text:?} is not an address; write IP:PORT, for example 0.0.0.0:8080");
    let (host, port) = text.rsplit_once(':').ok_or_else(advice)?;
    let ip = match host {
        "" => Ipv4Addr::UNSPECIFIED,
        "localhost" => Ipv4Addr::LOCALHOST,
        _ => return Err(advice()),
    };
    let port = port_number(port).ok_or_else(advice)?;
    Ok(SocketAddr::new(ip.into(), port))
}

/// A decimal port, 0 included; no sign, which `str::parse` would take.
fn port_number(text: &str) -> Option<u16> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// Where to send: `IP`, `IP:PORT`, `[V6]`, `[V6]:PORT`, `NAME`, `NAME:PORT`.
pub(super) fn endpoint(text: &str) -> Result<Arc<Endpoint>, String> {
    let (host, port) = host_and_port(text)?;
    let port = match port {
        None => None,
        Some(port) => match port_number(port) {
            Some(0) => return Err(format!("{text:?} has port 0, which nothing can be sent to")),
            Some(number) => Some(number),
            None => {
                return Err(format!(
                    "{text:?} has no valid port: {port:?} is not a number from 1 to 65535"
                ));
            }
        },
    };
    Ok(Endpoint::new(host, port))
}

fn host_and_port(text: &str) -> Result<(Host, Option<&str>), String> {
    let advice = || {
        format!(
            "{text:?} is not an endpoint; write IP, IP:PORT, NAME or NAME:PORT, for example 10.244.1.17:8080"
        )
    };
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(format!(
            "{text:?} is a URL; leave out {scheme}:// and write {:?}",
            rest.trim_end_matches('/')
        ));
    }
    if text.contains('@') {
        return Err(format!(
            "{text:?} carries a user name; an endpoint is only a host and a port"
        ));
    }
    if text.contains(['/', '?', '#']) {
        return Err(format!(
            "{text:?} carries a path; an endpoint is only a host and a port"
        ));
    }
    if let Some(bracketed) = text.strip_prefix('[') {
        let (ip, rest) = bracketed.split_once(']').ok_or_else(advice)?;
        let port = match rest {
            "" => None,
            _ => Some(rest.strip_prefix(':').ok_or_else(advice)?),
        };
        let ip: Ipv6Addr = ip.parse().map_err(|_| advice())?;
        return Ok((Host::Ip(reachable(ip.into(), text)?), port));
    }
    if let Ok(ip) = text.parse::<Ipv6Addr>() {
        return Ok((Host::Ip(reachable(ip.into(), text)?), None));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok((Host::Ip(reachable(ip.into(), text)?), port));
    }
    if !is_host_name(host) {
        return Err(advice());
    }
    Ok((Host::Name(Arc::from(host)), port))
}

/// Refuses what no PR pod can have and what an attacker would like: cloud metadata services are link-local.
fn reachable(ip: IpAddr, text: &str) -> Result<IpAddr, String> {
    let kind = match ip.to_canonical() {
        ip if ip.is_unspecified() => "the unspecified address",
        ip if ip.is_multicast() => "a multicast address",
        IpAddr::V4(ip) if ip.is_link_local() => "a link-local address",
        IpAddr::V6(ip) if ip.is_unicast_link_local() => "a link-local address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "the broadcast address",
        _ => return Ok(ip),
    };
    Err(format!(
        "{text:?} is {kind}, which is never sent to; write the address of a pod or a service"
    ))
}

/// RFC 1123 section 2.1, and underscores, which Kubernetes never makes but DNS carries. A last label that is
/// a number makes it a mistyped IP address (10.244.1, 10.0.0.256), which some resolvers would accept, as they do 0x7f000001.
fn is_host_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &str| {
        let lower = label.to_ascii_lowercase();
        let is_hex = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        lower.strip_prefix("0x").is_some_and(is_hex)
            || lower.bytes().all(|byte| byte.is_ascii_digit())
    };
    host.len() <= 253
        && host.split('.').all(is_label)
        && !host.rsplit('.').next().is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn endpoints_are_read_as_people_write_them() {
        for (text, expected) in [
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("::1", "::1"),
            ("[::1]", "::1"),
            ("[::1]:65535", "[::1]:65535"),
            ("orders", "orders"),
            (
                "orders.staging.svc.cluster.local.:8080",
                "orders.staging.svc.cluster.local.:8080",
            ),
            ("0x-app.x", "0x-app.x"),
        ] {
            assert_eq!(endpoint(text).expect(text).to_string(), expected);
        }
    }

    #[test]
    fn endpoints_nothing_may_be_sent_to_are_refused() {
        for text in [
            "169.254.0.1",
            "169.254.169.254:80",
            "[::ffff:169.254.169.254]:80",
            "fe80::1",
            "[febf::1]:80",
            "224.0.0.1",
            "ff02::1",
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
            "255.255.255.255",
            "10.0.0.1:0",
            "2852039166",
            "0xA9FEA9FE",
            "0251.0376.0251.0376",
            "169.254.43518",
            "fe80::1%eth0",
            "[fe80::1%eth0]:80",
            "a b",
            "a:b:c",
            "a..b",
            "é",
            "%31",
        ] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn listening_addresses_have_two_short_forms() {
        for (text, expected) in [
            ("0.0.0.0:80", "0.0.0.0:80"),
            (":80", "0.0.0.0:80"),
            ("localhost:0", "127.0.0.1:0"),
            ("[::]:80", "[::]:80"),
        ] {
            assert_eq!(listening(text).expect(text).to_string(), expected);
        }
        for text in [
            "",
            ":",
            "80",
            "localhost",
            ":+80",
            ":65536",
            "orders:80",
            "::1:80:",
        ] {
            assert!(listening(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_endpoint_reads_its_own_text_again(text in "[0-9a-fx.:\\[\\]-]{1,30}") {
            if let Ok(once) = endpoint(&text) {
                let again = endpoint(&once.to_string()).expect("its own text");
                prop_assert_eq!((&once.host, once.port), (&again.host, again.port));
            }
        }
    }
}
