//! The agent's own process, as `/proc` shows it.

use std::fs;
use std::time::Duration;

/// What it uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    /// Memory in use, in bytes.
    pub resident: u64,
    /// Address space, in bytes.
    pub virtual_memory: u64,
    /// CPU time.
    pub cpu: Duration,
    /// Threads.
    pub threads: u64,
    /// Open files.
    pub fds: u64,
}

impl Process {
    /// Looks; what can't be read is 0.
    pub fn look() -> Process {
        /// The kernel's clock ticks as `/proc` counts them (`USER_HZ`): so many are a second on
        /// every architecture that has BPF.
        const TICKS: f64 = 100.0;

        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // Behind the name in parentheses, which may hold blanks: field 3 of proc(5) comes first.
        let fields: Vec<u64> = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kilobytes = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            number.unwrap_or(0)
        };
        Process {
            resident: kilobytes("VmRSS:") * 1024,
            virtual_memory: field(23),
            cpu: Duration::from_secs_f64((field(14) + field(15)) as f64 / TICKS),
            threads: field(20),
            fds: fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let seen = Process::look();
        assert!(seen.resident > 100_000, "{seen:?}");
        assert!(seen.virtual_memory >= seen.resident, "{seen:?}");
        assert!(seen.threads >= 1 && seen.fds >= 3, "{seen:?}");
    }
}
