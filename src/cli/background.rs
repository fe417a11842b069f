//! Going to the background once all works, as the old programs do: what stands against it is said before, and told by the
//! exit code.
//!
//! A process with threads cannot be forked, so this very command is started again, as a child that says when it works.

use std::io::{IsTerminal, Read, Write};
use std::process::{Command, Stdio};

use anyhow::Context;

/// Starts this very command as a child, and waits until it says that it works.
pub(super) fn into_background(name: &str) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.arg(name).args(super::own_arguments()).arg("--child");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the process in the background; try it in the foreground")?;
    let mut said = [0];
    let works = child.stdout.take().is_some_and(|mut out| out.read_exact(&mut said).is_ok());
    if works {
        return Ok(());
    }
    // It has said why on standard error, which is ours too.
    let status = child.wait()?;
    std::process::exit(status.code().filter(|code| *code > 0).unwrap_or(1))
}

/// Leaves the terminal, once everything works; where standard error leads elsewhere, what is logged goes on there.
pub(super) fn detach() -> anyhow::Result<()> {
    // Whoever leads a group of processes already is no terminal's.
    let _leads_already = nix::unistd::setsid();
    std::env::set_current_dir("/")?;
    let nowhere = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let mut out = std::io::stdout();
    out.write_all(b"!").and_then(|()| out.flush()).context("nobody waits for this process")?;
    nix::unistd::dup2_stdout(&nowhere)?;
    if std::io::stderr().is_terminal() {
        nix::unistd::dup2_stderr(&nowhere)?;
    }
    Ok(())
}
