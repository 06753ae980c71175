//! The figures as people read them.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use crate::figures::{Figures, Ours, Peer};

/// All figures with what they are held against.
pub(crate) fn table(figures: &Figures) -> String {
    let Figures { flows, family, threads, limits, ours, peers } = figures;
    let named = [
        ("std HashMap", &peers.std_hashmap),
        ("hashbrown + foldhash", &peers.hashbrown_foldhash),
        ("DashMap", &peers.dashmap),
        ("gVisor's layout", &peers.gvisor_layout),
    ];
    let lines = if *family == "ipv4" { 2.0 } else { 3.0 };
    let limit = lines * limits.random_line_ns;
    format!(
        "{flows} flows, {family}, {threads} thread(s); CPU time, medians of seven rounds\n\
         the machine: {:.1} ns a random line, {:.1} GB/s copied; a look-up walks {lines} lines: {limit:.1} ns\n\
         {}\n{}\n{}",
        limits.random_line_ns,
        limits.memcpy_gbps,
        speeds(ours, &named, limit),
        sizes(ours, &named),
        verdicts(ours, &peers.std_hashmap, limit),
    )
}

fn speeds(ours: &Ours, peers: &[(&str, &Peer); 4], limit: f64) -> Table {
    let mut table = framed(["ns a packet", "look-up", "new flow", "whole path", "look-up / limit"]);
    let mut row = |name: &str, lookup: f64, insert: f64, track: Option<f64>| {
        let track = track.map_or_else(|| "-".to_owned(), |ns| format!("{ns:.1}"));
        let over = format!("{:.1}x", lookup / limit);
        table.add_row([name.to_owned(), format!("{lookup:.1}"), format!("{insert:.1}"), track, over]);
    };
    row("ours, bursts of 32", ours.lookup_batch_ns, ours.insert_batch_ns, Some(ours.track_batch_ns));
    row("ours, one at a time", ours.lookup_single_ns, ours.insert_single_ns, Some(ours.track_single_ns));
    for (name, peer) in peers {
        row(name, peer.lookup_ns, peer.insert_ns, None);
    }
    table
}

fn sizes(ours: &Ours, peers: &[(&str, &Peer); 4]) -> Table {
    let mut table = framed(["", "bytes a flow", "save ms", "restore ms"]);
    let mut row = |name: &str, bytes: f64, save: f64, restore: f64| {
        table.add_row([name.to_owned(), format!("{bytes:.0}"), format!("{save:.1}"), format!("{restore:.1}")]);
    };
    row("ours", ours.bytes_per_flow, ours.save_ms, ours.restore_ms);
    for (name, peer) in peers {
        row(name, peer.bytes_per_flow, peer.save_ms, peer.restore_ms);
    }
    table
}

fn verdicts(ours: &Ours, std: &Peer, limit: f64) -> String {
    format!(
        "ours: {:.1} bytes of image a flow; save pauses packets {:.1} ms; rehash {:.1} ms\n\
         look-ups of std HashMap take {:.1}x ours in bursts, {:.1}x ours one at a time; its look-up alone is {:.2}x our whole path one at a time\n\
         new flows a second and core: {:.1} M in bursts, {:.1} M one at a time; look-ups in bursts are at {:.1}x the limit of their lines",
        ours.image_bytes_per_flow,
        ours.save_pause_ms,
        ours.rehash_ms,
        std.lookup_ns / ours.lookup_batch_ns,
        std.lookup_ns / ours.lookup_single_ns,
        std.lookup_ns / ours.track_single_ns,
        1e3 / ours.insert_batch_ns,
        1e3 / ours.insert_single_ns,
        ours.lookup_batch_ns / limit,
    )
}

fn framed<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
