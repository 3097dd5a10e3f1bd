//! What is submitted to a GPU, and how: on the driver of tests/fixtures/fake_cuda, which takes notes.

use std::fs;

use super::device::Machine;

/// What a run submits to its stream, and the graphs that it makes: see tests/fixtures/fake_cuda.
fn submitted(machine: Machine, options: &[&str]) -> Vec<String> {
    let stream = machine.home.path().join("stream");
    let machine = machine.set("FAKE_STREAM", &stream);
    let ran = machine.rerank(&[&["--device", "cuda"], options].concat());
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    fs::read_to_string(stream).unwrap().lines().map(str::to_owned).collect()
}

/// A kernel may overlap the one before it where the GPU's code waits for that itself, and where nothing stands between the two.
#[test]
fn kernels_overlap_where_they_are_told_to_and_can() {
    let programmatic = &["--programmatic-launch", "--no-graphs"];
    let overlap = |lines: &[String]| lines.iter().any(|line| line == "kernel 1");
    let lines = submitted(Machine::new(), programmatic);
    assert!(overlap(&lines), "{lines:?}");
    let mut before = "";
    for line in &lines {
        if line.starts_with("kernel") {
            assert_eq!(line == "kernel 1", before.starts_with("kernel"), "behind {before:?}: {lines:?}");
        }
        before = line;
    }
    assert!(!overlap(&submitted(Machine::new(), &["--no-graphs"])));
    // 11.0 runs PTX for 8.0, which knows nothing of it.
    for capability in ["80", "89", "110"] {
        assert!(!overlap(&submitted(Machine::new().set("FAKE_CAPABILITY", capability), programmatic)));
    }
    let found = Machine::new().doctor(&[]);
    assert_eq!(found["devices"][0]["programmatic_launch"], true);
    let found = Machine::new().set("FAKE_CAPABILITY", "89").doctor(&[]);
    assert_eq!(found["devices"][0]["programmatic_launch"], false);
}

/// The same of recorded launches: the first of a graph waits for nothing, the others for the end of the one before or for its consent.
#[test]
fn kernels_overlap_within_graphs() {
    let graphs = |machine, options: &[&str]| -> Vec<Vec<String>> {
        let mut lines = submitted(machine, options);
        lines.retain(|line| ["node", "edge", "made"].contains(&&line[..4]));
        let graphs: Vec<_> = lines.split(|line| line == "made").map(<[String]>::to_vec).collect();
        assert!(graphs.len() > 1 && graphs[0].len() > 10, "{graphs:?}");
        graphs
    };
    let chain = |graphs: Vec<Vec<String>>, expected: &[&str]| {
        for graph in graphs.iter().filter(|graph| !graph.is_empty()) {
            assert_eq!(graph[0], "node 0");
            for link in graph[1..].chunks(expected.len()) {
                assert_eq!(link, expected, "{graph:?}");
            }
        }
    };
    let option = &["--programmatic-launch"];
    chain(graphs(Machine::new(), option), &["node 0", "edge 1 1"]);
    chain(graphs(Machine::new(), &[]), &["node 1"]);
    chain(graphs(Machine::new().set("FAKE_CAPABILITY", "80"), option), &["node 1"]);
    // A driver that knows no other edges.
    chain(graphs(Machine::with_driver("older"), option), &["node 1"]);
}
