//! Local ports: where a child listens instead of on the app's own ports.
//!
//! Under mirrord's layer a port cannot be left to the kernel to choose, because the layer goes by the
//! port that is asked for. And it must not be a port of the app: the layer would lead our way to the
//! baseline back to ourselves.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All local ports, and those in use.
#[derive(Debug, Clone)]
pub(super) struct Ports(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    first: u16,
    /// The app's, which are no local ports.
    app_ports: Vec<u16>,
    taken: Mutex<BTreeSet<u16>>,
}

/// A local port that stands for one of the app's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Local {
    pub port: u16,
    pub app_port: u16,
}

/// The ports of one child; free again when dropped.
#[derive(Debug)]
pub(super) struct Taken {
    ports: Ports,
    /// One for each port of the app.
    pub locals: Vec<Local>,
    pub admin: SocketAddr,
}

impl Ports {
    pub(super) fn new(first: u16, app_ports: Vec<u16>) -> Self {
        Self(Arc::new(Shared {
            first,
            app_ports,
            taken: Mutex::default(),
        }))
    }

    /// Ports for one child; `None` when there are none left.
    pub(super) fn take(&self) -> Option<Taken> {
        let mut taken = Taken {
            ports: self.clone(),
            locals: Vec::new(),
            admin: loopback(0),
        };
        for &app_port in &self.0.app_ports {
            let port = self.take_one()?;
            taken.locals.push(Local { port, app_port });
        }
        taken.admin = loopback(self.take_one()?);
        Some(taken)
    }

    fn take_one(&self) -> Option<u16> {
        let mut taken = self.taken();
        let is_free = |port: &u16| {
            !taken.contains(port)
                && !self.0.app_ports.contains(port)
                && TcpListener::bind(loopback(*port)).is_ok()
        };
        let port = (self.0.first..=u16::MAX).find(is_free)?;
        taken.insert(port);
        Some(port)
    }

    fn taken(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        // A set of numbers is sound after any panic.
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Local {
    pub(super) fn address(self) -> SocketAddr {
        loopback(self.port)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut taken = self.ports.taken();
        let locals = self.locals.iter().map(|local| local.port);
        for port in locals.chain([self.admin.port()]) {
            taken.remove(&port);
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_neither_the_apps_nor_in_use_and_come_back() {
        // Below the ports that the kernel gives to others.
        let first = 19_200;
        let _busy = TcpListener::bind(loopback(first));
        let ports = Ports::new(first, vec![first + 1, first + 2]);

        let one = ports.take().unwrap();
        let other = ports.take().unwrap();

        let of = |taken: &Taken| {
            let locals = taken.locals.iter().map(|local| local.port);
            locals.chain([taken.admin.port()]).collect::<Vec<_>>()
        };
        let all: BTreeSet<_> = of(&one).into_iter().chain(of(&other)).collect();
        assert_eq!(all.len(), 6);
        assert!(all.iter().all(|port| *port > first + 2), "{all:?}");
        let freed = of(&one);
        drop(one);
        assert_eq!(of(&ports.take().unwrap()), freed);
    }
}
