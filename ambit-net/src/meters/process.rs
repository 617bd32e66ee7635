//! What the process is told to be by the kernel and by `telemetry`, looked up at each scrape.
//!
//! A figure that cannot be read is left out. `man 5 proc`.

use std::fs;

use super::table::{About, LOG_LINES_DROPPED, MAX_FDS, OPEN_FDS, PANICS, RESIDENT_MEMORY};
use super::text;
use crate::telemetry;

pub(super) fn render(out: &mut String) {
    let figures: [(&About, Option<u64>); 5] = [
        (&OPEN_FDS, open_fds()),
        (&MAX_FDS, max_fds()),
        (&RESIDENT_MEMORY, resident_memory()),
        (&PANICS, Some(telemetry::panics())),
        (&LOG_LINES_DROPPED, Some(telemetry::dropped_lines())),
    ];
    for (about, value) in figures {
        if let Some(value) = value {
            text::head(out, about);
            text::line(out, about.name, "", value);
        }
    }
}

/// One less than is listed: reading the list takes one.
fn open_fds() -> Option<u64> {
    let listed = fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(listed.saturating_sub(1)).ok()
}

fn max_fds() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn resident_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}
