//! Finds the headers of the datagram an ICMP error quotes: it is cut, so its lengths say nothing.

use super::{Malformed, Place};
use crate::headers::{V4_HEADER, V6_HEADER, V6_NEXT_HEADER, walk_extensions};

/// Where the parts of the quoted datagram are.
pub(super) fn locate(quoted: &[u8], version: u8) -> Result<Place, Malformed> {
    let found = quoted.first().map_or(0, |byte| byte >> 4);
    match (version, found) {
        (4, 4) => locate_v4(quoted),
        (6, 6) => locate_v6(quoted),
        (expected, found) => Err(Malformed::QuotedVersion { expected, found }),
    }
}

fn locate_v4(quoted: &[u8]) -> Result<Place, Malformed> {
    let truncated = |needed| Malformed::Truncated { needed, found: quoted.len() };
    let Some([first, _, _, _, _, _, fragment @ .., _, protocol, _, _]) = quoted.first_chunk::<12>() else {
        return Err(truncated(V4_HEADER));
    };
    let header = usize::from(first & 0xf).saturating_mul(4).max(V4_HEADER);
    if quoted.len() < header {
        return Err(truncated(header));
    }
    let is_first = u16::from_be_bytes(*fragment) & 0x1fff == 0;
    Ok(Place { version: 4, protocol: *protocol, transport: is_first.then_some(header), whole: true })
}

fn locate_v6(quoted: &[u8]) -> Result<Place, Malformed> {
    let truncated = |needed| Malformed::Truncated { needed, found: quoted.len() };
    let next_header = *quoted.get(V6_NEXT_HEADER).ok_or(truncated(V6_HEADER))?;
    let chain = walk_extensions(quoted, V6_HEADER, V6_NEXT_HEADER, next_header);
    let is_later_fragment = chain.fragment.is_some_and(|fragment| fragment.offset > 0);
    if !chain.complete && !is_later_fragment {
        return Err(truncated(chain.end));
    }
    Ok(Place { version: 6, protocol: chain.proto, transport: chain.complete.then_some(chain.end), whole: true })
}
