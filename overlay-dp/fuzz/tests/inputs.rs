//! Every target with its seeds, with these cut at every byte and damaged, and with all that a
//! fuzzer has found, without one.

use std::fs;
use std::path::Path;

use overlay_fuzz::{TARGETS, Target};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Cutting a long input at every byte says no more than cutting it at this many.
const CUTS: usize = 400;

#[test]
fn seeds_cut_at_every_byte() {
    for Target {
        name, run, seeds, ..
    } in TARGETS
    {
        let seeds = seeds();
        assert!(!seeds.is_empty(), "{name} has no good input");
        for seed in seeds {
            run(&seed);
            let step = seed.len().div_ceil(CUTS).max(1);
            for len in (0..seed.len()).step_by(step) {
                run(&seed[..len]);
            }
        }
    }
}

#[test]
fn damaged_seeds() {
    for Target {
        name, run, seeds, ..
    } in TARGETS
    {
        let seeds = seeds();
        let mut runner = TestRunner::new(Config {
            cases: 1000,
            failure_persistence: None,
            ..Config::default()
        });
        let bytes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6);
        let damage = (any::<prop::sample::Index>(), bytes);
        runner
            .run(&damage, |(seed, bytes)| {
                let mut input = seed.get(&seeds).clone();
                for (at, value) in bytes {
                    let at = at.index(input.len());
                    input[at] = value;
                }
                run(&input);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// Each file below `regressions/<target>/` once made that target fail.
#[test]
fn what_was_found_stays_fixed() {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    for Target { name, run, .. } in TARGETS {
        for file in fs::read_dir(all.join(name)).into_iter().flatten() {
            let path = file.expect("a directory that can be read").path();
            println!("{}", path.display());
            run(&fs::read(&path).expect("a file that can be read"));
        }
    }
    for dir in fs::read_dir(&all).into_iter().flatten() {
        let dir = dir.expect("a directory that can be read").file_name();
        let known = dir
            .to_str()
            .is_some_and(|name| Target::named(name).is_some());
        assert!(known, "regressions of no target: {dir:?}");
    }
}
