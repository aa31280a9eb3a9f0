//! Tell everyone to finish; know when they have.
//!
//! Listeners stay open to the end: under mirrord a closed listener does not stop requests from
//! being stolen, it only makes them fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};

/// The end that starts a drain and waits for it.
#[derive(Debug)]
pub struct Drain {
    started_tx: watch::Sender<bool>,
    flights: Arc<Flights>,
}

/// The end that everyone who serves holds.
#[derive(Debug, Clone)]
pub struct Draining {
    started_rx: watch::Receiver<bool>,
    flights: Arc<Flights>,
}

/// Something in flight: a request until the last byte of its answer, a tunnel until it ends.
#[derive(Debug)]
pub struct Flight {
    flights: Arc<Flights>,
}

#[derive(Debug, Default)]
struct Flights {
    count: AtomicUsize,
    landed: Notify,
}

impl Drain {
    pub fn new() -> Self {
        Self {
            started_tx: watch::channel(false).0,
            flights: Arc::default(),
        }
    }

    pub fn draining(&self) -> Draining {
        Draining {
            started_rx: self.started_tx.subscribe(),
            flights: self.flights.clone(),
        }
    }

    /// Requests and tunnels under way.
    pub fn in_flight(&self) -> usize {
        self.flights.count.load(Ordering::Acquire)
    }

    /// From now on connections close after the request they carry.
    pub fn start(&self) {
        self.started_tx.send_replace(true);
    }

    /// Waits until nothing is in flight.
    pub async fn landed(&self) {
        loop {
            let landed = self.flights.landed.notified();
            if self.in_flight() == 0 {
                return;
            }
            landed.await;
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Draining {
    /// Waits for the drain to start.
    pub async fn started(&mut self) {
        // The sender outlives everyone who serves; if it is gone, so is the proxy.
        let _ = self.started_rx.wait_for(|started| *started).await;
    }

    pub fn take_off(&self) -> Flight {
        self.flights.count.fetch_add(1, Ordering::AcqRel);
        Flight {
            flights: self.flights.clone(),
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.flights.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            // `notify_one` keeps its permit: a landing between check and wait is not missed.
            self.flights.landed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn landed_waits_for_the_last_flight() {
        let drain = Drain::new();
        let (one, two) = (drain.draining().take_off(), drain.draining().take_off());
        drop(one);
        assert_eq!(drain.in_flight(), 1);
        let waiting = tokio::spawn(async move { drain.landed().await });
        drop(two);
        waiting.await.expect("the wait ends without a panic");
    }
}
