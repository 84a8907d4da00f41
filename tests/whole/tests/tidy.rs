//! What every source file keeps to.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "the test reads the checkout's own files"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

const MOST_LINES: usize = 600;

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = ["crates", "tests", "benches"]
        .iter()
        .map(|dir| quipu_tests::repository().join(dir))
        .collect();
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found
}

fn each_source(check: impl Fn(&str) -> Option<String>) {
    let complaint = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        check(&text).map(|what| format!("{}: {what}", path.display()))
    };
    let sources = sources();
    assert!(sources.len() > 20, "the walk found the sources");
    let complaints: Vec<String> = sources.iter().filter_map(|p| complaint(p)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn files_hold_one_idea() {
    each_source(|text| {
        let lines = text.lines().count();
        (lines > MOST_LINES).then(|| format!("{lines} lines, {MOST_LINES} at most"))
    });
}

/// The watch's lock is held while they run: one that looks at the same watch waits for ever, with all that it holds, where a writer
/// came in between.
#[test]
fn what_waits_for_a_watch_looks_only_at_what_it_is_given() {
    let wait = concat!(".wait", "_for(");
    each_source(|text| {
        let arguments = text.match_indices(wait).map(|(at, _)| {
            let rest = &text[at + wait.len()..];
            let mut open = 1;
            let end = rest.find(|c| {
                open += i32::from(c == '(') - i32::from(c == ')');
                open == 0
            });
            &rest[..end.unwrap_or(rest.len())]
        });
        let mut found = arguments.filter(|closure| {
            let mut methods = closure.split("self.").skip(1);
            let is_call = |rest: &str| {
                let name = |c: char| c.is_alphanumeric() || c == '_';
                rest.trim_start_matches(name).starts_with('(')
            };
            methods.any(is_call) || closure.contains(".borrow")
        });
        found.next().map(str::to_owned)
    });
}

#[test]
fn unsafe_code_is_in_two_files() {
    // docs/decisions/2026-11-24-simulated-randomness.md
    let known = ["crates/storage/src/io/mmap.rs", "tests/sim/src/entropy.rs"];
    // Written in two halves, so that this file does not find itself.
    let words = [
        concat!("unsa", "fe {"),
        concat!("unsa", "fe fn"),
        concat!("unsa", "fe impl"),
        concat!("unsa", "fe extern"),
        concat!("#[unsa", "fe("),
    ];
    let mut found: Vec<_> = sources()
        .into_iter()
        .filter(|path| {
            let text = fs::read_to_string(path).unwrap();
            words.iter().any(|word| text.contains(word))
        })
        .map(|path| {
            path.strip_prefix(quipu_tests::repository())
                .unwrap()
                .to_owned()
        })
        .collect();
    found.sort();
    assert_eq!(found, known.map(PathBuf::from));
}

#[test]
fn nothing_is_switched_off_or_left_for_later() {
    // Written in two halves, so that this file does not find itself.
    let banned = [
        concat!("#[ign", "ore"),
        concat!("to", "do!("),
        concat!("unimpl", "emented!("),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
    ];
    each_source(|text| {
        let found = banned.iter().find(|word| text.contains(**word))?;
        Some(format!("has {found}"))
    });
}
