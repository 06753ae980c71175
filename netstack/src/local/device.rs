//! The wire between the hooks and smoltcp: memory.

use std::collections::VecDeque;

use smoltcp::phy::{self, Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// A device that holds one datagram for smoltcp and all that smoltcp sends.
///
/// Checksums are verified before a datagram gets here, so smoltcp only computes them.
pub(super) struct MemoryDevice {
    mtu: usize,
    tcp_checksum: Checksum,
    received: Option<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

impl MemoryDevice {
    pub(super) fn new(mtu: usize) -> Self {
        Self { mtu, tcp_checksum: Checksum::Tx, received: None, sent: VecDeque::new() }
    }

    /// One for segments that are changed before they leave.
    pub(super) fn without_tcp_checksums(mtu: usize) -> Self {
        Self { tcp_checksum: Checksum::None, ..Self::new(mtu) }
    }

    /// The largest datagram smoltcp sends.
    pub(super) const fn mtu(&self) -> usize {
        self.mtu
    }

    /// The datagram that smoltcp gets next.
    pub(super) fn receive_next(&mut self, datagram: Vec<u8>) {
        self.received = Some(datagram);
    }

    /// The oldest datagram smoltcp has sent.
    pub(super) fn take_sent(&mut self) -> Option<Vec<u8>> {
        self.sent.pop_front()
    }
}

impl core::fmt::Debug for MemoryDevice {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("MemoryDevice").field("mtu", &self.mtu).field("sent", &self.sent.len()).finish_non_exhaustive()
    }
}

impl Device for MemoryDevice {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken, TxToken<'_>)> {
        let datagram = self.received.take()?;
        Some((RxToken(datagram), TxToken(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        Some(TxToken(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::default();
        checksum.ipv4 = Checksum::Tx;
        checksum.udp = Checksum::Tx;
        checksum.tcp = self.tcp_checksum;
        checksum.icmpv4 = Checksum::Tx;
        checksum.icmpv6 = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum = checksum;
        capabilities
    }
}

/// A datagram on its way into smoltcp.
pub(super) struct RxToken(Vec<u8>);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

/// Room for a datagram from smoltcp.
pub(super) struct TxToken<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut datagram = vec![0; len];
        let result = write(&mut datagram);
        self.0.push_back(datagram);
        result
    }
}
