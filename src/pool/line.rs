//! An h1 connection, in use or idle.

use std::sync::Arc;

use super::{Counted, Socket, Use};
use crate::http1::Connection;
use crate::metrics::Route;

/// An h1 connection between two requests or in one.
pub(super) struct H1 {
    pub(super) connection: Connection<Socket>,
    pub(super) counted: Counted,
}

impl H1 {
    pub(super) fn new(socket: Socket, route: &Arc<Route>) -> Box<Self> {
        Box::new(Self {
            connection: Connection::new(socket),
            counted: Counted::new(route, Use::Active),
        })
    }
}
