//! What can be seen of the overlay: metrics, as Prometheus itself reads them, and the status page,
//! as Chromium shows it.
//!
//! ```text
//!   c1 ─ host1 ── router ── host2 ─ c2          --metrics on both hosts, on loopback
//!          └ prometheus, chromium
//! ```

#[path = "seeing/browser.rs"]
mod browser;
#[path = "seeing/capture.rs"]
mod capture;
#[path = "seeing/http.rs"]
mod http;
#[path = "seeing/metrics.rs"]
mod metrics;
#[path = "seeing/page.rs"]
mod page;
#[path = "seeing/top.rs"]
mod top;
#[path = "seeing/trace.rs"]
mod trace;

use std::path::PathBuf;

use overlay_lab::program;

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");

/// Where the agents of these tests listen.
const WEB: &str = "127.0.0.1:9478";

/// A program that a part of a test needs; without it that part is skipped, which fails under
/// `CI=true`.
fn need(name: &str) -> Option<PathBuf> {
    let found = program(name);
    if found.is_none() {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(
            !ci,
            "there is no {name}, and CI=true forbids to skip what needs it"
        );
        eprintln!("SKIPPED: there is no {name}: 'cargo xtask test' installs it");
    }
    found
}
