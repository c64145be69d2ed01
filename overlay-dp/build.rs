//! Embeds the BPF object that `cargo xtask build-ebpf` leaves in `target/ebpf`.

use std::env;
use std::path::PathBuf;

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let object = manifest.join("../target/ebpf/overlay-ebpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rustc-check-cfg=cfg(with_ebpf)");
    if object.exists() {
        println!("cargo::rustc-cfg=with_ebpf");
        println!("cargo::rustc-env=OVERLAY_EBPF_OBJECT={}", object.display());
    } else {
        println!(
            "cargo::warning=no BPF object yet: run 'cargo xtask build-ebpf', then build again"
        );
    }
}
