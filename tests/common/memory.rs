//! Peaks of resident memory of processes.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// Runs brackfs to its end, and returns its peak memory in MiB.
pub fn peak(mut command: Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut peak = 0;
    let ended = loop {
        // The kernel keeps the peak, so polling until the end is enough.
        peak = peak.max(peak_so_far(&child).unwrap_or(0));
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        sleep(Duration::from_millis(2));
    };
    assert!(ended.success(), "{command:?}: {ended}");
    assert!(peak > 0, "no peak was seen");
    peak
}

/// The peak in MiB; none once the process has ended.
pub fn peak_so_far(child: &Child) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? >> 10)
}
