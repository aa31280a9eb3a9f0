//! The answer to the reserved session: by it a proxy shows that a request reached it, and no app.

use http::{HeaderName, StatusCode};
use serde::Deserialize;

use super::Answer;
use crate::plan::PROBE_NONCE;

/// Carries what the proxy repeats when it answers the reserved session.
pub const NONCE: HeaderName = HeaderName::from_static(PROBE_NONCE);

/// What a proxy says of itself.
#[derive(Debug, Deserialize)]
pub struct Sign {
    /// New at every start of a proxy.
    pub instance: String,
    /// What it was told that it stands in front of.
    pub target: Option<String>,
    nonce: Option<String>,
}

/// What an answer to the reserved session is instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoSign {
    /// By its route somebody else's: the request went past every proxy, or on to an app.
    Elsewhere,
    /// By its route a proxy's, but not as a proxy answers.
    Strange,
    /// A proxy's answer to another request.
    Stale,
}

impl Sign {
    /// Reads the answer to a request with this nonce.
    ///
    /// # Errors
    /// It is none of a proxy's to this very request.
    pub fn of(answer: &Answer, nonce: &str) -> Result<Self, NoSign> {
        if answer.route() != Some("probe") {
            return Err(NoSign::Elsewhere);
        }
        if answer.status != StatusCode::OK {
            return Err(NoSign::Strange);
        }
        let sign: Self = serde_json::from_slice(&answer.body).map_err(|_| NoSign::Strange)?;
        if sign.nonce.as_deref() != Some(nonce) {
            return Err(NoSign::Stale);
        }
        Ok(sign)
    }
}
