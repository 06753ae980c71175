//! A super-packet into its segments.

use hibernet_conntrack::{Parsed, proto};

use super::{ChecksumState, Offload, Segmentation, TCP_CHECKSUM, TCP_FLAGS, UDP_CHECKSUM, sum};

/// The segments of a super-packet, in order and each behind `front`, with complete checksums, or if `partial` with missing ones.
///
/// All repeat its headers. TCP's numbers go on with the data; FIN and PSH are the last segment's, CWR the first's (RFC 3168,
/// section 6.1.2), the identification of IPv4 goes up by one. `None` if it is no super-packet.
pub(crate) fn segments(
    datagram: &[u8],
    parsed: &Parsed,
    segmentation: Segmentation,
    partial: bool,
    front: &[u8],
) -> Option<Vec<(Vec<u8>, Offload)>> {
    let l4 = datagram.get(parsed.header_len..)?;
    let headers = parsed.header_len.checked_add(segmentation.kind.transport_header(l4))?;
    let (headers, data) = datagram.split_at_checked(headers)?;
    let size = usize::from(segmentation.size);
    let last = data.len().div_ceil(size.max(1)).checked_sub(1)?;
    let mut all = Vec::with_capacity(last.saturating_add(1));
    for (at, data) in data.chunks(size.max(1)).enumerate() {
        let mut frame = Vec::with_capacity(front.len().saturating_add(headers.len()).saturating_add(data.len()));
        for part in [front, headers, data] {
            frame.extend_from_slice(part);
        }
        let bytes = frame.get_mut(front.len()..)?;
        number_ip(bytes, parsed, at)?;
        let checksum_at = match parsed.proto {
            proto::TCP => {
                let place = Place { sent: at.checked_mul(size)?, is_first: at == 0, is_last: at == last };
                number_tcp(bytes.get_mut(parsed.header_len..)?, &place)?;
                TCP_CHECKSUM
            }
            _ => {
                let len = u16::try_from(bytes.len().checked_sub(parsed.header_len)?).ok()?;
                sum::put(bytes, parsed.header_len.checked_add(4)?, len);
                UDP_CHECKSUM
            }
        };
        let start = u16::try_from(parsed.header_len).ok()?;
        let mut offload =
            Offload { checksum: ChecksumState::Partial { start, offset: checksum_at }, segmentation: None };
        offload.write_pseudo_header(bytes, parsed);
        if !partial {
            offload.complete(bytes);
        }
        all.push((frame, offload.shifted(front.len())));
    }
    Some(all)
}

/// Where a segment stands among the others.
struct Place {
    sent: usize,
    is_first: bool,
    is_last: bool,
}

/// Length, and of IPv4 identification and checksum.
fn number_ip(bytes: &mut [u8], parsed: &Parsed, at: usize) -> Option<()> {
    if parsed.is_v6() {
        let len = bytes.len().checked_sub(V6_HEADER)?;
        sum::put(bytes, V6_LENGTH, u16::try_from(len).ok()?);
        return Some(());
    }
    let total = u16::try_from(bytes.len()).ok()?;
    let id = u16::from_be_bytes(*bytes.get(V4_ID..)?.first_chunk()?);
    sum::put(bytes, V4_LENGTH, total);
    // The low 16 bits of `at` are all that an identification has.
    sum::put(bytes, V4_ID, id.wrapping_add((at & 0xffff) as u16));
    sum::put(bytes, V4_CHECKSUM, 0);
    let header = bytes.get(..parsed.header_len)?;
    let checksum = !sum::folded(sum::add(0, header));
    sum::put(bytes, V4_CHECKSUM, checksum);
    Some(())
}

fn number_tcp(segment: &mut [u8], place: &Place) -> Option<()> {
    let number = segment.get_mut(4..)?.first_chunk_mut::<4>()?;
    let sent = u32::try_from(place.sent).ok()?;
    *number = u32::from_be_bytes(*number).wrapping_add(sent).to_be_bytes();
    let flags = segment.get_mut(TCP_FLAGS)?;
    if !place.is_last {
        *flags &= !(FIN | PSH);
    }
    if !place.is_first {
        *flags &= !CWR;
    }
    Some(())
}

const V4_LENGTH: usize = 2;
const V4_ID: usize = 4;
const V4_CHECKSUM: usize = 10;
const V6_LENGTH: usize = 4;
const V6_HEADER: usize = 40;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
