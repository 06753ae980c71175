//! What the kernel of a namespace counted.

use std::fs;

use serde::Deserialize;
use serde::Serialize;

/// Counters of /proc/net/snmp that must not move while connections are carried through a restore.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KernelCounters {
    /// RST segments sent.
    pub(crate) resets_sent: u64,
    /// Connections ended by an RST received (or sent).
    pub(crate) resets_seen: u64,
    /// Segments received with a bad checksum. (`InErrs` would count late duplicates of a handshake as well.)
    pub(crate) bad_checksums: u64,
}

impl KernelCounters {
    /// Reads the counters of this process's network namespace.
    pub(super) fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/thread-self/net/snmp").unwrap_or_default())
    }

    fn parse(snmp: &str) -> Self {
        let mut rows = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (Some(names), Some(values)) = (rows.next(), rows.next()) else { return Self::default() };
        let value = |wanted: &str| {
            let mut pairs = names.split(' ').zip(values.split(' '));
            pairs.find(|(name, _)| *name == wanted).and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
        };
        Self { resets_sent: value("OutRsts"), resets_seen: value("EstabResets"), bad_checksums: value("InCsumErrors") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tcp_row_is_read_by_its_names() {
        let snmp = "Ip: Forwarding\nIp: 1\nTcp: RtoMin EstabResets InErrs OutRsts InCsumErrors\nTcp: 200 3 4 5 6\n";
        let expected = KernelCounters { resets_sent: 5, resets_seen: 3, bad_checksums: 6 };
        assert_eq!(KernelCounters::parse(snmp), expected);
    }

    #[test]
    fn this_kernel_has_the_row() {
        let snmp = fs::read_to_string("/proc/thread-self/net/snmp").expect("the kernel's counters");
        assert!(snmp.contains("EstabResets") && snmp.contains("OutRsts") && snmp.contains("InCsumErrors"));
    }
}
