//! The example configurations are what they say, by the parser that `isxd` uses.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use isx::daemon::config::Config;

fn examples() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/configs");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .expect("examples/configs")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    files
}

fn load(path: &Path) -> Config {
    let text = std::fs::read_to_string(path).expect("readable");
    Config::parse(path, &text, &|_| None).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_example_is_valid() {
    assert_eq!(examples().len(), 1 + 3 + 5);
    for path in examples() {
        load(&path);
    }
}

/// Founders that differ would each found a cluster of their own.
#[test]
fn the_nodes_of_one_cluster_agree_on_how_it_begins() {
    let mut clusters: BTreeMap<_, Vec<Config>> = BTreeMap::new();
    for path in examples() {
        let config = load(&path);
        clusters.entry(config.cluster).or_default().push(config);
    }
    let mut sizes: Vec<usize> = clusters.values().map(Vec::len).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 3, 5]);
    for nodes in clusters.values() {
        let ids: Vec<_> = nodes.iter().map(|config| config.node).collect();
        for config in nodes {
            assert_eq!(config.founders, nodes[0].founders);
            assert_eq!(config.services, nodes[0].services);
            assert_eq!(config.founders.iter().map(|f| f.id).collect::<Vec<_>>(), ids);
        }
    }
}

#[test]
fn five_nodes_stand_in_three_zones() {
    let path = examples().into_iter().find(|path| path.ends_with("five-nodes-n1.toml"));
    let config = load(&path.expect("there"));
    let mut zones: Vec<&str> = config.founders.iter().map(|founder| founder.zone.as_str()).collect();
    zones.dedup();
    assert_eq!(zones, ["a", "b", "c"]);
}
