//! Conformance: each row of `overlay-dp/docs/conformance.md`, of the Linux kernel's vxlan device and
//! of this data path, frame by frame; and the two together, with real traffic.

#[path = "conformance/bed.rs"]
mod bed;
#[path = "conformance/frames.rs"]
mod frames;
#[path = "conformance/receive.rs"]
mod receive;
#[path = "conformance/receive_rows.rs"]
mod receive_rows;
#[path = "conformance/send.rs"]
mod send;
#[path = "conformance/send_rows.rs"]
mod send_rows;
#[path = "conformance/table.rs"]
mod table;
#[path = "conformance/together.rs"]
mod together;

use anyhow::{Context, Result, ensure};
use overlay_lab::{LabSpec, test};

use bed::Bed;
use table::{Claim, Family};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");

#[test]
fn frames_with_xdp() {
    frame_by_frame("xdp", Family::V4);
}

#[test]
fn frames_with_tcx() {
    frame_by_frame("tcx", Family::V4);
}

#[test]
fn frames_with_xdp_over_ipv6() {
    frame_by_frame("xdp", Family::V6);
}

#[test]
fn frames_with_tcx_over_ipv6() {
    frame_by_frame("tcx", Family::V6);
}

#[test]
fn together_with_xdp() {
    together::test("xdp", &together::USUAL);
}

#[test]
fn together_with_tcx() {
    together::test("tcx", &together::USUAL);
}

#[test]
fn jumbo_frames_with_xdp() {
    together::test("xdp", &together::JUMBO);
}

#[test]
fn jumbo_frames_with_tcx() {
    together::test("tcx", &together::JUMBO);
}

/// The document tells what the tests claim.
#[test]
fn the_document_is_up_to_date() {
    let text = table::render(
        &[receive_rows::section(), send_rows::section()],
        &together::section(),
    );
    if std::env::var_os("OVERLAY_DP_WRITE_DOCS").is_some() {
        std::fs::write(table::path(), &text).expect("docs/conformance.md can't be written");
    }
    let written = std::fs::read_to_string(table::path()).unwrap_or_default();
    assert!(
        written == text,
        "docs/conformance.md is not what the tests claim: write it with OVERLAY_DP_WRITE_DOCS=1 \
         cargo test -p overlay-dp --test conformance document"
    );
}

fn frame_by_frame(datapath: &str, family: Family) {
    let spec = LabSpec {
        hosts: 2,
        containers: 1,
        ..LabSpec::default()
    };
    test(BIN, spec, |lab| {
        let bed = Bed::build(lab, datapath, family)?;
        let mut wrong = Vec::new();
        for place in [bed.kernel(lab)?, bed.ours(lab)?] {
            let mut check = |claim: &Claim, seen: Result<String>| -> Result<()> {
                let seen = seen.with_context(|| claim.what.clone())?;
                if let Err(error) = claim.check(&seen, place.is_kernel()) {
                    wrong.push(error.to_string());
                }
                Ok(())
            };
            for (number, row) in (0..).zip(receive_rows::rows()) {
                if row.claim.is_over(family) {
                    check(&row.claim, row.see(&place, number))?;
                }
            }
            // A container can have its interface send more than it was given.
            place.ns.run("ip link set eth0 mtu 1600")?;
            for (number, row) in (0..).zip(send_rows::rows()) {
                if row.claim.is_over(family) {
                    check(&row.claim, row.see(&place, number))?;
                }
            }
            place
                .ns
                .run(&format!("ip link set eth0 mtu {}", place.mtu))?;
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(bed.agent)
    });
}
