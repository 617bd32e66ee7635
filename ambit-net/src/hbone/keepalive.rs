//! PINGs that tell a silent peer from a dead one, and the beat at which a tunnel looks whether it is idle.
//!
//! Polled by the drivers of both ends together with the connection. RFC 9113 §6.7.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use super::TunnelSettings;

/// The peer has not answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silent;

/// PINGs of one connection.
pub(crate) struct Keepalive {
    pings: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    is_waiting: bool,
    interval: Duration,
    timeout: Duration,
}

impl Keepalive {
    /// Begins with a pause. Without PINGs (none were to be had from h2) only the beat is left.
    pub(crate) fn new(pings: Option<PingPong>, settings: &TunnelSettings) -> Self {
        Self {
            pings,
            timer: Box::pin(sleep(settings.ping_interval)),
            is_waiting: false,
            interval: settings.ping_interval,
            timeout: settings.ping_timeout,
        }
    }

    /// Ready at each beat, with an error once the peer has been silent for too long.
    pub(crate) fn poll_beat(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Silent>> {
        if self.is_waiting && self.poll_answer(cx).is_ready() {
            self.is_waiting = false;
            self.sleep_for(self.interval);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if self.is_waiting {
            return Poll::Ready(Err(Silent));
        }
        // An error means that the connection is over, which its own poll reports.
        let sent = (self.pings.as_mut()).is_some_and(|p| p.send_ping(Ping::opaque()).is_ok());
        self.is_waiting = sent;
        self.sleep_for(if sent { self.timeout } else { self.interval });
        Poll::Ready(Ok(()))
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.pings {
            Some(pings) => pings.poll_pong(cx).map(drop),
            None => Poll::Ready(()),
        }
    }

    fn sleep_for(&mut self, time: Duration) {
        self.timer.as_mut().reset(Instant::now() + time);
    }
}
