//! What an operator may set, by the names and with the defaults of the kernel's `net.netfilter`.

use hibernet_snapshot::{Invalid, Snapshot};
use thiserror::Error;

/// Longest timeout that can be set: deadlines are kept as 32-bit counts of 1/128 s, half of whose range is the future.
pub const LONGEST_TIMEOUT: u32 = 97 * 86_400;

/// Why a sysctl was not set. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum SysctlError {
    /// No such name.
    #[error("found the name {name:?}, expected one of {expected}")]
    Unknown {
        /// The name as given.
        name: String,
        /// What names there are.
        expected: &'static str,
    },
    /// Not a number, or not one this setting can take.
    #[error("{name}: found {found:?}, expected a number from {least} to {most}")]
    OutOfRange {
        /// The kernel's name of the setting.
        name: &'static str,
        /// The value as given.
        found: String,
        /// Lowest number that can be set.
        least: u32,
        /// Highest number that can be set.
        most: u32,
    },
}

/// A type a setting can have.
trait Value: Copy {
    fn from_number(number: u32) -> Self;
    fn number(self) -> u32;
}

impl Value for u32 {
    fn from_number(number: u32) -> Self {
        number
    }

    fn number(self) -> u32 {
        self
    }
}

impl Value for bool {
    fn from_number(number: u32) -> Self {
        number != 0
    }

    fn number(self) -> u32 {
        u32::from(self)
    }
}

macro_rules! sysctls {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $default:expr, $name:literal up to $most:expr;)*) => {
        /// Settings of one conntrack instance. `Default` is what a kernel starts with.
        ///
        /// Timeouts are in seconds.
        #[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
        #[snapshot(validate = could_be_set)]
        pub struct Sysctls {
            $($(#[$doc])* #[snapshot(saved)] pub $field: $type,)*
        }

        impl Default for Sysctls {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        /// What cannot be set cannot have been saved.
        fn could_be_set(sysctls: &Sysctls) -> Result<(), Invalid> {
            let limits: &[(&str, u32, u32)] = &[$(($name, sysctls.$field.number(), $most),)*];
            match limits.iter().find(|(_, found, most)| found > most) {
                None => Ok(()),
                Some((name, found, most)) => Err(Invalid::new(*name, found.to_string(), format!("0 to {most}"))),
            }
        }

        impl Sysctls {
            /// Every name that can be set, without the `net.netfilter.` before it.
            pub const NAMES: &[&str] = &[$($name,)*];

            /// Sets one by its name, with or without the `net.netfilter.` before it.
            pub fn set(&mut self, name: &str, value: &str) -> Result<(), SysctlError> {
                match name.strip_prefix(PREFIX).unwrap_or(name) {
                    $($name => self.$field = parse($name, value, $most)?,)*
                    _ => return Err(SysctlError::Unknown { name: name.to_owned(), expected: KNOWN }),
                }
                Ok(())
            }

            /// The value of one by its name, with or without the `net.netfilter.` before it.
            pub fn value(&self, name: &str) -> Option<u64> {
                let number = match name.strip_prefix(PREFIX).unwrap_or(name) {
                    $($name => self.$field.number(),)*
                    _ => return None,
                };
                Some(u64::from(number))
            }

            /// Every name with its value.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$(($name, u64::from(self.$field.number())),)*].into_iter()
            }
        }
    };
}

sysctls! {
    /// Most flows the table holds; 0 sets no limit.
    max: u32 = 262_144, "nf_conntrack_max" up to i32::MAX as u32;
    /// Hash buckets the kernel would have: what early drop looks at is measured by it.
    buckets: u32 = 262_144, "nf_conntrack_buckets" up to i32::MAX as u32;
    /// Whether packets and bytes of flows that begin are counted. Does not touch flows that exist.
    acct: bool = false, "nf_conntrack_acct" up to 1;
    /// Whether checksums of packets from outside are verified.
    checksum: bool = true, "nf_conntrack_checksum" up to 1;
    /// Events: off, on, or on when somebody listens. Here a listener is always assumed.
    events: u32 = 2, "nf_conntrack_events" up to 2;
    /// Protocol whose invalid packets are logged, 255 for all. The reason is always kept here; the value is only remembered.
    log_invalid: u32 = 0, "nf_conntrack_log_invalid" up to 255;
    /// Whether flows note when they began. Only remembered.
    timestamp: bool = false, "nf_conntrack_timestamp" up to 1;
    /// Whether a TCP flow may be picked up in the middle.
    tcp_loose: bool = true, "nf_conntrack_tcp_loose" up to 1;
    /// Whether TCP segments outside the window are let through.
    tcp_be_liberal: bool = false, "nf_conntrack_tcp_be_liberal" up to 1;
    /// Whether a RST below the highest acknowledgement is let through.
    tcp_ignore_invalid_rst: bool = false, "nf_conntrack_tcp_ignore_invalid_rst" up to 1;
    /// So many repetitions of one segment bring `tcp_timeout_max_retrans`.
    tcp_max_retrans: u32 = 3, "nf_conntrack_tcp_max_retrans" up to 255;
    /// After a SYN.
    tcp_timeout_syn_sent: u32 = 120, "nf_conntrack_tcp_timeout_syn_sent" up to LONGEST_TIMEOUT;
    /// After a SYN-ACK.
    tcp_timeout_syn_recv: u32 = 60, "nf_conntrack_tcp_timeout_syn_recv" up to LONGEST_TIMEOUT;
    /// Open and idle: five days.
    tcp_timeout_established: u32 = 432_000, "nf_conntrack_tcp_timeout_established" up to LONGEST_TIMEOUT;
    /// After the first FIN.
    tcp_timeout_fin_wait: u32 = 120, "nf_conntrack_tcp_timeout_fin_wait" up to LONGEST_TIMEOUT;
    /// After the acknowledgement of the first FIN.
    tcp_timeout_close_wait: u32 = 60, "nf_conntrack_tcp_timeout_close_wait" up to LONGEST_TIMEOUT;
    /// After the second FIN.
    tcp_timeout_last_ack: u32 = 30, "nf_conntrack_tcp_timeout_last_ack" up to LONGEST_TIMEOUT;
    /// After the acknowledgement of the second FIN.
    tcp_timeout_time_wait: u32 = 120, "nf_conntrack_tcp_timeout_time_wait" up to LONGEST_TIMEOUT;
    /// After a RST.
    tcp_timeout_close: u32 = 10, "nf_conntrack_tcp_timeout_close" up to LONGEST_TIMEOUT;
    /// Cap while one segment is repeated without an answer, or the window is closed.
    tcp_timeout_max_retrans: u32 = 300, "nf_conntrack_tcp_timeout_max_retrans" up to LONGEST_TIMEOUT;
    /// Cap while data waits for its acknowledgement.
    tcp_timeout_unacknowledged: u32 = 300, "nf_conntrack_tcp_timeout_unacknowledged" up to LONGEST_TIMEOUT;
    /// UDP that is unanswered or young.
    udp_timeout: u32 = 30, "nf_conntrack_udp_timeout" up to LONGEST_TIMEOUT;
    /// UDP that goes both ways for more than two seconds.
    udp_timeout_stream: u32 = 120, "nf_conntrack_udp_timeout_stream" up to LONGEST_TIMEOUT;
    /// ICMP queries.
    icmp_timeout: u32 = 30, "nf_conntrack_icmp_timeout" up to LONGEST_TIMEOUT;
    /// ICMPv6 queries.
    icmpv6_timeout: u32 = 30, "nf_conntrack_icmpv6_timeout" up to LONGEST_TIMEOUT;
    /// Protocols without a tracker.
    generic_timeout: u32 = 600, "nf_conntrack_generic_timeout" up to LONGEST_TIMEOUT;
    /// GRE one way.
    gre_timeout: u32 = 30, "nf_conntrack_gre_timeout" up to LONGEST_TIMEOUT;
    /// GRE both ways.
    gre_timeout_stream: u32 = 180, "nf_conntrack_gre_timeout_stream" up to LONGEST_TIMEOUT;
    /// SCTP after an ABORT or the end of a shutdown.
    sctp_timeout_closed: u32 = 10, "nf_conntrack_sctp_timeout_closed" up to LONGEST_TIMEOUT;
    /// SCTP after INIT.
    sctp_timeout_cookie_wait: u32 = 3, "nf_conntrack_sctp_timeout_cookie_wait" up to LONGEST_TIMEOUT;
    /// SCTP after COOKIE ECHO.
    sctp_timeout_cookie_echoed: u32 = 3, "nf_conntrack_sctp_timeout_cookie_echoed" up to LONGEST_TIMEOUT;
    /// SCTP, open.
    sctp_timeout_established: u32 = 210, "nf_conntrack_sctp_timeout_established" up to LONGEST_TIMEOUT;
    /// SCTP after SHUTDOWN of the original side.
    sctp_timeout_shutdown_sent: u32 = 3, "nf_conntrack_sctp_timeout_shutdown_sent" up to LONGEST_TIMEOUT;
    /// SCTP after SHUTDOWN of the reply side.
    sctp_timeout_shutdown_recd: u32 = 3, "nf_conntrack_sctp_timeout_shutdown_recd" up to LONGEST_TIMEOUT;
    /// SCTP after SHUTDOWN ACK.
    sctp_timeout_shutdown_ack_sent: u32 = 3, "nf_conntrack_sctp_timeout_shutdown_ack_sent" up to LONGEST_TIMEOUT;
    /// SCTP path that was opened by a HEARTBEAT.
    sctp_timeout_heartbeat_sent: u32 = 30, "nf_conntrack_sctp_timeout_heartbeat_sent" up to LONGEST_TIMEOUT;
    /// How long fragments of IPv6 wait for the rest of their datagram. Read by the reassembly in front of the table.
    frag6_timeout: u32 = 60, "nf_conntrack_frag6_timeout" up to LONGEST_TIMEOUT;
    /// Bytes of IPv6 fragments from which on new ones are refused. Read by the reassembly.
    frag6_high_thresh: u32 = 4_194_304, "nf_conntrack_frag6_high_thresh" up to i32::MAX as u32;
    /// Bytes of IPv6 fragments to which the reassembly goes back. Read by the reassembly.
    frag6_low_thresh: u32 = 3_145_728, "nf_conntrack_frag6_low_thresh" up to i32::MAX as u32;
}

impl Sysctls {
    /// Most flows in a table that has room for `capacity`.
    pub(crate) fn limit(&self, capacity: u32) -> u32 {
        match self.max {
            0 => capacity,
            max => max.min(capacity),
        }
    }
}

const PREFIX: &str = "net.netfilter.";
const KNOWN: &str = "net.netfilter.nf_conntrack_*";

fn parse<T: Value>(name: &'static str, value: &str, most: u32) -> Result<T, SysctlError> {
    match value.trim().parse::<u32>() {
        Ok(number) if number <= most => Ok(T::from_number(number)),
        _ => Err(SysctlError::OutOfRange { name, found: value.to_owned(), least: 0, most }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_kernels_values_are_the_defaults() {
        let sysctls = Sysctls::default();
        assert_eq!(sysctls.value("nf_conntrack_tcp_timeout_established"), Some(432_000));
        assert_eq!(sysctls.value("net.netfilter.nf_conntrack_tcp_loose"), Some(1));
        assert_eq!(sysctls.value("nf_conntrack_acct"), Some(0));
        assert_eq!(sysctls.iter().count(), Sysctls::NAMES.len());
    }

    #[test]
    fn every_name_takes_its_own_value_back() {
        let mut sysctls = Sysctls::default();
        for (name, value) in Sysctls::default().iter() {
            sysctls.set(name, &value.to_string()).unwrap();
            sysctls.set(&format!("net.netfilter.{name}"), "1").unwrap();
            assert_eq!(sysctls.value(name), Some(1));
        }
    }

    #[test]
    fn a_refused_value_names_what_was_found_and_what_was_expected() {
        let mut sysctls = Sysctls::default();
        for found in ["-1", "8380801", "", "ten", "4294967296"] {
            let error = sysctls.set("nf_conntrack_udp_timeout", found).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("nf_conntrack_udp_timeout: found {found:?}, expected a number from 0 to 8380800")
            );
        }
        assert_eq!(sysctls, Sysctls::default());
        sysctls.set("nf_conntrack_udp_timeout", "8380800").unwrap();
    }

    #[test]
    fn a_switch_is_nought_or_one() {
        assert!(Sysctls::default().set("nf_conntrack_tcp_be_liberal", "2").is_err());
    }

    #[test]
    fn an_unknown_name_is_refused_as_given() {
        let error = Sysctls::default().set("net.netfilter.nf_flow", "1").unwrap_err();
        assert_eq!(
            error.to_string(),
            "found the name \"net.netfilter.nf_flow\", expected one of net.netfilter.nf_conntrack_*"
        );
    }
}
