//! Saved TCP connections after a time without traffic, and in a fork.

use core::net::IpAddr;
use core::time::Duration;

use super::connection::micros;
use super::cookie::PERIOD;
use super::image::{CookiesImage, EndImage, OwnerImage, StreamReset, TcpSection};
use super::{Ends, TcpStream};

/// A stream that was taken out of an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Removed {
    pub(crate) stream: TcpStream,
    /// What its peer waits for.
    pub(crate) reset: StreamReset,
}

impl TcpSection {
    /// Lets `gone` pass for connections whose ends `passes` says it for (own address, then the peer's), and for SYN cookies.
    /// What is over by then is due at once: a retransmission, the end of TIME-WAIT, the end of patience with a peer.
    pub(crate) fn elapse(&mut self, gone: Duration, passes: impl Fn(IpAddr, IpAddr) -> bool) {
        let gone = micros(gone);
        for image in self.streams.values_mut().filter(|image| passes(image.local.0, image.remote.0)) {
            image.timer = image.timer.saturating_sub(gone);
            image.patience = image.patience.map(|left| left.saturating_sub(gone));
            if let Some(clock) = &mut image.clock {
                // RFC 7323, section 4.1: our clock ticks once a millisecond.
                let ticks = gone.checked_div(1000).unwrap_or(0) & u64::from(u32::MAX);
                clock.value = clock.value.wrapping_add(u32::try_from(ticks).unwrap_or(0));
                clock.recent_for = clock.recent_for.saturating_sub(gone);
            }
        }
        self.cookies.elapse(gone);
    }

    /// The ends of every connection that can still be talked on, with its id.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (TcpStream, Ends)> {
        self.streams.iter().map(|(id, image)| (TcpStream(*id), image.ends()))
    }

    /// Whether a port is listened at, so that a connection of it was opened by its peer.
    pub(crate) fn is_listened_at(&self, port: u16) -> bool {
        self.listeners.values().any(|listener| listener.port == port)
    }

    /// Takes the connections out for which `removes` says so. An owner of one finds it reset.
    pub(crate) fn take_out(&mut self, removes: impl Fn(TcpStream) -> bool) -> Vec<Removed> {
        let (gone, kept): (std::collections::BTreeMap<_, _>, _) =
            core::mem::take(&mut self.streams).into_iter().partition(|(id, _)| removes(TcpStream(*id)));
        self.streams = kept;
        let mut removed = Vec::with_capacity(gone.len());
        for (id, image) in gone {
            if image.owner == OwnerImage::Embedder {
                self.ended.insert(id, Some(EndImage::Reset));
            }
            removed.push(Removed { stream: TcpStream(id), reset: image.reset() });
        }
        removed
    }
}

impl CookiesImage {
    /// Lets `gone` microseconds pass. Cookies of two periods count.
    fn elapse(&mut self, gone: u64) {
        let period = micros(PERIOD);
        let ([sent, _], [finished, _]) = (self.sent, self.finished);
        if gone < self.period {
            self.period = self.period.saturating_sub(gone);
        } else if gone < self.period.saturating_add(period) && (sent, finished) != (0, 0) {
            let left = self.period.saturating_add(period).saturating_sub(gone);
            *self = Self { period: left, sent: [0, sent], finished: [0, finished] };
        } else {
            *self = Self { period: 0, sent: [0; 2], finished: [0; 2] };
        }
    }
}
