//! Which crate may use which: the arrows of the architecture, and what must stay out of a crate altogether.
#![allow(clippy::unwrap_used, reason = "cargo's own output is trusted")]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

const ARROWS: [(&str, &[&str]); 9] = [
    // In place of a crate that openraft uses.
    ("base2histogram", &[]),
    ("quipu-model", &[]),
    ("quipu-proto", &[]),
    ("quipu-storage", &["quipu-model"]),
    ("quipu-replication", &["quipu-storage", "quipu-model"]),
    ("quipu-client", &["quipu-proto", "quipu-model"]),
    (
        "quipu-broker",
        &[
            "quipu-replication",
            "quipu-storage",
            "quipu-proto",
            "quipu-model",
        ],
    ),
    ("quipu-kafka", &["quipu-broker", "quipu-model"]),
    (
        "quipu",
        &[
            "quipu-broker",
            "quipu-kafka",
            "quipu-client",
            "quipu-storage",
            "quipu-model",
        ],
    ),
];

/// Crates that prove the others; nothing depends on them.
const PROOFS: [&str; 6] = [
    "quipu-tests",
    "quipu-benches",
    "quipu-fuzz",
    "quipu-sim",
    "quipu-chaos",
    "quipu-outbox",
];

/// What a crate does not reach, through however many others.
const NEVER: [(&str, &[&str]); 3] = [
    (
        "quipu-model",
        &["tokio", "tonic", "prost", "openraft", "rustix", "memmap2"],
    ),
    ("quipu-storage", &["tokio", "tonic", "prost", "openraft"]),
    ("quipu-replication", &["tonic", "prost"]),
];

fn metadata(arguments: &[&str]) -> Value {
    let output = quipu_tests::cargo()
        .args(["metadata", "--format-version=1", "--locked"])
        .args(arguments)
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap()
}

#[test]
fn crates_depend_on_each_other_only_as_drawn() {
    let arrows = BTreeMap::from(ARROWS);
    let metadata = metadata(&["--no-deps"]);
    let mut wrong = Vec::new();
    for package in list(&metadata, "packages") {
        let name = package["name"].as_str().unwrap();
        if PROOFS.contains(&name) {
            continue;
        }
        let Some(allowed) = arrows.get(name) else {
            wrong.push(format!("{name} is not in the drawing"));
            continue;
        };
        for dependency in list(package, "dependencies") {
            // What only a crate's tests use is theirs to choose.
            if dependency["kind"] == "dev" {
                continue;
            }
            let target = dependency["name"].as_str().unwrap();
            let ours = arrows.contains_key(target) || PROOFS.contains(&target);
            if ours && !allowed.contains(&target) {
                wrong.push(format!("{name} → {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "not drawn: {wrong:?}");
}

#[test]
fn storage_knows_no_runtime_and_replication_no_wire() {
    let metadata = metadata(&[]);
    let names: BTreeMap<&str, &str> = list(&metadata, "packages")
        .iter()
        .map(|p| (p["id"].as_str().unwrap(), p["name"].as_str().unwrap()))
        .collect();
    let edges: BTreeMap<&str, Vec<&str>> = list(&metadata["resolve"], "nodes")
        .iter()
        .map(|node| (node["id"].as_str().unwrap(), linked(node)))
        .collect();
    for (name, banned) in NEVER {
        let root = names.iter().find(|(_, n)| **n == name).unwrap().0;
        let mut seen = BTreeSet::new();
        let mut open = vec![*root];
        while let Some(id) = open.pop() {
            if seen.insert(id) {
                open.extend(&edges[id]);
            }
        }
        for id in seen {
            assert!(!banned.contains(&names[id]), "{name} reaches {}", names[id]);
        }
    }
}

/// The dependencies that end up in the binary: neither for tests nor for build scripts.
fn linked(node: &Value) -> Vec<&str> {
    list(node, "deps")
        .iter()
        .filter(|dep| {
            list(dep, "dep_kinds")
                .iter()
                .any(|kind| kind["kind"].is_null())
        })
        .map(|dep| dep["pkg"].as_str().unwrap())
        .collect()
}
