//! Memory that is asked for before it is needed.

/// Asks for the cache line in which `line` begins. Nothing but time depends on it; where there is no safe way to ask, it does
/// nothing.
#[inline]
pub(crate) fn fetch<T>(line: &T) {
    #[cfg(target_arch = "x86_64")]
    safe_arch::prefetch_t0(line);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Bytes of the smallest page: who has written to one byte of each has been given all.
pub(crate) const PAGE: usize = 4096;
