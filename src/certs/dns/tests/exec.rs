//! Programs: shell scripts that set the records at BIND with its own `nsupdate`.

use std::path::Path;
use std::time::{Duration, Instant};

use super::servers::{DnsServer, KEY, dig, free_port, named, present, record, script, settings};
use crate::certs::dns::exec::{Exec, fault_of};
use crate::certs::dns::{DnsError, DnsProvider as _, ExecError};
use crate::config::{ExecSettings, ExecStyle};

async fn server() -> DnsServer {
    named(free_port(&["127.0.0.1"]), "", "").await
}

fn exec(server: &DnsServer, program: &Path, style: ExecStyle, cleanup: Option<&Path>) -> Exec {
    let mut dns = settings(server.address);
    dns.servers = vec![server.address];
    let settings = ExecSettings { program: program.to_owned(), cleanup: cleanup.map(Path::to_owned), style };
    Exec::new(&settings, &dns)
}

/// A shell function that updates: `change add NAME VALUE`.
fn updating(server: &DnsServer) -> String {
    let port = server.address.port();
    format!(
        "change() {{ printf 'server 127.0.0.1 {port}\\nupdate %s %s 1 TXT %s\\nsend\\n' \"$1\" \"$2\" \"$3\" | nsupdate -y hmac-sha256:oneport:{KEY}; }}"
    )
}

async fn shown(server: &DnsServer) -> String {
    dig(server.address, &["+short", "_acme-challenge.preview.test", "TXT"]).await
}

#[tokio::test]
async fn a_program_is_called_as_lego_calls_it() {
    let (server, dir) = (server().await, tempfile::tempdir().expect("temporary folder"));
    let program = dir.path().join("hook");
    let body = "[ $# = 3 ] || exit 9\ncase $1 in present) change add $2 $3;; cleanup) change delete $2 $3;; *) exit 8;; esac";
    script(&program, &format!("{}\n{body}", updating(&server)));
    let exec = exec(&server, &program, ExecStyle::Lego, None);
    let (one, other) = (record("first"), record("second"));
    let (one_set, other_set) = tokio::join!(present(&exec, &one), present(&exec, &other));
    one_set.expect("set");
    other_set.expect("set");
    assert_eq!(shown(&server).await.lines().count(), 2);
    exec.cleanup(&one, None).await.expect("removed");
    assert_eq!(shown(&server).await, "\"second\"\n");
}

#[tokio::test]
async fn hooks_are_called_as_certbot_calls_them() {
    let (server, dir) = (server().await, tempfile::tempdir().expect("temporary folder"));
    let (auth, cleanup) = (dir.path().join("auth"), dir.path().join("cleanup"));
    let name = "_acme-challenge.$CERTBOT_DOMAIN.";
    script(&auth, &format!("{}\nchange add {name} $CERTBOT_VALIDATION && echo id-7", updating(&server)));
    script(
        &cleanup,
        &format!(
            "{}\n[ \"$CERTBOT_AUTH_OUTPUT\" = id-7 ] && [ -z \"$CARGO_MANIFEST_DIR$ONEPORT_SECRET\" ] && [ -n \"$PATH\" ] || exit 7\nchange delete {name} $CERTBOT_VALIDATION",
            updating(&server)
        ),
    );
    let with = exec(&server, &auth, ExecStyle::Certbot, Some(&cleanup));
    let memo = present(&with, &record("value")).await.expect("set");
    assert_eq!(shown(&server).await, "\"value\"\n");
    with.cleanup(&record("value"), memo.as_deref()).await.expect("removed");
    assert_eq!(shown(&server).await, "");
    let without = exec(&server, &auth, ExecStyle::Certbot, None);
    present(&without, &record("value")).await.expect("set");
    without.cleanup(&record("value"), None).await.expect("nothing to do");
    assert_eq!(shown(&server).await, "\"value\"\n");
}

#[tokio::test]
async fn a_failing_program_is_told_of_with_what_it_said() {
    let (server, dir) = (server().await, tempfile::tempdir().expect("temporary folder"));
    let program = dir.path().join("hook");
    script(&program, "echo out; printf 'no such \\033[31mzone\\n' >&2; head -c 300000 /dev/zero >&2; exit 3");
    let exec_with = |program: &Path| exec(&server, program, ExecStyle::Lego, None);
    let said = exec_with(&program).set(&record("value")).await.expect_err("failed").to_string();
    assert!(said.contains("failed to present the record (exit status 3): `"), "{said}");
    assert!(said.len() < 1000 && !said.contains('\x1b'), "{said}");
    script(&program, "printf 'no such zone\\nin your account\\n' >&2; exit 1");
    let said = exec_with(&program).cleanup(&record("value"), None).await.expect_err("failed").to_string();
    assert!(
        said.contains("failed to cleanup the record (exit status 1): `no such zone in your account`"),
        "{said}"
    );
    let said = exec_with(&dir.path().join("absent")).set(&record("value")).await;
    assert!(said.expect_err("absent").to_string().contains("cannot be run: No such file"));
}

#[tokio::test]
async fn a_program_that_cannot_be_run_is_told_with_its_first_line() {
    let (server, dir) = (server().await, tempfile::tempdir().expect("temporary folder"));
    let program = dir.path().join("hook");
    let said = async |text: &str| {
        script(&program, "");
        std::fs::write(&program, text).expect("writable");
        let exec = exec(&server, &program, ExecStyle::Lego, None);
        exec.set(&record("value")).await.expect_err("it cannot run").to_string()
    };
    let missing = said("#!/absent/python3 -u\n").await;
    assert!(missing.contains("the interpreter in its first line (`#!`) is not there"), "{missing}");
    let fault = fault_of(&program).expect("a fault");
    assert!(fault.contains("names the interpreter `/absent/python3`, which is not there"), "{fault}");
    let bare = said("echo no first line\n").await;
    assert!(bare.contains("let a script begin with a line such as `#!/bin/sh`"), "{bare}");
    assert!(said("#! /bin/false\n").await.contains("(exit status 1)"));
    assert_eq!(fault_of(&program), None);
}

/// All that it started ends with it, in time.
#[tokio::test]
async fn a_slow_program_is_ended_with_all_that_it_started() {
    let (server, dir) = (server().await, tempfile::tempdir().expect("temporary folder"));
    let (program, pid) = (dir.path().join("hook"), dir.path().join("pid"));
    script(&program, &format!("sleep 600 & echo $! > {}\necho waiting >&2\nwait", pid.display()));
    let mut exec = exec(&server, &program, ExecStyle::Lego, None);
    exec.shorten(Duration::from_millis(500));
    let start = Instant::now();
    let error = present(&exec, &record("value")).await.expect_err("too slow");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(
        matches!(&error, DnsError::Exec(ExecError::TooSlow { said, .. }) if said == "`waiting`"),
        "{error}"
    );
    let pid = std::fs::read_to_string(pid).expect("written");
    let alive = || {
        // A zombie that nobody waits for is dead, too.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    let end = Instant::now() + Duration::from_secs(5);
    while alive() {
        assert!(Instant::now() < end, "`sleep` goes on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A program that leaves something in the background, which holds its outputs, is done all the same.
#[tokio::test]
async fn what_is_left_in_the_background_holds_nothing_up() {
    let (server, dir) = (server().await, tempfile::tempdir().expect("temporary folder"));
    let program = dir.path().join("hook");
    script(&program, &format!("{}\nsleep 600 &\nchange add $2 $3", updating(&server)));
    let exec = exec(&server, &program, ExecStyle::Lego, None);
    present(&exec, &record("value")).await.expect("set");
    assert_eq!(shown(&server).await, "\"value\"\n");
}

/// Each has its time from when it is its turn.
#[tokio::test]
async fn waiting_for_the_turn_does_not_count() {
    let (server, dir) = (server().await, tempfile::tempdir().expect("temporary folder"));
    let program = dir.path().join("hook");
    script(&program, "sleep 0.7");
    let mut exec = exec(&server, &program, ExecStyle::Lego, None);
    exec.shorten(Duration::from_millis(1500));
    let (one, two, three) = (record("1"), record("2"), record("3"));
    let set = tokio::join!(exec.set(&one), exec.set(&two), exec.set(&three));
    assert!(set.0.is_ok() && set.1.is_ok() && set.2.is_ok(), "{set:?}");
}

/// The program puts its record where the wildcard's alias was.
#[tokio::test]
async fn a_wildcard_alias_gives_way_to_the_record() {
    let server = named(free_port(&["127.0.0.1"]), "@ A 192.0.2.1\n* CNAME @\n", "").await;
    let dir = tempfile::tempdir().expect("temporary folder");
    let program = dir.path().join("hook");
    script(&program, &format!("{}\nchange add $2 $3", updating(&server)));
    let exec = exec(&server, &program, ExecStyle::Lego, None);
    present(&exec, &record("value")).await.expect("seen");
    assert_eq!(shown(&server).await, "\"value\"\n");
}
