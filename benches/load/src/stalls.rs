//! How long a core stands still by itself: on a virtual machine, what its host gives to others.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

/// A pause that no program notices, like an interrupt's, is shorter.
const STALL: Duration = Duration::from_millis(1);

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

/// Looks at the clock and does nothing else. Prints the share of the time that passed in pauses of a
/// millisecond and more, and the longest.
pub fn run(options: Options) {
    println!("{}", watched(Duration::from_secs_f64(options.seconds)));
}

fn watched(time: Duration) -> Value {
    let began = Instant::now();
    let (mut last, mut stood, mut longest) = (began, Duration::ZERO, Duration::ZERO);
    while last - began < time {
        let now = Instant::now();
        let pause = now - last;
        if pause >= STALL {
            stood += pause;
        }
        longest = longest.max(pause);
        last = now;
    }
    json!({
        "share": stood.as_secs_f64() / (last - began).as_secs_f64(),
        "longest_us": longest.as_secs_f64() * 1e6,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_at_least_as_long_as_a_look_at_the_clock() {
        let seen = watched(Duration::from_millis(5));
        let share = seen["share"].as_f64().expect("a number");
        assert!((0.0..=1.0).contains(&share), "{share}");
        assert!(seen["longest_us"].as_f64().expect("a number") > 0.0);
    }
}
