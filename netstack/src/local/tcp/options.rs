//! What a stream and a listener can be told.

use core::time::Duration;

use hibernet_snapshot::{Invalid, Snapshot};
use smoltcp::socket::tcp::CongestionControl;

use super::shim::Opening;

/// Settings of one TCP stream. Buffers and congestion control are fixed when it opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Snapshot)]
#[snapshot(validate = StreamOptions::check)]
pub struct StreamOptions {
    /// Bytes that wait for the reader: a power of two from 2 KiB to 64 MiB. 64 KiB stands for what Linux opens with: the whole
    /// segments of a window that needs no scaling.
    #[snapshot(saved)]
    pub receive_buffer: u32,
    /// Bytes that wait for acknowledgement: a power of two from 2 KiB to 64 MiB.
    #[snapshot(saved)]
    pub send_buffer: u32,
    /// Small segments are sent at once (`TCP_NODELAY`), not held back while others are under way (RFC 896).
    #[snapshot(saved)]
    pub nodelay: bool,
    /// An idle peer is asked in such intervals whether it is still there (RFC 9293, section 3.8.4), and given up when it has
    /// not answered for ten of them. `None`: never, as is the default of RFC 1122. 1 ms to 32 days.
    #[snapshot(saved)]
    pub keepalive: Option<Duration>,
    /// How long data may stay without acknowledgement (RFC 5482, `TCP_USER_TIMEOUT`). `None`: 924.6 s for data, 127 s for
    /// a SYN, as Linux. 1 ms to 32 days.
    #[snapshot(saved)]
    pub user_timeout: Option<Duration>,
    /// Time to live or hop limit, 1 to 255.
    #[snapshot(saved)]
    pub hop_limit: u8,
    /// How much may be under way at once.
    #[snapshot(saved)]
    pub congestion: Congestion,
}

/// Congestion control of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Snapshot)]
#[non_exhaustive]
pub enum Congestion {
    /// What the peer's window allows: for a link that loses nothing.
    #[default]
    None,
    /// RFC 5681.
    Reno,
    /// RFC 9438.
    Cubic,
}

/// Settings of a listener, and of the streams it accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Snapshot)]
#[snapshot(validate = ListenOptions::check)]
pub struct ListenOptions {
    /// Streams that wait to be accepted, 1 to 65,536. A SYN beyond is dropped, as Linux drops it.
    #[snapshot(saved)]
    pub backlog: u32,
    /// Connections whose handshake is not finished, 1 to 65,536. A SYN beyond is answered with a cookie.
    #[snapshot(saved)]
    pub half_open: u32,
    /// Whether there are SYN cookies (RFC 4987, section 3.6). Without, a SYN beyond `half_open` is dropped.
    #[snapshot(saved)]
    pub cookies: bool,
    /// Settings of the streams.
    #[snapshot(saved)]
    pub stream: StreamOptions,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            receive_buffer: 65_536,
            send_buffer: 65_536,
            nodelay: false,
            keepalive: None,
            user_timeout: None,
            hop_limit: 64,
            congestion: Congestion::None,
        }
    }
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { backlog: 128, half_open: 128, cookies: true, stream: StreamOptions::default() }
    }
}

impl StreamOptions {
    /// Whether a stream can have these settings.
    pub fn check(&self) -> Result<(), Invalid> {
        let Self { receive_buffer, send_buffer, nodelay: _, keepalive, user_timeout, hop_limit, congestion: _ } = self;
        for (field, bytes) in [("receive_buffer", *receive_buffer), ("send_buffer", *send_buffer)] {
            if !bytes.is_power_of_two() || !(LEAST_BUFFER..=MOST_BUFFER).contains(&bytes) {
                let expected = format!("a power of two, {LEAST_BUFFER} to {MOST_BUFFER}");
                return Err(Invalid::new(field, bytes.to_string(), expected));
            }
        }
        for (field, wait) in [("keepalive", keepalive), ("user_timeout", user_timeout)] {
            if let Some(wait) = wait.filter(|wait| !(LEAST_WAIT..=MOST_WAIT).contains(wait)) {
                return Err(Invalid::new(field, format!("{wait:?}"), format!("{LEAST_WAIT:?} to {MOST_WAIT:?}")));
            }
        }
        if *hop_limit == 0 {
            return Err(Invalid::new("hop_limit", "0", "1 to 255"));
        }
        Ok(())
    }

    /// Bytes both buffers take.
    pub(super) fn memory(&self) -> u64 {
        u64::from(self.receive_buffer).saturating_add(self.send_buffer.into())
    }

    /// The size of the receive buffer on a link with segments of `mss` bytes.
    pub(super) fn room(&self, mss: u16) -> u32 {
        if self.receive_buffer == UNSCALED { self.opening_window(mss).into() } else { self.receive_buffer }
    }

    /// The window of a SYN, which is never scaled: whole segments, as Linux offers.
    fn opening_window(&self, mss: u16) -> u16 {
        let most = u16::try_from(self.receive_buffer).unwrap_or(u16::MAX);
        match most.checked_rem(mss) {
            Some(rest) if mss <= most => most.saturating_sub(rest),
            _ => most,
        }
    }

    /// What the SYN of such a stream says.
    pub(super) fn opening(&self, mss: u16) -> Opening {
        Opening { mss, window: self.opening_window(mss), shift: self.shift(mss) }
    }

    /// The shift of windows on such a link (RFC 7323, section 2.3), as smoltcp has it: from the size of the buffer alone.
    fn shift(&self, mss: u16) -> u8 {
        let bits = u32::BITS.saturating_sub(self.room(mss).leading_zeros());
        u8::try_from(bits.saturating_sub(16)).unwrap_or(0)
    }
}

impl ListenOptions {
    /// Whether a listener can have these settings.
    pub fn check(&self) -> Result<(), Invalid> {
        let Self { backlog, half_open, cookies: _, stream } = self;
        for (field, places) in [("backlog", *backlog), ("half_open", *half_open)] {
            if !(1..=MOST_PLACES).contains(&places) {
                return Err(Invalid::new(field, places.to_string(), format!("1 to {MOST_PLACES}")));
            }
        }
        stream.check().map_err(|invalid| invalid.within("stream"))
    }
}

impl From<Congestion> for CongestionControl {
    fn from(congestion: Congestion) -> Self {
        match congestion {
            Congestion::None => Self::None,
            Congestion::Reno => Self::Reno,
            Congestion::Cubic => Self::Cubic,
        }
    }
}

/// Most bytes that the buffers of all connections take together: also a save is bound by it.
pub(super) const MOST_MEMORY: u64 = 16 << 30;
const UNSCALED: u32 = 65_536;
const LEAST_BUFFER: u32 = 2048;
const MOST_BUFFER: u32 = 64 << 20;
const LEAST_WAIT: Duration = Duration::from_millis(1);
const MOST_WAIT: Duration = Duration::from_secs(32 * 24 * 3600);
const MOST_PLACES: u32 = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_are_named() {
        let refused = |change: fn(&mut StreamOptions)| {
            let mut options = ListenOptions::default();
            change(&mut options.stream);
            options.check().unwrap_err().to_string()
        };
        assert_eq!(ListenOptions::default().check(), Ok(()));
        assert_eq!(
            refused(|options| options.receive_buffer = 3000),
            "stream.receive_buffer: found 3000, expected a power of two, 2048 to 67108864"
        );
        assert_eq!(refused(|options| options.hop_limit = 0), "stream.hop_limit: found 0, expected 1 to 255");
        assert_eq!(
            refused(|options| options.keepalive = Some(Duration::ZERO)),
            "stream.keepalive: found 0ns, expected 1ms to 2764800s"
        );
        let listen = ListenOptions { backlog: 0, ..ListenOptions::default() };
        assert_eq!(listen.check().unwrap_err().to_string(), "backlog: found 0, expected 1 to 65536");
    }
}
