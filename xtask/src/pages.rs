//! Shell completions and manual pages, as a distribution's package installs them.
//!
//! In: the command line's definition. Out: `deploy/completions/` (bash, zsh, fish) and `deploy/man/`, a page a verb.
//! Always: nothing of this machine is in them. Files rather than a verb of the agent, because a package builds them
//! into its folders, and a container needs none.

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

/// Name and content of each.
pub fn files() -> anyhow::Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for (shell, name) in
        [(Shell::Bash, "flowlogd.bash"), (Shell::Zsh, "_flowlogd"), (Shell::Fish, "flowlogd.fish")]
    {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut flowlogd::cli::Cli::command(), "flowlogd", &mut script);
        files.push((format!("deploy/completions/{name}"), text(script)?));
    }
    let mut command = flowlogd::cli::Cli::command();
    command.build();
    let mut verbs = vec![(command.clone(), "flowlogd".to_owned())];
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        verbs.push((verb.clone(), format!("flowlogd-{}", verb.get_name())));
    }
    for (verb, name) in verbs {
        let verb = verb.mut_args(|arg| arg.hide_env_values(true)).display_name(name.clone());
        let mut page = Vec::new();
        clap_mangen::Man::new(verb).render(&mut page).with_context(|| format!("the page of {name}"))?;
        files.push((format!("deploy/man/{name}.1"), text(page)?));
    }
    Ok(files)
}

fn text(bytes: Vec<u8>) -> anyhow::Result<String> {
    let text = String::from_utf8(bytes).context("generated text is UTF-8")?;
    // Git would call it an error, and no reader needs it.
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    Ok(lines.join("\n") + "\n")
}
