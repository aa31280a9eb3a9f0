//! A header-routing HTTP proxy: requests that carry a known session reach the pods of that
//! session, all others the baseline.
//!
//! # The house
//!
//! A spine and a cellar. The spine is the road of one request, each room a step down:
//! [`listener`] → [`worker`] → [`connection`] → [`exchange`]. The cellar is what the spine calls and
//! what never calls back. Beside it stand quiet rooms that change what the spine sees.
//!
//! To read it in order:
//!
//! * what is wanted: [`cli`] and [`config`] (as written, over the tree of [`yaml`]), [`sources`] (both in one), [`matcher`] and
//!   [`upstream`] (the words of the table), [`plan`] (the table, checked), [`inspect`] (the table
//!   explained);
//! * the spine: [`listener`], [`worker`], [`connection`], [`exchange`];
//! * the cellar: [`wire`], [`forward`], [`pool`], [`http1`] (the engine towards upstreams), [`outbox`],
//!   [`tunnel`], [`tls`], [`deadline`], [`drain`], [`metrics`], [`record`], [`signals`];
//! * the quiet rooms: [`kubernetes`] and [`discovery`] (what the cluster says), [`reload`], [`admin`];
//! * above all: [`server`], which builds the rest, and [`demo`];
//! * a wing of its own: [`control`], the commands of the cluster side.
//!
//! # Who owns what
//!
//! * Only [`config`] reads the file's text, only [`plan`] turns it into what is true.
//! * Only [`discovery`] follows pods, only [`reload`] joins what it found with what the file says.
//! * Only [`upstream`] dials, only [`pool`] keeps connections, only [`forward`] knows which headers
//!   hop, only [`wire`] sees a client's bytes, only [`http1`] those of an upstream.
//! * Only [`exchange`] turns a failure into a status, only [`record`] writes what happened.
//! * A worker owns what it touches. Threads meet in channels, in counters, and in what an endpoint
//!   knows of itself ([`upstream::Health`], [`upstream::Gate`]).
//! * Only [`server`] knows who exists.
//!
//! # Floors
//!
//! A room imports only from lower floors:
//!
//! | floor | rooms |
//! |---|---|
//! | 9 | [`demo`] |
//! | 8 | [`server`] |
//! | 7 | [`listener`] |
//! | 6 | [`worker`] |
//! | 5 | [`connection`], [`reload`] |
//! | 4 | [`exchange`], [`admin`], [`inspect`] |
//! | 3 | [`plan`], [`pool`], [`sources`], [`discovery`] |
//! | 2 | [`upstream`], [`record`], [`wire`] |
//! | 1 | [`config`], [`http1`], [`matcher`], [`forward`], [`tunnel`], [`tls`], [`metrics`], [`outbox`], [`cli`], [`kubernetes`] |
//! | 0 | [`deadline`], [`drain`], [`signals`], [`yaml`] |
//! | wing | [`control`], beside the house: of it only what its header names |

pub mod admin;
pub mod cli;
pub mod config;
pub mod connection;
pub mod control;
pub mod deadline;
pub mod demo;
pub mod discovery;
pub mod drain;
pub mod exchange;
pub mod forward;
pub mod http1;
pub mod inspect;
pub mod kubernetes;
pub mod listener;
pub mod matcher;
pub mod metrics;
pub mod outbox;
pub mod plan;
pub mod pool;
pub mod record;
pub mod reload;
pub mod server;
pub mod signals;
pub mod sources;
pub mod tls;
pub mod tunnel;
pub mod upstream;
pub mod wire;
pub mod worker;
pub mod yaml;
