//! What the documentation says must be all there is.

use std::path::Path;

use oneport::certs::acme::FaultKind;
use oneport::observe::Reason;

fn page(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_reason_is_explained() {
    let page = page("docs/troubleshooting.md");
    let missing: Vec<_> = Reason::ALL
        .iter()
        .map(|reason| reason.word())
        .filter(|word| !page.contains(&format!("`{word}`")))
        .collect();
    assert!(missing.is_empty(), "docs/troubleshooting.md does not explain {missing:?}");
}

#[test]
fn every_fault_of_an_order_is_explained() {
    let page = page("docs/certificates.md");
    let words = FaultKind::ALL.iter().map(|kind| kind.word());
    let missing: Vec<_> = words.filter(|word| !page.contains(&format!("| `{word}` |"))).collect();
    assert!(missing.is_empty(), "docs/certificates.md does not explain {missing:?}");
}

#[test]
fn every_room_is_on_the_map() {
    let map = page("ARCHITECTURE.md");
    for room in [
        "name", "observe", "net", "config", "access", "registry", "certs", "agent", "ssh", "http", "edge",
        "admin", "app",
    ] {
        assert!(map.contains(&format!("`{room}")), "ARCHITECTURE.md does not show `{room}`");
    }
}

#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).expect("the folder docs");
    let mut pages: Vec<_> = docs
        .map(|entry| format!("docs/{}", entry.expect("an entry").file_name().to_string_lossy()))
        .filter(|name| name.ends_with(".md"))
        .collect();
    assert!(!pages.is_empty(), "docs/ holds no pages");
    pages.extend(["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(str::to_owned));
    for from in &pages {
        let text = page(from);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") || link.starts_with('#') {
                continue;
            }
            let file = link.split('#').next().unwrap_or(link);
            let folder = root.join(from);
            let target = folder.parent().expect("a file").join(file);
            assert!(target.exists(), "{from} links to `{link}`, which is not there");
        }
    }
}
