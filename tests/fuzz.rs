//! The fuzz targets without a fuzzer: every input of the corpus, and random ones, through the same functions.
//!
//! `scripts/fuzz` looks for new inputs; what it finds is kept in `fuzz/corpus` and stays tested here.

#![expect(clippy::unwrap_used, reason = "a body that cannot go on has found something")]

#[path = "../fuzz/bodies/mod.rs"]
mod bodies;

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

fn names_in(path: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn every_input_of_the_corpus_is_replayed() {
    for (name, body) in bodies::ALL {
        let inputs = names_in(&folder("corpus").join(name));
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for input in inputs {
            eprintln!("{}", input.display());
            body(&fs::read(&input).unwrap());
        }
    }
}

#[test]
fn every_target_has_a_program_and_a_corpus() {
    let listed = fs::read_to_string(folder("Cargo.toml")).unwrap();
    for (name, _) in bodies::ALL {
        assert!(listed.contains(&format!("name = \"{name}\"")), "{name} is not in fuzz/Cargo.toml");
        let program = fs::read_to_string(folder("fuzz_targets").join(format!("{name}.rs"))).unwrap();
        assert!(program.contains(&format!("bodies::run(\"{name}\"")), "{name}");
    }
    assert_eq!(names_in(&folder("fuzz_targets")).len(), bodies::ALL.len());
    assert!(std::panic::catch_unwind(|| bodies::run("nobody", &[])).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_octets_break_nothing(octets in prop::collection::vec(any::<u8>(), 0..300)) {
        for (_, body) in bodies::ALL {
            body(&octets);
        }
    }

    /// RFC: T2 (virtio 1.2 section 5.1.6)
    #[test]
    fn cut_and_merged_again_is_the_same(
        udp in any::<bool>(),
        size in 1u16..1400,
        payload in prop::collection::vec(any::<u8>(), 0..20_000),
    ) {
        let kind = if udp { bodies::Merged::Udp } else { bodies::Merged::Tcp };
        bodies::round_trip(kind, size, &payload);
    }
}
