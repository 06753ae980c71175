//! Errors a user meets: one line that says what failed, and the remedy.

use std::fmt;
use std::path::Path;

use hibernet_netstack::RestoreError;
use hibernet_snapshot::image::ImageError;
use rustix::io::Errno;

use crate::image_file::front_of;
use crate::image_file::said_writer;

/// A failure with its remedy, printed as one line.
#[derive(Debug)]
pub struct Fault {
    what: String,
    remedy: String,
}

impl Fault {
    /// `what` went wrong; `remedy` is what the user can do about it.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

impl std::error::Error for Fault {}

/// The remedy for the error numbers that have one of their own.
pub(crate) fn errno_fault(what: impl fmt::Display, errno: Errno) -> Fault {
    let remedy = match errno {
        Errno::PERM | Errno::ACCESS => {
            "run it as root, or in a user namespace (`unshare -Urn`); plain `sandbox-demo` makes its own"
        }
        Errno::MFILE | Errno::NFILE => "raise the hard limit of file descriptors (`ulimit -Hn 4096` or more)",
        Errno::ADDRINUSE => "stop the other process or choose another address",
        Errno::NODEV | Errno::NXIO => "`ls /sys/class/net` names the devices there are",
        Errno::NOENT => "check the path",
        Errno::NOSPC => "free some space, or raise the limits in /proc/sys/user",
        Errno::NOMEM | Errno::NOBUFS => "free some memory, or raise the limit of the control group",
        _ => "see the error number in errno(3)",
    };
    Fault::new(format!("{what}: {errno}"), remedy)
}

/// An image that was refused: what is wrong with it, and what to do.
pub(crate) fn image_fault(path: &Path, error: &RestoreError) -> Fault {
    let remedy = match error {
        RestoreError::Image(ImageError::TooNew { .. } | ImageError::UnknownSection { .. })
        | RestoreError::Schema { .. }
        | RestoreError::SectionVersion { .. } => "restore it with the version of the program that wrote it",
        RestoreError::NoSuchLink { .. } => "name a link of the image with --inside, iif= or oif=",
        RestoreError::Image(ImageError::BadMagic { .. }) => "give a file made by `sandbox-demo save`",
        RestoreError::Image(ImageError::Sealed) => "give the key it was sealed with: --seal-key FILE",
        _ => "the file is damaged: take another copy, or save again",
    };
    // Whoever wrote it is named in every error, as far as the header can be read.
    let (mut what, named) = (format!("the image {}: {error}", path.display()), "written by ");
    if !what.contains(named)
        && let Some(writer) = said_writer(&front_of(path))
    {
        what.push_str(&format!(" ({named}{writer:?}, it says)"));
    }
    Fault::new(what, remedy)
}

/// Raises the soft limit of open files to `wanted`; each connection of a peer is one.
pub fn raise_file_limit(wanted: u64) -> Result<(), Fault> {
    use rustix::process::Resource;
    use rustix::process::Rlimit;

    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|soft| soft >= wanted) {
        return Ok(());
    }
    let allowed = limit.maximum.is_none_or(|hard| hard >= wanted);
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    if allowed && rustix::process::setrlimit(Resource::Nofile, raised).is_ok() {
        return Ok(());
    }
    let found = limit.maximum.map_or_else(|| "none".to_owned(), |hard| hard.to_string());
    Err(Fault::new(
        format!("too few file descriptors: {wanted} are needed, the hard limit is {found}"),
        format!("raise it (`ulimit -Hn {wanted}` as root, or LimitNOFILE= of the service)"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_one_line_with_its_remedy() {
        let text = errno_fault("opening guest0", Errno::NODEV).to_string();
        assert!(text.starts_with("opening guest0: "), "{text}");
        assert!(text.contains("No such device") && text.contains("; `ls /sys/class/net`"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }

    #[test]
    fn an_absurd_file_limit_is_refused_with_both_numbers() {
        let text = raise_file_limit(u64::MAX).expect_err("no machine has so many").to_string();
        assert!(text.contains(&u64::MAX.to_string()), "{text}");
    }
}
