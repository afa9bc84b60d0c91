//! `cargo xtask vm`: the kernel cases (`tests/kernel.rs`) on real kernels, each in its own qemu guest.
//!
//! In: which kernels and which cases. Out: progress on stderr, and on stdout one line a kernel (its release, `pass`,
//! `FAILED` or `skipped`, cases, seconds), below it why each case failed; the exit code is not 0 when any failed. The
//! guest's whole console is left in `target/vm/<release>.log`.
//!
//! What always holds: kernels are found by Debian's meta packages, so a point release never breaks the run; apt is used
//! with folders of our own and the system's apt state is only read (but for installing tools that are missing, as root);
//! a guest that hangs, panics or says nothing is a failure, never a pass. A guest has no network device at all.
//!
//! Not here: the cases themselves; they are the guest's payload and know nothing of qemu.

mod architecture;
mod foreign;
mod guest;
mod initramfs;
mod kernels;
mod payload;
mod tools;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use architecture::Architecture;

use crate::workspace::root;

/// What `cargo xtask vm` may be told.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only kernels whose series begins with this (5.10, 6.1, 6.12, 7); may be given more than once.
    #[arg(long, value_name = "SERIES")]
    kernel: Vec<String>,
    /// Guests of these architectures; arm64 is cross-compiled, which the first time takes minutes.
    #[arg(long, value_enum, value_name = "ARCHITECTURE", default_values = ["amd64"])]
    arch: Vec<Architecture>,
    /// Only cases whose name contains this; may be given more than once.
    #[arg(long, value_name = "NAME")]
    case: Vec<String>,
    /// Guests at a time (default: one a processor, 2 at most).
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Seconds until a guest is taken for hung.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    timeout: u64,
    /// Ask the package mirror for newer kernels now (otherwise once a week).
    #[arg(long)]
    refresh: bool,
    /// Debian mirror to use in place of the one in this machine's apt sources.
    #[arg(long, value_name = "URI")]
    mirror: Option<String>,
    /// Build agent and cases optimised.
    #[arg(long)]
    release: bool,
    /// Show the guests' consoles while they run.
    #[arg(long)]
    verbose: bool,
}

/// How the run of one kernel ended.
enum Outcome {
    Pass,
    Failed,
    Skipped(String),
}

/// Lines of a reason that are told at the end.
const REASON: usize = 20;

struct Row {
    name: String,
    outcome: Outcome,
    passed: usize,
    failed: usize,
    skipped: usize,
    failures: Vec<String>,
    seconds: f64,
}

/// Runs the cases on every chosen kernel; the exit code is not 0 when any failed.
///
/// # Errors
/// When the rig itself cannot be put together.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let root = root();
    let out = root.join("target/vm");
    std::fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let cache = cache_folder(&root)?;

    let chosen: Vec<&kernels::Suite> =
        kernels::SUITES.iter().filter(|suite| suite.is_chosen(&arguments.arch, &arguments.kernel)).collect();
    if chosen.is_empty() {
        let known =
            kernels::SUITES.iter().map(|suite| format!("{} ({})", suite.series, suite.architecture.debian()));
        let known: Vec<String> = known.collect();
        bail!("no kernel matches {:?}; there are {}", arguments.kernel, known.join(", "));
    }
    tools::install_missing(&arguments.arch)?;
    let mut native = None;
    if arguments.arch.contains(&Architecture::Amd64) {
        let payload = payload::build(Architecture::Amd64, &root, &out, arguments.release, &arguments.case)?;
        native = Some(Ground { userland: initramfs::userland(&out)?, payload });
    }
    let rig = Rig { arguments, root, cache, out, native };

    let rows = Mutex::new(Vec::new());
    let queue = Mutex::new(chosen.iter().enumerate());
    let jobs = arguments.jobs.unwrap_or_else(default_jobs).clamp(1, chosen.len());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut queue| queue.next());
                    let Some((index, suite)) = next else { break };
                    let row = rig.run(suite);
                    if let Ok(mut rows) = rows.lock() {
                        rows.push((index, row));
                    }
                }
            });
        }
    });

    let mut rows = rows.into_inner().unwrap_or_default();
    rows.sort_by_key(|(index, _)| *index);
    let mut bad = rows.len() != chosen.len();
    for (_, row) in &rows {
        bad |= matches!(row.outcome, Outcome::Failed);
        println!("{}", row.line());
        for why in &row.failures {
            // Some end with all that an agent said, which is above.
            let mut lines = why.lines().take(REASON);
            println!("{:<32} FAILED   {}", "", lines.next().unwrap_or_default());
            lines.for_each(|line| println!("{:<32}   {line}", ""));
        }
    }
    if bad {
        eprintln!("vm: a kernel failed; the consoles are in {}", rig.out.display());
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// What guests of one architecture have in common.
struct Ground {
    userland: PathBuf,
    payload: PathBuf,
}

struct Rig<'a> {
    arguments: &'a Arguments,
    root: PathBuf,
    cache: PathBuf,
    out: PathBuf,
    native: Option<Ground>,
}

impl Rig<'_> {
    fn run(&self, suite: &kernels::Suite) -> Row {
        let began = Instant::now();
        let mut row = Row {
            name: format!("{} ({})", suite.series, suite.architecture.debian()),
            outcome: Outcome::Failed,
            passed: 0,
            failed: 0,
            skipped: 0,
            failures: Vec::new(),
            seconds: 0.0,
        };
        if suite.architecture == Architecture::Arm64
            && let Some(why) = foreign::missing()
        {
            row.outcome = Outcome::Skipped(why);
            return row;
        }
        let wanted =
            kernels::obtain(suite, &self.cache, self.arguments.mirror.as_deref(), self.arguments.refresh);
        let kernel = match wanted {
            Ok(kernel) => kernel,
            // An end-of-life suite may leave the mirrors any day; that says nothing about the agent.
            Err(error) if suite.may_be_missing => {
                row.outcome = Outcome::Skipped(format!("not obtainable: {error:#}"));
                return row;
            }
            Err(error) => {
                row.failures.push(format!("{error:#}"));
                return row;
            }
        };
        row.name.clone_from(&kernel.release);
        match self.boot(suite, &kernel) {
            Ok(report) => {
                (row.passed, row.failed, row.skipped) = (report.passed, report.failed, report.skipped);
                if report.is_good() {
                    row.outcome = Outcome::Pass;
                }
                row.failures = report.failures;
            }
            Err(error) => row.failures.push(format!("{error:#}")),
        }
        row.seconds = began.elapsed().as_secs_f64();
        row
    }

    fn boot(&self, suite: &kernels::Suite, kernel: &kernels::Kernel) -> Result<guest::Report> {
        let foreign;
        let ground = match &self.native {
            Some(native) if suite.architecture == Architecture::Amd64 => native,
            _ => {
                foreign = self.foreign(suite)?;
                &foreign
            }
        };
        let initrd = initramfs::assemble(kernel, &self.out, &ground.userland, &ground.payload)?;
        guest::run(&guest::Boot {
            architecture: suite.architecture,
            kernel,
            initrd: &initrd,
            log: &self.out.join(format!("{}.log", kernel.release)),
            results: &self.out.join(format!("{}.results", kernel.release)),
            timeout: Duration::from_secs(self.arguments.timeout),
            verbose: self.arguments.verbose,
        })
    }

    /// Built when its turn comes, so that this machine's own guests are not kept waiting for a cross build.
    fn foreign(&self, suite: &kernels::Suite) -> Result<Ground> {
        let arguments = self.arguments;
        let apt =
            kernels::Apt::new(&kernels::folder(suite, &self.cache), suite, arguments.mirror.as_deref())?;
        Ok(Ground {
            userland: foreign::userland(&apt, &self.out)?,
            payload: payload::build(
                suite.architecture,
                &self.root,
                &self.out,
                arguments.release,
                &arguments.case,
            )?,
        })
    }
}

impl Row {
    fn line(&self) -> String {
        let verdict = match &self.outcome {
            Outcome::Pass => "pass",
            Outcome::Failed => "FAILED",
            Outcome::Skipped(why) => return format!("{:<32} skipped  {why}", self.name),
        };
        let mut cases = format!("{} cases", self.passed + self.failed);
        if self.failed > 0 {
            cases += &format!(", {} failed", self.failed);
        }
        if self.skipped > 0 {
            cases += &format!(", {} skipped", self.skipped);
        }
        format!("{:<32} {verdict:<7}  {cases}  {:.0} s", self.name, self.seconds)
    }
}

fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(2)
}

/// Kernels are large and the same for every clone: they stay in the user's cache when there is one.
fn cache_folder(root: &Path) -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .map_or_else(|| root.join("target/vm"), |cache| cache.join("flowlogd"));
    let folder = base.join("kernels");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    folder.canonicalize().with_context(|| format!("cannot resolve {}", folder.display()))
}
