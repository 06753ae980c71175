//! GRE (RFC 2784): a flow for each pair of addresses, with a longer timeout once it goes both ways.

use super::{Opened, Outcome};
use crate::protocol::ProtocolState;
use crate::status::Status;
use crate::sysctl::Sysctls;

pub(super) fn open(sysctls: &Sysctls) -> Opened {
    Opened { state: ProtocolState::Other, timeout: sysctls.gre_timeout }
}

pub(super) fn update(status: Status, sysctls: &Sysctls) -> Outcome {
    if status.contains(Status::SEEN_REPLY) {
        Outcome::Accept { timeout: sysctls.gre_timeout_stream, assure: true, changed: false }
    } else {
        Outcome::refreshed(sysctls.gre_timeout)
    }
}
