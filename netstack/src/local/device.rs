//! The wire between the hooks and smoltcp: memory.

use core::num::NonZeroUsize;
use std::collections::VecDeque;

use smoltcp::phy::{self, Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::offload::{ChecksumState, Offload, Segmentation, SegmentationKind};
use crate::reject::{V4_HEADER, V6_HEADER};

/// A device that keeps what smoltcp sends.
///
/// What is too long for the links is cut behind the hooks, and checksums are made there: smoltcp makes none. What it gets was
/// verified before.
#[derive(Default)]
pub(super) struct MemoryDevice {
    sent: VecDeque<Sent>,
}

/// A segment smoltcp has sent, or many in one.
pub(super) struct Sent {
    pub(super) datagram: Vec<u8>,
    /// What is left to do about it.
    pub(super) offload: Offload,
}

impl Sent {
    /// A segment that is ready for the wire.
    pub(super) const fn whole(datagram: Vec<u8>) -> Self {
        Self { datagram, offload: Offload::NONE }
    }

    /// One of smoltcp's, without a checksum.
    fn partial(datagram: Vec<u8>) -> Self {
        let start = if is_v6(&datagram) { V6_HEADER } else { V4_HEADER };
        let checksum = ChecksumState::Partial { start: u16::try_from(start).unwrap_or(0), offset: CHECKSUM };
        Self { datagram, offload: Offload { checksum, segmentation: None } }
    }

    /// Has it cut into segments with so many bytes of data, if it holds more.
    pub(super) fn cut(&mut self, data: u32, size: u32) {
        if data > size {
            let kind = if is_v6(&self.datagram) { SegmentationKind::Tcp6 } else { SegmentationKind::Tcp4 };
            self.offload.segmentation = u16::try_from(size).ok().map(|size| Segmentation { kind, size });
        }
    }
}

impl MemoryDevice {
    /// The oldest datagram smoltcp has sent.
    pub(super) fn take_sent(&mut self) -> Option<Sent> {
        self.sent.pop_front()
    }
}

impl core::fmt::Debug for MemoryDevice {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("MemoryDevice").field("sent", &self.sent.len()).finish_non_exhaustive()
    }
}

impl Device for MemoryDevice {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        None
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        Some(TxToken(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::default();
        checksum.ipv4 = Checksum::Tx;
        checksum.udp = Checksum::Tx;
        checksum.tcp = Checksum::None;
        checksum.icmpv4 = Checksum::Tx;
        checksum.icmpv6 = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        // The size of segments is what the shim lets smoltcp know of the peer's. For IPv6 smoltcp sends nothing that is longer
        // than this, although its device would cut it, and says of none what it is to be cut into: the shim knows.
        capabilities.max_transmission_unit = MOST;
        let most = NonZeroUsize::new(MOST);
        (capabilities.segmentation.tcpv4, capabilities.segmentation.tcpv6) = (most, most);
        capabilities.checksum = checksum;
        capabilities
    }
}

/// The device with one datagram for smoltcp.
pub(super) struct Borrowed<'d> {
    datagram: Option<&'d [u8]>,
    device: &'d mut MemoryDevice,
}

impl<'d> Borrowed<'d> {
    pub(super) const fn new(datagram: &'d [u8], device: &'d mut MemoryDevice) -> Self {
        Self { datagram: Some(datagram), device }
    }
}

impl Device for Borrowed<'_> {
    type RxToken<'a>
        = RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = TxToken<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        let datagram = self.datagram.take()?;
        Some((RxToken(datagram), TxToken(&mut self.device.sent)))
    }

    fn transmit(&mut self, at: Instant) -> Option<TxToken<'_>> {
        self.device.transmit(at)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.device.capabilities()
    }
}

/// A datagram on its way into smoltcp.
pub(super) struct RxToken<'a>(&'a [u8]);

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

/// Room for a datagram from smoltcp.
pub(super) struct TxToken<'a>(&'a mut VecDeque<Sent>);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut datagram = vec![0; len];
        let result = write(&mut datagram);
        self.0.push_back(Sent::partial(datagram));
        result
    }
}

fn is_v6(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first >> 4 == 6)
}

/// The longest datagram.
const MOST: usize = 65_535;
/// Offset of TCP's checksum.
const CHECKSUM: u16 = 16;
