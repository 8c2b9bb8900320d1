//! The configuration file is reread: what it says of who may come and who is believed counts at once,
//! and ends what is open where it no longer may be.

use rustix::process::Signal;
use serde_json::json;
use toml::{Table, Value};

use crate::issuers::{order, set_of};
use crate::permits::{Events, go_on, wait_records};
use crate::private::{House, jose, url};
use crate::support::SOON;
use crate::support::agent::{OpenSsh, host};
use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, Setup};
use crate::support::poll;
use crate::support::visitor::Curl;

/// A visitor's address, and another one's.
const ONE: &str = "127.0.0.1";
const OTHER: &str = "127.0.0.2";

/// Changes the configuration file of a gateway that runs, as editors do.
pub(crate) fn rewrite(gateway: &Gateway, change: impl FnOnce(&mut Table)) {
    let path = gateway.path("oneport.toml");
    let mut table: Table =
        std::fs::read_to_string(&path).expect("readable").parse().expect("written by a test");
    change(&mut table);
    let next = path.with_extension("next");
    std::fs::write(&next, table.to_string()).and_then(|()| std::fs::rename(&next, &path)).expect("writable");
}

pub(crate) fn section<'a>(table: &'a mut Table, name: &str) -> &'a mut Table {
    let section = table.entry(name).or_insert_with(|| Table::new().into());
    section.as_table_mut().expect("a section")
}

fn list(items: &[&str]) -> Value {
    items.iter().map(|&item| Value::from(item)).collect::<Vec<_>>().into()
}

#[test]
fn lists_of_networks_count_as_soon_as_they_are_written() {
    let (mut setup, backend) = (Setup::new(), Backend::start());
    let mut route = Table::new();
    route.insert("host".to_owned(), "app.gw.test".into());
    route.insert("to".to_owned(), format!("http://{}", backend.address()).into());
    setup.set("routes", vec![Value::from(route)]).set("ssh.raw", true);
    let gateway = setup.start();
    let mut agent = OpenSsh::new(&gateway).from("127.0.0.9").forward("/web", backend.address()).start();
    let events = |from: &str, host: &str| {
        let of = |version| Curl::new(&gateway).from(from).args(&[version]);
        ["--http1.1", "--http2"].map(|version| Events::of(of(version), &format!("https://{host}/sse")))
    };
    let (mut by_route, mut by_port) = (events(ONE, "app.gw.test"), events(ONE, &host("web")));
    let mut living = events(OTHER, "app.gw.test");

    rewrite(&gateway, |table| {
        let route = table["routes"].as_array_mut().expect("a list")[0].as_table_mut().expect("a table");
        route.insert("deny".to_owned(), list(&[ONE]));
    });
    by_route.iter_mut().for_each(Events::is_cut);
    wait_records(&gateway, "/sse", "network-denied", 2);
    assert_eq!(Curl::new(&gateway).get("https://app.gw.test/small").status, 403);

    // What is wrong anywhere in it changes nothing, and neither does what cannot be read of it.
    for (deny, words) in [("nonsense", "`nonsense`"), ("file:absent.txt", "absent.txt")] {
        rewrite(&gateway, |table| {
            drop(section(table, "networks").insert("deny".to_owned(), list(&[ONE, deny])))
        });
        let complaint = gateway.wait_log(words, |record| {
            record["message"] == "keeping the settings as they were"
                && record["error"].as_str().is_some_and(|error| error.contains(words))
        });
        assert_eq!(complaint["level"], "ERROR");
        assert_eq!(Curl::new(&gateway).get(&url("/small")).status, 200);
    }
    rewrite(&gateway, |table| {
        section(table, "networks").insert("deny".to_owned(), list(&[ONE]));
        section(table, "ssh").insert("deny".to_owned(), list(&["127.0.0.9"]));
        table.insert("drain_timeout".to_owned(), "7s".into());
    });
    by_port.iter_mut().for_each(Events::is_cut);
    let output = agent.process.finish(SOON);
    assert!(output.stderr.contains("agents may no longer come from your address"), "{output:?}");
    let words = "`drain_timeout` changed in the configuration; restart the gateway for that to count";
    gateway.wait_log(words, |record| record["message"] == words);
    go_on(&mut living, &backend);
    // Taken out again: everybody may come.
    rewrite(&gateway, |table| drop(table.remove("networks")));
    poll("the way to be open", SOON, || {
        (Curl::new(&gateway).call("https://gw.test/").status == 200).then_some(())
    });
}

fn issuer(name: &str) -> Value {
    let fields = [("name", name), ("jwks", "keys.json")];
    Table::from_iter(fields.map(|(name, value)| (name.to_owned(), value.into()))).into()
}

#[test]
fn issuers_are_believed_as_long_as_they_are_configured() {
    let setup = Setup::new();
    std::fs::write(setup.path("keys.json"), set_of(&["ecdsa256"])).expect("writable");
    let house = House::of(setup);
    let gateway = &house.gateway;
    let tokens =
        jose(&json!([order("id.test", "ecdsa256", "ES256"), order("new.test", "ecdsa256", "ES256")]));
    let set = |names: &[&str]| {
        let issuers: Vec<Value> = names.iter().map(|name| issuer(name)).collect();
        rewrite(gateway, |table| drop(section(table, "access").insert("issuer".to_owned(), issuers.into())));
    };
    let opens = |token: &str, status: u16| {
        poll("the issuers to count", SOON, || (house.bearer(token).status == status).then_some(()));
    };
    assert!(house.bearer(&tokens[0]).text().contains("`id.test` is not known here"));
    set(&["id.test"]);
    opens(&tokens[0], 200);
    let events = |token: &str| {
        let header = format!("Authorization: Bearer {token}");
        ["--http1.1", "--http2"].map(|version| Events::with(gateway, &header, version, &url("/sse")))
    };
    let mut ending = events(&tokens[0]);
    set(&["id.test", "new.test"]);
    opens(&tokens[1], 200);
    let mut living = events(&tokens[1]);
    assert!(ending.iter_mut().all(|events| !events.has_ended()));
    set(&["new.test"]);
    ending.iter_mut().for_each(Events::is_cut);
    wait_records(gateway, "/sse", "issuer-key-removed", 2);
    assert!(house.bearer(&tokens[0]).text().contains("`id.test` is not known here"));
    go_on(&mut living, &house.backend);
    // The keys of one that came later are followed as well.
    std::fs::write(gateway.path("keys.json"), set_of(&["rsa2048"])).expect("writable");
    opens(&tokens[1], 401);
}

#[test]
fn secrets_that_are_written_out_are_reread_at_sighup() {
    let mut setup = Setup::new();
    let (old, new) = ("the first secret here", "the second secret here");
    setup.set("access.secrets", vec![old]);
    let house = House::of(setup);
    let gateway = &house.gateway;
    let token = crate::private::token_of("ed25519a", "EdDSA");
    // A browser's own dialogue gets a cookie.
    let cookie = || {
        let curl = Curl::new(gateway).args(&["-u", &format!("x-preevy-profile-key:{token}")]);
        let response = curl.header("Sec-Fetch-Mode: navigate").get(&url("/small"));
        let cookie = response.header("set-cookie").expect("a cookie").split(';').next().expect("its value");
        format!("Cookie: {cookie}")
    };
    let status = |cookie: &str| Curl::new(gateway).header(cookie).get(&url("/small")).status;
    let set = |secrets: &[&str]| {
        rewrite(gateway, |table| drop(section(table, "access").insert("secrets".to_owned(), list(secrets))));
        gateway.signal(Signal::HUP);
    };
    let by_old = cookie();
    let mut ending = ["--http1.1", "--http2"].map(|v| Events::with(gateway, &by_old, v, &url("/sse")));
    set(&[new, old]);
    // New cookies are sealed with the first, so that they survive the old one.
    gateway.wait_log("the secrets", |record| record["message"] == "cookie secrets were reread");
    let by_new = cookie();
    assert_eq!(status(&by_old), 200);
    set(&[new]);
    ending.iter_mut().for_each(Events::is_cut);
    wait_records(gateway, "/sse", "secret-removed", 2);
    assert_eq!((status(&by_old), status(&by_new)), (307, 200));
    let log = gateway.stderr();
    assert!(!log.contains("secret here"), "a secret is in the log");
}
