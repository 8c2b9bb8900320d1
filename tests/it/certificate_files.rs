//! The operator's certificates: whatever way they are replaced, the new ones are shown without a
//! restart, and what cannot be used takes nobody's place.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::support::agent::{Agent, host};
use crate::support::backend::Backend;
use crate::support::ca::Leaf;
use crate::support::gateway::{Gateway, Setup};
use crate::support::process::Process;
use crate::support::visitor::{self, Curl};
use crate::support::{SOON, poll};

/// The serial number of the certificate that is shown for a name, as openssl sees it.
fn shown(gateway: &Gateway, name: &str) -> Option<String> {
    let shown = visitor::tls(gateway, Some(name), &["http/1.1"]).ok()?;
    let leaf = shown.conn.peer_certificates()?.first()?.to_vec();
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), leaf).expect("writable");
    Some(serial(file.path(), "DER"))
}

fn serial(cert: &Path, form: &str) -> String {
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-noout", "-serial", "-inform", form, "-in"]).arg(cert);
    let output = Process::run(&mut openssl, SOON);
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[track_caller]
fn wait_shown(gateway: &Gateway, name: &str, leaf: &Leaf) {
    let wanted = serial(&leaf.cert, "PEM");
    poll("the new certificate", SOON, || (shown(gateway, name)? == wanted).then_some(()));
}

fn put(leaf: &Leaf, cert: &Path, key: &Path) {
    for (from, to) in [(&leaf.cert, cert), (&leaf.key, key)] {
        let beside = to.with_extension("new");
        fs::copy(from, &beside).expect("copied");
        fs::rename(&beside, to).expect("renamed");
    }
}

#[test]
fn a_renamed_pair_is_shown_at_once_and_open_streams_go_on() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let url = format!("https://{}/sse", host("web"));
    let mut stream = Process::start(&mut Curl::new(&gateway).http2().args(&["-N"]).build(&url));
    stream.out.wait_for("data: one\n\n", SOON);
    let new = gateway.leaf("new", &["gw.test", "*.gw.test"]);
    put(&new, &gateway.path("leaf.pem"), &gateway.path("leaf.key"));
    wait_shown(&gateway, "gw.test", &new);
    assert!(stream.has_ended().is_none(), "{}", stream.err);
    backend.release();
    stream.out.wait_for("data: two\n\n", SOON);
    assert!(stream.finish(SOON).status.success());
}

#[test]
fn a_broken_or_mismatched_pair_keeps_the_old_and_says_so() {
    let gateway = Gateway::start();
    let old = shown(&gateway, "gw.test").expect("a certificate");
    let new = gateway.leaf("new", &["gw.test", "*.gw.test"]);
    fs::copy(&new.cert, gateway.path("leaf.pem")).expect("copied");
    let said = gateway.wait_log("the mismatch", |record| {
        record["error"].as_str().is_some_and(|error| error.contains("does not belong"))
    });
    assert_eq!(said["level"], "ERROR", "{said}");
    assert_eq!(shown(&gateway, "gw.test"), Some(old.clone()));
    fs::write(gateway.path("leaf.pem"), "half of it").expect("writable");
    gateway.wait_log("the broken file", |record| {
        record["error"].as_str().is_some_and(|error| error.contains("no certificate in"))
    });
    fs::remove_file(gateway.path("leaf.key")).expect("removable");
    assert_eq!(shown(&gateway, "gw.test"), Some(old));
    put(&new, &gateway.path("leaf.pem"), &gateway.path("leaf.key"));
    wait_shown(&gateway, "gw.test", &new);
}

/// As a Kubernetes secret is mounted: `..data` is a link to a folder, and is swapped.
#[test]
fn a_swapped_link_is_followed() {
    let mut setup = Setup::new();
    let folder = setup.path("mounted");
    let fill = |name: &str, leaf: &Leaf| {
        let folder = folder.join(name);
        fs::create_dir_all(&folder).expect("makable");
        fs::copy(&leaf.cert, folder.join("tls.crt")).expect("copied");
        fs::copy(&leaf.key, folder.join("tls.key")).expect("copied");
    };
    fill("..2026_1", &setup.ca.leaf("one", &["gw.test", "*.gw.test"]));
    symlink("..2026_1", folder.join("..data")).expect("linked");
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), folder.join(name)).expect("linked");
    }
    setup.set("tls.certificates", vec![toml::Table::from_iter([("folder".to_owned(), "mounted".into())])]);
    let gateway = setup.start();
    shown(&gateway, "gw.test").expect("a certificate");
    let two = gateway.leaf("two", &["gw.test", "*.gw.test"]);
    fill("..2026_2", &two);
    symlink("..2026_2", folder.join("..data_tmp")).expect("linked");
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("renamed");
    wait_shown(&gateway, "gw.test", &two);
}

/// As certbot lays them out: `live/NAME` holds links into `archive/NAME`.
#[test]
fn certbots_folder_is_followed_name_by_name() {
    let mut setup = Setup::new();
    let at = |root: &Path, name: &str, number: u32, leaf: &Leaf| {
        let (live, archive) = (root.join("live").join(name), root.join("archive").join(name));
        fs::create_dir_all(&live).expect("makable");
        fs::create_dir_all(&archive).expect("makable");
        for (file, from) in [("fullchain", &leaf.cert), ("privkey", &leaf.key)] {
            fs::copy(from, archive.join(format!("{file}{number}.pem"))).expect("copied");
            let (link, beside) = (live.join(format!("{file}.pem")), live.join(format!("{file}.new")));
            symlink(format!("../../archive/{name}/{file}{number}.pem"), &beside).expect("linked");
            fs::rename(beside, link).expect("renamed");
        }
    };
    let root = setup.path("letsencrypt");
    at(&root, "gw.test", 1, &setup.ca.leaf("one", &["gw.test", "*.gw.test"]));
    fs::write(root.join("live/README"), "certbot's own").expect("writable");
    let live = root.join("live").display().to_string();
    setup.set("tls.certificates", vec![toml::Table::from_iter([("folder".to_owned(), live.into())])]);
    let gateway = setup.start();
    let first = shown(&gateway, "gw.test").expect("a certificate");
    // One more name, whose first files are broken, holds up neither itself nor the other.
    let other = gateway.leaf("other", &["other.test"]);
    fs::create_dir(root.join("live/other.test")).expect("makable");
    fs::write(root.join("live/other.test/fullchain.pem"), "not yet").expect("writable");
    assert_eq!(shown(&gateway, "gw.test"), Some(first));
    assert_eq!(shown(&gateway, "other.test"), None);
    at(&root, "other.test", 1, &other);
    wait_shown(&gateway, "other.test", &other);
    let renewed = gateway.leaf("renewed", &["gw.test", "*.gw.test"]);
    at(&root, "gw.test", 2, &renewed);
    wait_shown(&gateway, "gw.test", &renewed);
    fs::remove_dir_all(root.join("live/other.test")).expect("removable");
    poll("the name to be gone", SOON, || shown(&gateway, "other.test").is_none().then_some(()));
    let refused = visitor::tls(&gateway, Some("other.test"), &["http/1.1"]).map(|_| ()).expect_err("refused");
    assert!(
        refused.to_string().contains("UnrecognizedName") || refused.to_string().contains("UnrecognisedName"),
        "{refused}"
    );
}

#[test]
fn a_certificate_can_be_named_for_names_without_one() {
    let mut setup = Setup::new();
    let other = setup.ca.leaf("other", &["other.test"]);
    let own = setup.path("leaf.pem");
    let key = setup.path("leaf.key");
    setup.certificates(&[(&own, &key), (&other.cert, &other.key)]);
    setup.set("tls.default", "other.test");
    let gateway = setup.start();
    // The client does not accept it, as it should; openssl shows what it was.
    let mut openssl = Command::new("openssl");
    let address = gateway.address().to_string();
    openssl.args(["s_client", "-connect", &address, "-servername", "nobody.example"]);
    let output = Process::run(&mut openssl, SOON);
    let from = output.stdout.find("-----BEGIN").unwrap_or_else(|| panic!("no certificate: {output:?}"));
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), &output.stdout[from..]).expect("writable");
    assert_eq!(serial(file.path(), "PEM"), serial(&other.cert, "PEM"));
}
