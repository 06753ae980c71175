//! The namespaces of the demonstration: one user namespace, and a network namespace for each part.

use std::fs;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::Signal;
use rustix::thread::LinkNameSpaceType;
use rustix::thread::UnshareFlags;

use crate::fault::Fault;
use crate::fault::errno_fault;
use crate::sys;

/// What the namespaces were made with, for the story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// A user namespace of our own: no right of the surrounding system was used.
    OwnUserNamespace,
    /// Root's, where the kernel allows no user namespace.
    Root,
}

impl Rights {
    /// For the story.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::OwnUserNamespace => "A user namespace of our own",
            Self::Root => "As root, without a user namespace",
        }
    }
}

/// Moves this process, still of one thread, into a user namespace where it is root, and into a fresh network
/// namespace. Children inherit both.
pub fn enter_router() -> Result<Rights, Fault> {
    let uid = rustix::process::getuid();
    let gid = rustix::process::getgid();
    let rights = match sys::unshare(UnshareFlags::NEWUSER) {
        Ok(()) => {
            map_to_root(uid.as_raw(), gid.as_raw())?;
            Rights::OwnUserNamespace
        }
        Err(_) if uid.is_root() => Rights::Root,
        Err(errno) => return Err(user_namespace_fault(errno)),
    };
    enter_network().map_err(|errno| match rights {
        Rights::OwnUserNamespace => user_namespace_fault(errno),
        Rights::Root => Fault::new(
            format!("making a network namespace: {errno}"),
            "root needs CAP_SYS_ADMIN for it (in a container: `--cap-add SYS_ADMIN` or allow user namespaces)",
        ),
    })?;
    Ok(rights)
}

/// Moves this process into a fresh network namespace of its own.
pub fn enter_network() -> Result<(), Errno> {
    sys::unshare(UnshareFlags::NEWNET)
}

/// Does something in the network namespace that `path` names, and comes back. What is opened there stays there.
pub fn within<T>(path: &Path, act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let home = open_namespace(Path::new("/proc/thread-self/ns/net"))?;
    enter(&open_namespace(path)?, path)?;
    let result = act();
    enter(&home, Path::new("the process's own"))?;
    result
}

fn open_namespace(path: &Path) -> Result<OwnedFd, Fault> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        Fault::new(
            format!("opening the network namespace {}: {errno}", path.display()),
            "give a path such as /run/netns/NAME or /proc/PID/ns/net",
        )
    })
}

fn enter(namespace: &OwnedFd, path: &Path) -> Result<(), Fault> {
    let kind = Some(LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).map_err(|errno| match errno {
        Errno::INVAL => Fault::new(
            format!("{} is no network namespace", path.display()),
            "give a path such as /run/netns/NAME or /proc/PID/ns/net",
        ),
        other => errno_fault(format_args!("entering the network namespace {}", path.display()), other),
    })
}

/// Sees to it that this process does not outlive `parent`.
pub fn die_with(parent: u32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("asking to die with the parent")?;
    let found = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    anyhow::ensure!(i64::from(found) == i64::from(parent), "the parent process is gone");
    Ok(())
}

/// Keeps the kernel of this namespace from answering or forwarding anything: the gateway does that alone. Where
/// /proc/sys cannot be written, the router's devices have no addresses and stay nearly silent anyway.
pub fn silence_kernel() {
    for (path, value) in [
        ("net/ipv6/conf/all/disable_ipv6", "1"),
        ("net/ipv6/conf/default/disable_ipv6", "1"),
        ("net/ipv4/ip_forward", "0"),
    ] {
        set_sysctl(path, value);
    }
}

/// Settings of the peers' kernels: no unsolicited IPv6 chatter.
pub fn calm_kernel() {
    for (path, value) in [
        ("net/ipv6/conf/default/router_solicitations", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ] {
        set_sysctl(path, value);
    }
}

/// Best effort: containers often mount /proc/sys read-only, and nothing that must hold depends on it.
fn set_sysctl(path: &str, value: &str) {
    drop(fs::write(format!("/proc/sys/{path}"), value));
}

fn map_to_root(uid: u32, gid: u32) -> Result<(), Fault> {
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text).map_err(|error| {
            Fault::new(
                format!("writing /proc/self/{file}: {error}"),
                "the system restricts user namespaces: run as root, or lift the restriction \
                 (`sysctl kernel.apparmor_restrict_unprivileged_userns=0`)",
            )
        })
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {uid} 1\n"))?;
    write("gid_map", format!("0 {gid} 1\n"))
}

fn user_namespace_fault(errno: Errno) -> Fault {
    Fault::new(
        format!("user namespaces are off for this user: {errno}"),
        "run as root, or allow them (`sysctl user.max_user_namespaces=15000`, \
         `sysctl kernel.unprivileged_userns_clone=1`, `sysctl kernel.apparmor_restrict_unprivileged_userns=0`)",
    )
}
