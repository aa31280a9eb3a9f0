//! When a request may be sent again.

use http::Method;

use crate::pool::{Origin, Progress, SendError};

/// How an attempt failed, as far as it decides about another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// No connection could be made.
    NotConnected,
    /// The connection gave the request back: no byte of it was written.
    Unsent,
    /// The peer said that it did not begin: REFUSED_STREAM, or GOAWAY below the stream.
    Refused,
    /// The peer has seen the request: it ended this stream alone, or answered nonsense.
    Reset,
    /// The connection ended. Anything may have happened.
    Lost(Origin),
}

impl Loss {
    /// What a failed send was.
    pub(super) fn of(error: &SendError, origin: Origin) -> Self {
        match error {
            SendError::Unsent => Self::Unsent,
            SendError::Refused => Self::Refused,
            SendError::Reset(_) => Self::Reset,
            SendError::Lost(_) => Self::Lost(origin),
        }
    }

    /// Whether the request may be sent once more, on another connection. `body` is `None` for a
    /// request without one.
    ///
    /// What was lost on a reused connection was most likely never read: the peer was closing it
    /// (RFC 9112, section 9.3.1). For an idempotent method without a body likely is enough
    /// (RFC 9110, section 9.2.2), for everything else only certainty is.
    pub(super) fn allows_another_try(self, method: &Method, body: Option<Progress>) -> bool {
        let is_untouched = matches!(body, None | Some(Progress::Untouched));
        match self {
            Self::NotConnected | Self::Unsent | Self::Refused => is_untouched,
            Self::Lost(Origin::Reused) => body.is_none() && method.is_idempotent(),
            Self::Reset | Self::Lost(Origin::Dialled) => false,
        }
    }

    /// The label in `retries_total`.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::NotConnected => "connect-failed",
            Self::Unsent => "unsent",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Lost(_) => "connection-lost",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_certainly_not_acted_on_is_sent_again() {
        use Loss::{Lost, NotConnected, Refused, Reset, Unsent};
        use Progress::{AwaitsClient, AwaitsUpstream, Finished, Untouched};
        let table = [
            (NotConnected, Method::POST, None, true),
            (NotConnected, Method::POST, Some(Untouched), true),
            (Unsent, Method::POST, None, true),
            (Unsent, Method::PATCH, Some(Untouched), true),
            (Unsent, Method::POST, Some(AwaitsUpstream), false),
            (Refused, Method::POST, None, true),
            (Refused, Method::POST, Some(Untouched), true),
            (Refused, Method::POST, Some(AwaitsClient), false),
            (Refused, Method::PUT, Some(Finished), false),
            (Reset, Method::GET, None, false),
            (Reset, Method::POST, None, false),
            (Lost(Origin::Reused), Method::GET, None, true),
            (Lost(Origin::Reused), Method::DELETE, None, true),
            (Lost(Origin::Reused), Method::PUT, Some(Untouched), false),
            (Lost(Origin::Reused), Method::POST, None, false),
            (Lost(Origin::Reused), Method::PATCH, None, false),
            (Lost(Origin::Dialled), Method::GET, None, false),
            (Lost(Origin::Dialled), Method::POST, None, false),
        ];
        for (loss, method, body, expected) in table {
            let allowed = loss.allows_another_try(&method, body);
            assert_eq!(allowed, expected, "{loss:?} {method} {body:?}");
        }
    }
}
