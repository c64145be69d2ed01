//! libFuzzer's entry into one of overlay-fuzz's targets. Which one, and where its corpus is, the
//! environment says; `cargo xtask fuzz` sets it.

#![no_main]

use std::env;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use overlay_fuzz::Target;

fn target() -> &'static Target {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = env::var("OVERLAY_FUZZ_TARGET").unwrap_or_default();
        Target::named(&name).unwrap_or_else(|| panic!("OVERLAY_FUZZ_TARGET: no target '{name}'"))
    })
}

/// The fuzzer begins with what is good input.
fn write_seeds() {
    let Some(corpus) = env::var_os("OVERLAY_FUZZ_CORPUS").map(PathBuf::from) else {
        return;
    };
    for (number, seed) in (target().seeds)().into_iter().enumerate() {
        let path = corpus.join(format!("seed-{number:03}"));
        fs::write(&path, seed).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

fuzz_target!(init: write_seeds(), |input: &[u8]| {
    (target().run)(input);
});
