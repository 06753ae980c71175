//! Segments of one stream that came in one burst, as one super-packet: what a network card or its driver does as "generic
//! receive offload".
//!
//! Only what a sender could have cut from one packet is put together: headers that differ in nothing but what cutting makes
//! differ, data that follows on, checksums that hold. And only what is for this host: what is routed on leaves as it came.

use core::net::IpAddr;

use hibernet_conntrack::{Parsed, parse, proto};

use super::{
    ChecksumState, Ingress, Offload, Segmentation, SegmentationKind, TCP_CHECKSUM, TCP_FLAGS, TCP_OFFSET, sum,
};

/// A burst, with segments that belong together put together.
pub(crate) struct Coalesced<I> {
    frames: I,
    next: Option<Ingress>,
}

/// What has become one.
pub(crate) struct Merged {
    pub(crate) ingress: Ingress,
    /// How many frames it was.
    pub(crate) frames: u64,
}

impl<I: Iterator<Item = Ingress>> Coalesced<I> {
    pub(crate) const fn new(frames: I) -> Self {
        Self { frames, next: None }
    }

    /// The next frame as it came.
    pub(crate) fn next_alone(&mut self) -> Option<Merged> {
        let ingress = self.next.take().or_else(|| self.frames.next())?;
        Some(Merged { ingress, frames: 1 })
    }

    /// The next packet of the burst. `at`: where in their frames the datagrams begin.
    pub(crate) fn next(&mut self, at: usize, is_own: impl FnOnce(IpAddr) -> bool) -> Option<Merged> {
        let first = self.next.take().or_else(|| self.frames.next())?;
        let Some(mut run) = Run::begin(&first, at, is_own) else { return Some(Merged { ingress: first, frames: 1 }) };
        let mut frames = 1_u64;
        let mut whole: Option<Vec<u8>> = None;
        while run.is_open() {
            let Some(next) = self.frames.next() else { break };
            let Some(data) = run.follows(&first.frame, &next) else {
                self.next = Some(next);
                break;
            };
            let whole = whole.get_or_insert_with(|| {
                let mut room = Vec::with_capacity(at.saturating_add(MOST));
                room.extend_from_slice(&first.frame);
                room
            });
            whole.extend_from_slice(data);
            run.extend(&next.frame, data.len());
            frames = frames.saturating_add(1);
        }
        Some(match whole {
            None => Merged { ingress: run.alone(first), frames },
            Some(whole) => Merged { ingress: run.together(whole), frames },
        })
    }
}

/// A row of segments.
struct Run {
    at: usize,
    parsed: Parsed,
    /// Length of all headers, from `at` on.
    headers: usize,
    /// Bytes of data in each segment but the last.
    size: usize,
    data: usize,
    is_over: bool,
    pushes: bool,
}

impl Run {
    fn begin(first: &Ingress, at: usize, is_own: impl FnOnce(IpAddr) -> bool) -> Option<Self> {
        let Ingress { frame, offload } = first;
        let parsed = segment_of(frame, at, *offload)?;
        let datagram = frame.get(at..)?;
        let headers = headers_of(datagram, &parsed)?;
        let size = datagram.len().checked_sub(headers).filter(|size| *size > 0)?;
        let pushes = datagram.get(parsed.header_len..)?.get(TCP_FLAGS)? & PSH != 0;
        let is_alone = pushes || !is_own(parsed.dst) || is_group(frame, at);
        (!is_alone && holds(datagram, &parsed, *offload)).then_some(Self {
            at,
            parsed,
            headers,
            size,
            data: size,
            is_over: false,
            pushes,
        })
    }

    /// Whether another may follow.
    const fn is_open(&self) -> bool {
        !self.is_over && self.headers.saturating_add(self.data).saturating_add(self.size) <= MOST
    }

    /// The data of a frame that goes on where the row ends.
    fn follows<'f>(&self, first: &[u8], next: &'f Ingress) -> Option<&'f [u8]> {
        let Self { at, parsed, headers, size, data, .. } = self;
        let parsed_next = segment_of(&next.frame, *at, next.offload)?;
        let datagram = next.frame.get(*at..)?;
        let (found, found_data) = datagram.split_at_checked(*headers)?;
        let (expected, l4) = (first.get(*at..)?.get(..*headers)?, parsed.header_len);
        let numbers = |headers: &[u8], at: usize| {
            headers.get(l4.saturating_add(at)..)?.first_chunk().map(|number| u32::from_be_bytes(*number))
        };
        let follows_on = numbers(expected, SEQ)?.wrapping_add(u32::try_from(*data).ok()?) == numbers(found, SEQ)?;
        let same_link = first.get(..*at) == next.frame.get(..*at);
        let same_ip = parsed_next.header_len == l4 && is_same_ip(expected.get(..l4)?, found.get(..l4)?);
        let same_tcp = is_same_tcp(expected.get(l4..)?, found.get(l4..)?);
        let fits = !found_data.is_empty() && found_data.len() <= *size;
        let is_next = follows_on && same_link && same_ip && same_tcp && fits;
        (is_next && holds(datagram, &parsed_next, next.offload)).then_some(found_data)
    }

    fn extend(&mut self, next: &[u8], data: usize) {
        let flags = self.at.saturating_add(self.parsed.header_len).saturating_add(TCP_FLAGS);
        self.pushes = next.get(flags).is_some_and(|flags| flags & PSH != 0);
        self.data = self.data.saturating_add(data);
        self.is_over = self.pushes || data < self.size;
    }

    /// The one segment there is. Its checksum has been looked at.
    fn alone(&self, first: Ingress) -> Ingress {
        let Ingress { frame, offload } = first;
        Ingress { frame, offload: Offload { checksum: ChecksumState::Verified, ..offload } }
    }

    /// All of them in one.
    fn together(&self, mut frame: Vec<u8>) -> Ingress {
        let Self { at, parsed, pushes, size, .. } = self;
        let len = frame.len().saturating_sub(*at);
        if let Some(datagram) = frame.get_mut(*at..) {
            if parsed.is_v6() {
                sum::put(datagram, V6_LENGTH, u16::try_from(len.saturating_sub(V6_HEADER)).unwrap_or(0));
            } else {
                sum::put(datagram, V4_LENGTH, u16::try_from(len).unwrap_or(0));
                sum::put(datagram, V4_CHECKSUM, 0);
                let checksum = !sum::folded(sum::add(0, datagram.get(..parsed.header_len).unwrap_or_default()));
                sum::put(datagram, V4_CHECKSUM, checksum);
            }
            if let Some(flags) = datagram.get_mut(parsed.header_len.saturating_add(TCP_FLAGS)) {
                *flags |= if *pushes { PSH } else { 0 };
            }
        }
        let start = u16::try_from(at.saturating_add(parsed.header_len)).unwrap_or(u16::MAX);
        let kind = if parsed.is_v6() { SegmentationKind::Tcp6 } else { SegmentationKind::Tcp4 };
        let segmentation = u16::try_from(*size).ok().map(|size| Segmentation { kind, size });
        Ingress {
            frame,
            offload: Offload { checksum: ChecksumState::Partial { start, offset: TCP_CHECKSUM }, segmentation },
        }
    }
}

/// A TCP segment that is nothing but data and an acknowledgement, in an IP header without options or extensions.
fn segment_of(frame: &[u8], at: usize, offload: Offload) -> Option<Parsed> {
    let datagram = frame.get(at..)?;
    let is_plain = matches!(offload.checksum, ChecksumState::Complete | ChecksumState::Verified);
    if !is_plain || offload.segmentation.is_some() {
        return None;
    }
    // What is not TCP is not looked at any further.
    let protocol = match datagram.first()? {
        0x45 => *datagram.get(V4_PROTOCOL)?,
        first if first >> 4 == 6 => *datagram.get(V6_NEXT)?,
        _ => return None,
    };
    if protocol != proto::TCP {
        return None;
    }
    let parsed = parse(datagram).ok()?;
    let flags = datagram.get(parsed.header_len..)?.get(TCP_FLAGS)?;
    let is_whole = parsed.fragment.is_none() && parsed.end == datagram.len() && parsed.has_l4;
    (is_whole && flags & !PSH == ACK).then_some(parsed)
}

fn headers_of(datagram: &[u8], parsed: &Parsed) -> Option<usize> {
    let transport = usize::from(datagram.get(parsed.header_len..)?.get(TCP_OFFSET)? >> 4).checked_mul(4)?;
    parsed.header_len.checked_add(transport).filter(|_| transport >= LEAST_TCP)
}

fn holds(datagram: &[u8], parsed: &Parsed, offload: Offload) -> bool {
    let pseudo = || sum::pseudo_header(parsed.src, parsed.dst, proto::TCP, parsed.l4(datagram).len());
    offload.vouches() || sum::folded(sum::add(pseudo().into(), parsed.l4(datagram))) == u16::MAX
}

/// Whether two IP headers differ in nothing but length, identification and checksum.
fn is_same_ip(one: &[u8], other: &[u8]) -> bool {
    let same = |from: usize, to: usize| one.get(from..to) == other.get(from..to);
    match one.first().map(|first| first >> 4) {
        Some(4) => same(0, V4_LENGTH) && same(6, V4_CHECKSUM) && same(12, one.len()),
        _ => same(0, V6_LENGTH) && same(6, one.len()),
    }
}

/// Whether two TCP headers differ in nothing but the number, PSH and the checksum.
fn is_same_tcp(one: &[u8], other: &[u8]) -> bool {
    let same = |from: usize, to: usize| one.get(from..to) == other.get(from..to);
    let flags = |header: &[u8]| header.get(TCP_FLAGS).map(|flags| flags & !PSH);
    let checksum = usize::from(TCP_CHECKSUM);
    same(0, SEQ)
        && same(SEQ.saturating_add(4), TCP_FLAGS)
        && flags(one) == flags(other)
        && same(TCP_FLAGS.saturating_add(1), checksum)
        && same(checksum.saturating_add(2), one.len())
}

/// Whether an Ethernet frame was sent to a group.
fn is_group(frame: &[u8], at: usize) -> bool {
    at > 0 && frame.first().is_some_and(|first| first & 1 != 0)
}

/// The longest datagram.
const MOST: usize = 65_535;
const V4_LENGTH: usize = 2;
const V4_PROTOCOL: usize = 9;
const V4_CHECKSUM: usize = 10;
const V6_LENGTH: usize = 4;
const V6_NEXT: usize = 6;
const V6_HEADER: usize = 40;
const SEQ: usize = 4;
const LEAST_TCP: usize = 20;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_packets::tcp;

    /// Segments of a stream: flags, offset, data.
    fn burst(v6: bool, segments: &[(&str, u32, &[u8])]) -> Vec<Ingress> {
        let [from, to] = if v6 { ["[fd00::2]:5", "[fd00::1]:80"] } else { ["10.0.0.2:5", "10.0.0.1:80"] };
        let ingress = |(flags, at, data): &(&str, u32, &[u8])| Ingress {
            frame: tcp(from, to, flags, u32::MAX.wrapping_sub(10).wrapping_add(*at), 9, data),
            offload: Offload::NONE,
        };
        segments.iter().map(ingress).collect()
    }

    fn merged(frames: Vec<Ingress>) -> Vec<(u64, Ingress)> {
        let mut coalesced = Coalesced::new(frames.into_iter());
        core::iter::from_fn(|| coalesced.next(0, |_| true)).map(|merged| (merged.frames, merged.ingress)).collect()
    }

    #[test]
    fn segments_that_follow_on_become_one_that_is_cut_into_them_again() {
        for v6 in [false, true] {
            let frames =
                burst(v6, &[("A", 0, b"0123456789"), ("A", 10, b"abcdefghij"), ("PA", 20, b"xyz"), ("A", 23, b"!")]);
            let all = merged(frames.clone());
            assert_eq!(all.iter().map(|(frames, _)| *frames).collect::<Vec<_>>(), [3, 1]);
            let mut whole = all[0].1.clone();
            let parsed = parse(&whole.frame).unwrap();
            let offload = whole.offload.accept(&mut whole.frame, 0, &parsed).unwrap();
            assert_eq!(offload.segmentation.unwrap().size, 10);
            let again =
                super::super::segments(&whole.frame, &parsed, offload.segmentation.unwrap(), false, &[]).unwrap();
            let mut again: Vec<_> = again.into_iter().map(|(bytes, _)| bytes).collect();
            for bytes in again.iter_mut().filter(|_| !v6) {
                // Identifications go up; these had none.
                bytes[4..6].copy_from_slice(&[0, 0]);
                crate::test_packets::fill_header_checksum(bytes);
            }
            let before: Vec<_> = frames[..3].iter().map(|ingress| ingress.frame.clone()).collect();
            assert_eq!(again, before);
            assert_eq!(all[1].1.frame, frames[3].frame);
        }
    }

    #[test]
    fn what_a_sender_could_not_have_cut_from_one_packet_stays_apart() {
        let counts = |frames| merged(frames).into_iter().map(|(frames, _)| frames).collect::<Vec<_>>();
        let (one, two): (&[u8], &[u8]) = (b"0123456789", b"abcdefghij");
        let pair = |flags: [&str; 2], at: u32, data: &[u8]| burst(false, &[(flags[0], 0, one), (flags[1], at, data)]);
        assert_eq!(counts(pair(["A", "A"], 10, two)), [2]);
        assert_eq!(counts(pair(["A", "A"], 11, two)), [1, 1], "a gap");
        assert_eq!(counts(pair(["A", "A"], 0, two)), [1, 1], "the same again");
        assert_eq!(counts(pair(["A", "A"], 10, b"")), [1, 1], "no data");
        assert_eq!(counts(pair(["A", "A"], 10, b"longer than the one before")), [1, 1]);
        for flags in ["FA", "RA", "SA", ""] {
            assert_eq!(counts(pair(["A", flags], 10, two)), [1, 1], "{flags}");
            assert_eq!(counts(pair([flags, "A"], 10, two)), [1, 1], "{flags}");
        }
        assert_eq!(counts(pair(["PA", "A"], 10, two)), [1, 1], "pushed");
        for byte in [1, 8, 12, 16, 28, 34, 45] {
            // Type of service, time to live, source, destination, acknowledgement, window, data.
            let mut frames = pair(["A", "A"], 10, two);
            frames[1].frame[byte] ^= 0x40;
            if byte < 20 {
                crate::test_packets::fill_header_checksum(&mut frames[1].frame);
            }
            assert_eq!(counts(frames), [1, 1], "byte {byte}");
        }
        let mut elsewhere = Coalesced::new(pair(["A", "A"], 10, two).into_iter());
        assert_eq!(elsewhere.next(0, |_| false).map(|merged| merged.frames), Some(1), "routed on");
    }

    #[test]
    fn no_packet_becomes_longer_than_ip_allows() {
        let data = [7; 1460];
        let segments: Vec<_> = (0..100).map(|at| ("A", at * 1460, data.as_slice())).collect();
        let all = merged(burst(false, &segments));
        assert_eq!(all.iter().map(|(frames, _)| *frames).collect::<Vec<_>>(), [44, 44, 12]);
        assert!(all.iter().all(|(_, ingress)| ingress.frame.len() <= MOST && parse(&ingress.frame).is_ok()));
    }
}
