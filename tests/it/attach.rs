//! `attach` against a stand-in for mirrord: one session per ready target pod, whatever happens to it.

mod admin;
mod ending;
mod following;
mod losses;
mod sharing;
mod starting;
