//! A few short seeds, and what the simulator itself promises. Long runs: `cargo run -p quipu-sim --release -- --seeds N`.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

/// Runs the simulator; whether all went well, and what it said.
fn simulate(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_quipu-sim"))
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    (output.status.success(), said)
}

#[test]
fn no_invariant_breaks_in_a_few_seeds() {
    let (good, said) = simulate(&["--seeds=3", "--first-seed=2", "--minutes-each=0.4"]);
    assert!(good, "{said}");
}

#[test]
fn a_replica_that_was_away_gets_what_it_lacks() {
    let (good, said) = simulate(&["--seeds=1", "--first-seed=1", "--minutes-each=0.5"]);
    assert!(good, "{said}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in ["--first-seed=7", "--first-seed=8"] {
        let run = || simulate(&["--one", seed, "--minutes-each=0.4"]).1;
        let (first, second) = (run(), run());
        assert!(first.contains("fingerprint"), "{first}");
        assert_eq!(first, second);
    }
    let other = |seed| simulate(&["--one", seed, "--minutes-each=0.1"]).1;
    assert_ne!(other("--first-seed=7"), other("--first-seed=8"));
}
