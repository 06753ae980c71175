//! A [`smoltcp::phy::Device`] with netfilter's hooks around another.

mod frame;
mod sink;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use hibernet_conntrack::FlowRecord;
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::{Entropy, GenerationId, Instant};
use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, PacketMeta, SegmentationCapabilities};
use smoltcp::time::Instant as Clock;
use thiserror::Error;

use self::frame::{Checksums, FrameHeader, Framing};
pub(crate) use self::sink::Sink;
use crate::drop_reason::DropReason;
use crate::fragments::FragmentLimits;
use crate::link::LinkConfig;
use crate::local::from_clock;
use crate::report::RestoreReport;
use crate::restore::{Decoded, RestoreError, RestorePolicy, Supplied};
use crate::rules::Ruleset;
use crate::save::SaveError;
use crate::stack::{ConfigError, QueueLimits, Stack, StackConfig};

/// What a [`HookedDevice`] is made from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HookedConfig {
    /// Name of the device, by which rules know it: `iif` of what comes in, `oif` of what goes out. `dev` by default.
    pub name: String,
    /// The rules. The default set drops what comes in.
    pub rules: Ruleset,
    /// Size and settings of connection tracking.
    pub conntrack: hibernet_conntrack::Config,
    /// Bounds of the queues.
    pub queues: QueueLimits,
    /// Bounds of IPv4's reassembly.
    pub fragments: FragmentLimits,
}

impl Default for HookedConfig {
    fn default() -> Self {
        Self {
            name: "dev".to_owned(),
            rules: Ruleset::default(),
            conntrack: hibernet_conntrack::Config::default(),
            queues: QueueLimits::default(),
            fragments: FragmentLimits::default(),
        }
    }
}

/// Why a device was not wrapped.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum HookedError {
    /// The device carries neither IP datagrams nor Ethernet frames.
    #[error("found a device of medium {found}, expected Ip or Ethernet")]
    Medium {
        /// The medium.
        found: String,
    },
    /// The configuration cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The image cannot be restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The image is that of another kind of stack.
    #[error("the image is of a stack with {found}, expected one that a device with hooks has saved: one link, no more")]
    AnotherKind {
        /// What is too much.
        found: &'static str,
    },
}

/// A device of a smoltcp program with netfilter's hooks around it: what the program receives has passed PREROUTING and INPUT,
/// what it sends passes OUTPUT and POSTROUTING. Rules, connection tracking, NAT, counters, drop reasons and events are those
/// of a [`Stack`]; the program's interface and sockets stay as they are, it changes the type of its device.
///
/// ```
/// use hibernet_netstack::{HookedConfig, HookedDevice, Ruleset};
/// use hibernet_snapshot::{Entropy, Instant};
/// use smoltcp::phy::{Loopback, Medium};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Loopback::new(Medium::Ip);
/// let config = HookedConfig { rules: Ruleset::open(), ..HookedConfig::default() };
/// let entropy = Entropy::from_test_seed(1); // a live program takes Entropy::from_os()
/// let mut device = HookedDevice::new(device, config, entropy, Instant::ZERO)?;
/// // As before: interface.poll(now, &mut device, &mut sockets);
/// # let config = smoltcp::iface::Config::new(smoltcp::wire::HardwareAddress::Ip);
/// # smoltcp::iface::Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
/// # Ok(())
/// # }
/// ```
///
/// # Save and restore
/// [`HookedDevice::save`] writes rules, counters, flows and their translations; [`HookedDevice::restore`] puts them around a
/// device again, under fresh keys. Peers of known flows are then taken for what they are, `established`, and not for INVALID.
/// The program's own sockets are smoltcp's, and not in the image: a program that is to keep its TCP connections alive through
/// the end of its process uses the sockets of a [`Stack`].
///
/// # What differs from a kernel's host
/// - The wrapper knows no address of the program. `masquerade` takes the source the program chose and `redirect` the
///   destination the peer chose, so that both change ports alone.
/// - There is one device and no routing: OUTPUT can change a destination, but on Ethernet not the neighbour it is sent to.
/// - ARP and neighbour discovery pass by the hooks. Other frames without IP are dropped ([`DropReason::NotIp`]).
/// - What the rules refuse to the program with an ICMP error or a reset reaches its sockets as if it came from the device.
#[derive(Debug)]
pub struct HookedDevice<D> {
    device: D,
    stack: Stack,
    framing: Framing,
    checksums: Checksums,
    /// What the program is to receive next.
    inbox: VecDeque<(Vec<u8>, PacketMeta)>,
    /// What the device had no room for yet.
    outbox: VecDeque<(Vec<u8>, PacketMeta)>,
}

impl<D: Device> HookedDevice<D> {
    /// Puts hooks around a device. All keys are drawn from `entropy`, which is wiped afterwards.
    ///
    /// # Errors
    /// If the device is of a medium without IP or takes less than 1280 bytes, or the configuration cannot be.
    pub fn new(device: D, config: HookedConfig, entropy: Entropy, now: Instant) -> Result<Self, HookedError> {
        let HookedConfig { name, rules, conntrack, queues, fragments } = config;
        let mtu = u32::try_from(Framing::of(&device.capabilities())?.mtu).unwrap_or(u32::MAX);
        let links = vec![LinkConfig { name, mtu, addrs: Vec::new(), medium: crate::Medium::Ip }];
        let config = StackConfig { links, rules, conntrack, queues, fragments, ..StackConfig::default() };
        Self::around(device, Stack::new(config, entropy, now)?)
    }

    /// Puts the saved hooks around a device: rules in force, flows known, all keys drawn afresh from `entropy`. Times go on
    /// from `now`.
    ///
    /// # Errors
    /// If the image is refused, is that of another kind of stack, or the device is of a medium without IP.
    pub fn restore(
        device: D,
        image: &[u8],
        queues: QueueLimits,
        mut entropy: Entropy,
        now: Instant,
    ) -> Result<(Self, RestoreReport), HookedError> {
        Framing::of(&device.capabilities())?;
        let validated = Decoded::open(image, &Limits::default())?.validate(&mut entropy, now)?;
        let rehashed = validated.rehash(entropy, RestorePolicy::default())?;
        let (stack, report) = rehashed.open_as_hooks(Supplied { queues, ..Supplied::default() });
        sink::checked(&stack)?;
        Ok((Self::around(device, stack)?, report))
    }

    fn around(device: D, mut stack: Stack) -> Result<Self, HookedError> {
        let capabilities = device.capabilities();
        let framing = Framing::of(&capabilities)?;
        stack.sink = Some(Sink::default());
        let checksums = Checksums::missing_in(&capabilities.checksum);
        Ok(Self { device, stack, framing, checksums, inbox: VecDeque::new(), outbox: VecDeque::new() })
    }

    /// The hooks as an image: see [`Stack::save`]. What waits for the device or the program is not in it: it is lost as a
    /// datagram may be.
    ///
    /// # Errors
    /// As [`Stack::save`].
    pub fn save(&self, generation: GenerationId, now: Instant) -> Result<Vec<u8>, SaveError> {
        self.stack.save(generation, now)
    }

    /// The hooks, to look at: counters, rules, flows.
    pub const fn hooks(&self) -> &Stack {
        &self.stack
    }

    /// The hooks, to set: rules, events, connection tracking. Not for traffic: that is the device's.
    pub const fn hooks_mut(&mut self) -> &mut Stack {
        &mut self.stack
    }

    /// All flows in creation order, with what remains of their times at `now`.
    pub fn flows(&self, now: Instant) -> Vec<FlowRecord> {
        self.stack.flows(now)
    }

    /// Does what is due: expiry of flows and fragments. Receiving does it too; a program that sleeps long may call it in between.
    pub fn poll(&mut self, now: Instant) {
        self.stack.poll(now);
        self.carry(None, PacketMeta::default());
    }

    /// The device inside.
    pub const fn device(&self) -> &D {
        &self.device
    }

    /// The device inside, to set. What is received from it directly passes no hook.
    pub const fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Takes the device out. The hooks are gone.
    pub fn into_device(self) -> D {
        self.device
    }

    /// Takes a frame of the device through PREROUTING and INPUT.
    fn accept(&mut self, mut frame: Vec<u8>, meta: PacketMeta, now: Instant) {
        let Some(header) = self.framing.header(&frame) else {
            return self.stack.drop_unread(DropReason::NotIp, None, frame.len());
        };
        if header.passes_by(&frame) {
            return self.inbox.push_back((frame, meta));
        }
        let mut datagram = frame.split_off(header.len());
        self.checksums.fill(&mut datagram);
        self.stack.hooks_in(datagram, now);
        self.carry(Some(header), meta);
    }

    /// Takes a frame of the program through OUTPUT and POSTROUTING.
    fn emit(&mut self, mut frame: Vec<u8>, meta: PacketMeta, now: Instant) {
        let Some(header) = self.framing.header(&frame) else {
            return self.stack.drop_unread(DropReason::NotIp, None, frame.len());
        };
        if header.passes_by(&frame) {
            return self.outbox.push_back((frame, meta));
        }
        let datagram = frame.split_off(header.len());
        self.stack.hooks_out(datagram, now);
        // What comes back to the program comes from where it has sent to.
        self.carry(Some(header.reversed()), meta);
    }

    /// Puts what has come of a frame in the queues. `received` is the header of a frame to the program; without one (a
    /// timer's doing, on Ethernet) nobody knows where to send.
    fn carry(&mut self, received: Option<FrameHeader>, meta: PacketMeta) {
        let header = received.or_else(|| self.framing.bare());
        for datagram in self.stack.take_accepted() {
            if let Some(frame) = header.map(|header| header.before(&datagram)) {
                self.inbox.push_back((frame, meta));
            }
        }
        while let Some(sent) = self.stack.egress() {
            match header.map(|header| header.reversed().before(&sent.datagram)) {
                Some(frame) => self.outbox.push_back((frame, meta)),
                None => self.stack.drop_unread(DropReason::NoRoute, None, sent.datagram.len()),
            }
        }
    }

    /// Gives the device what waits for it; true if nothing is left.
    fn flush(&mut self, timestamp: Clock) -> bool {
        while let Some((frame, meta)) = self.outbox.pop_front() {
            let Some(mut token) = self.device.transmit(timestamp) else {
                self.outbox.push_front((frame, meta));
                return false;
            };
            phy::TxToken::set_meta(&mut token, meta);
            phy::TxToken::consume(token, frame.len(), |buffer| buffer.copy_from_slice(&frame));
        }
        true
    }
}

impl<D: Device> Device for HookedDevice<D> {
    type RxToken<'a>
        = HookedRxToken
    where
        Self: 'a;
    type TxToken<'a>
        = HookedTxToken<'a, D>
    where
        Self: 'a;

    fn receive(&mut self, timestamp: Clock) -> Option<(HookedRxToken, HookedTxToken<'_, D>)> {
        let now = from_clock(timestamp);
        self.flush(timestamp);
        while self.inbox.is_empty() {
            let Some((received, room)) = self.device.receive(timestamp) else {
                self.poll(now);
                self.flush(timestamp);
                break;
            };
            let meta = phy::RxToken::meta(&received);
            let frame = phy::RxToken::consume(received, <[u8]>::to_vec);
            // What is answered goes through the hooks, and asks for room of its own.
            drop(room);
            self.accept(frame, meta, now);
            self.flush(timestamp);
        }
        let (frame, meta) = self.inbox.pop_front()?;
        let answer = HookedTxToken { hooked: self, timestamp, meta: PacketMeta::default() };
        Some((HookedRxToken { frame, meta }, answer))
    }

    fn transmit(&mut self, timestamp: Clock) -> Option<HookedTxToken<'_, D>> {
        // What waits was sent before; and a device that is full is to look full.
        let room = self.flush(timestamp) && self.device.transmit(timestamp).is_some();
        room.then(|| HookedTxToken { hooked: self, timestamp, meta: PacketMeta::default() })
    }

    /// Those of the device, but that smoltcp is to compute and verify checksums: the hooks read them.
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = self.device.capabilities();
        capabilities.checksum = ChecksumCapabilities::default();
        // A super-packet would have none.
        capabilities.segmentation = SegmentationCapabilities::default();
        capabilities
    }
}

/// A frame that INPUT has accepted.
#[derive(Debug)]
pub struct HookedRxToken {
    frame: Vec<u8>,
    meta: PacketMeta,
}

impl phy::RxToken for HookedRxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.frame)
    }

    fn meta(&self) -> PacketMeta {
        self.meta
    }
}

/// Room for a frame that is on its way to OUTPUT.
#[derive(Debug)]
pub struct HookedTxToken<'a, D> {
    hooked: &'a mut HookedDevice<D>,
    timestamp: Clock,
    meta: PacketMeta,
}

impl<D: Device> phy::TxToken for HookedTxToken<'_, D> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let Self { hooked, timestamp, meta } = self;
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        hooked.emit(frame, meta, from_clock(timestamp));
        hooked.flush(timestamp);
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }
}
