//! `oneport connect` as a guest on streams that it shares with other programs.

use std::io::{PipeReader, PipeWriter, Read, Write as _, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use rustix::fs::{OFlags, fcntl_getfl};

use crate::support::gateway::{Gateway, bare};

fn connect(gateway: &Gateway) -> Command {
    let mut command = bare();
    command.args(["connect", "--insecure", &format!("localhost:{}", gateway.address().port())]);
    command.stderr(Stdio::null());
    command
}

fn waits(stream: &impl AsFd) -> bool {
    !fcntl_getfl(stream).expect("open").contains(OFlags::NONBLOCK)
}

/// Until bytes of the server have come through.
fn hear(mut from: impl Read) {
    let mut greeting = [0; 8];
    from.read_exact(&mut greeting).expect("the server's greeting");
    assert_eq!(&greeting, b"SSH-2.0-");
}

fn kill(mut child: Child) {
    child.kill().expect("ours");
    child.wait().expect("ours");
}

#[test]
fn shared_pipes_stay_as_they_were() {
    let gateway = Gateway::start();
    let (input, mut to_input) = pipe().expect("a pipe");
    let (from_output, output) = pipe().expect("a pipe");
    let start = || {
        let mut command = connect(&gateway);
        command.stdin(input.try_clone().expect("open")).stdout(output.try_clone().expect("open"));
        command.spawn().expect("built")
    };
    let mut running = start();
    hear(&from_output);
    assert!(waits(&input) && waits(&output), "while it runs");
    // What is no SSH makes the server close.
    to_input.write_all(b"no SSH\r\n").expect("open");
    running.wait().expect("ours");
    assert!(waits(&input) && waits(&output), "after its end");
    drain(&from_output, &output);
    let running = start();
    hear(&from_output);
    kill(running);
    assert!(waits(&input) && waits(&output), "after it was killed");
}

/// Takes what is left in a pipe that stays open.
fn drain(mut from: &PipeReader, mut into: &PipeWriter) {
    into.write_all(b"\0").expect("open");
    let mut octet = [1];
    while octet != [0] {
        from.read_exact(&mut octet).expect("open");
    }
}

#[test]
fn shared_sockets_stay_as_they_were() {
    let gateway = Gateway::start();
    for is_polled in [false, true] {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        theirs.set_nonblocking(is_polled).expect("open");
        let stream = || Stdio::from(OwnedFd::from(theirs.try_clone().expect("open")));
        let running = connect(&gateway).stdin(stream()).stdout(stream()).spawn().expect("built");
        hear(&ours);
        kill(running);
        assert_eq!(waits(&theirs), !is_polled);
    }
}

#[test]
fn a_pipe_that_nobody_writes_to_is_at_its_end() {
    let gateway = Gateway::start();
    let (input, writer) = pipe().expect("a pipe");
    drop(writer);
    let child = connect(&gateway).stdin(input).stdout(Stdio::piped()).spawn().expect("built");
    let output = child.wait_with_output().expect("ours");
    assert!(output.status.success() && output.stdout.starts_with(b"SSH-2.0-"), "{output:?}");
}
