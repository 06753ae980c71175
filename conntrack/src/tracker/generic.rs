//! Protocols without a tracker: one flow for each pair of addresses, kept by time alone.

use super::{Opened, Outcome};
use crate::protocol::ProtocolState;
use crate::sysctl::Sysctls;

pub(super) fn open(sysctls: &Sysctls) -> Opened {
    Opened { state: ProtocolState::Other, timeout: sysctls.generic_timeout }
}

pub(super) fn update(sysctls: &Sysctls) -> Outcome {
    Outcome::refreshed(sysctls.generic_timeout)
}
