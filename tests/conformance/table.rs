//! What is claimed, and the document that says so.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Result, ensure};

/// What is outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// One row: what is asked of a VTEP, and what the two do.
#[derive(Clone, Debug)]
pub struct Claim {
    pub what: String,
    /// Where it is said, and what.
    pub requires: &'static str,
    /// For one family of outer headers only.
    pub only: Option<Family>,
    pub kernel: &'static str,
    pub ours: &'static str,
    /// Why they differ: empty where they don't.
    pub why: &'static str,
}

impl Claim {
    pub fn new(what: impl Into<String>, requires: &'static str) -> Claim {
        Claim {
            what: what.into(),
            requires,
            only: None,
            kernel: "arrives",
            ours: "arrives",
            why: "",
        }
    }

    pub fn over(mut self, family: Family) -> Claim {
        self.only = Some(family);
        self
    }

    pub fn both(mut self, outcome: &'static str) -> Claim {
        (self.kernel, self.ours) = (outcome, outcome);
        self
    }

    pub fn differs(mut self, kernel: &'static str, ours: &'static str, why: &'static str) -> Claim {
        (self.kernel, self.ours, self.why) = (kernel, ours, why);
        self
    }

    pub fn is_over(&self, family: Family) -> bool {
        self.only.is_none_or(|only| only == family)
    }

    /// What is claimed of one of the two.
    pub fn of(&self, kernel: bool) -> &'static str {
        if kernel { self.kernel } else { self.ours }
    }

    /// What was seen must be what the table says.
    pub fn check(&self, seen: &str, of_kernel: bool) -> Result<()> {
        let who = if of_kernel { "Linux" } else { "overlay-dp" };
        let claimed = self.of(of_kernel);
        let what = &self.what;
        ensure!(
            seen == claimed,
            "{what}: {who}: '{claimed}' is claimed, and seen was '{seen}'"
        );
        Ok(())
    }
}

/// A part of the document.
pub struct Section {
    pub title: &'static str,
    pub about: &'static str,
    pub claims: Vec<Claim>,
}

/// One case of the two together: it works, or the test fails.
pub struct Works {
    pub what: &'static str,
    pub requires: &'static str,
}

/// The part of the document about the two together.
pub struct Together {
    pub title: &'static str,
    pub about: &'static str,
    pub cases: Vec<Works>,
}

const HEAD: &str = "\
# Conformance

How overlay-dp behaves as a VXLAN tunnel endpoint, beside the Linux kernel's vxlan device. Every row
is a test, of both VTEPs (`cargo test -p overlay-dp --test conformance`): with overlay-dp's XDP and tcx data
paths, over IPv4 and over IPv6 unless a row says which, and mostly with IPv4 and IPv6 inside. Frames
are made byte by byte and put on the wire, and what comes out at the other end is compared byte by
byte. The kernel's device has its defaults (`ip link add type vxlan id … local … dstport 4789`).

This file is written by that test (`OVERLAY_DP_WRITE_DOCS=1`), which fails when it is not what the
tests claim.
";

pub fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/conformance.md")
}

pub fn render(sections: &[Section], together: &Together) -> String {
    let mut text = HEAD.to_owned();
    for Section {
        title,
        about,
        claims,
    } in sections
    {
        let _ = write!(text, "\n## {title}\n\n{about}\n\n");
        text += "| case | what is required | Linux | overlay-dp | why they differ |\n";
        text += "|---|---|---|---|---|\n";
        for claim in claims {
            let only = match claim.only {
                None => "",
                Some(Family::V4) => " (over IPv4)",
                Some(Family::V6) => " (over IPv6)",
            };
            let Claim {
                what,
                requires,
                kernel,
                ours,
                why,
                ..
            } = claim;
            let _ = writeln!(
                text,
                "| {what}{only} | {requires} | {kernel} | {ours} | {why} |"
            );
        }
    }
    let Together {
        title,
        about,
        cases,
    } = together;
    let _ = write!(text, "\n## {title}\n\n{about}\n\n");
    text += "| case | what it shows |\n|---|---|\n";
    for Works { what, requires } in cases {
        let _ = writeln!(text, "| {what} | {requires} |");
    }
    text
}
