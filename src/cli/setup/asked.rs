//! Whether the options agree with an existing configuration and existing repositories, which setup does not change.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;

use super::super::exit::Usage;
use super::super::global::Global;
use super::Args;
use super::draft::checked_repository;
use super::existing::repository_of;
use crate::catalog::trust_of;
use crate::config::{Config, TargetConfig};
use crate::crypt::Certificate;
use crate::state::RepositoryState;
use crate::storage::{Credentials, Location, parse_endpoint};

/// Refuses options that differ from the configuration in this file, which may have more sources and targets.
pub(super) fn check_configuration(args: &Args, config: &Config, file: &Path) -> Result<()> {
    let differs = |why: String| {
        let file = file.display();
        Err(Usage(format!("{file} exists, and {why}; edit it, or move it away, and run setup again")).into())
    };
    for path in &args.paths {
        let path = std::path::absolute(path)?;
        if !config.sources.iter().any(|source| source.options.selection.paths.contains(&path)) {
            return differs(format!("none of its sources has the path {}", path.display()));
        }
    }
    let wanted = wanted(args, config)?;
    if let (Some(to), []) = (&args.to, wanted.as_slice()) {
        let places: Vec<_> = config.targets.iter().map(|target| target.location.to_string()).collect();
        return differs(format!("its repository is at {}, not at {to}", places.join(" and at ")));
    }
    let credentials = args.credentials.as_deref().map(std::path::absolute).transpose()?;
    let endpoint = args.endpoint.as_deref().map(parse_endpoint).transpose().map_err(|why| Usage(why.to_owned()))?;
    let remotes = || wanted.iter().map(|target| target.location.remote());
    let names = || wanted.iter().map(|target| format!("target.{}", target.name)).collect::<Vec<_>>().join(" and ");
    if credentials.is_some()
        && !remotes().any(|remote| remote.credentials.as_ref().and_then(Credentials::file) == credentials)
    {
        return differs(format!("{} has other credentials or none", names()));
    }
    if endpoint.is_some() && !remotes().any(|remote| remote.endpoint == endpoint) {
        return differs(format!("{} has another endpoint or none", names()));
    }
    Ok(())
}

/// Refuses `--recipient` and `--passphrase` if no repository that they could be for has this key. `new` are the targets whose
/// repositories will be made.
pub(super) fn check_key(
    args: &Args,
    asked: &[Certificate],
    config: &Config,
    new: &[TargetConfig],
    state: &Path,
    global: &Global,
) -> Result<()> {
    let is_new = |target: &&TargetConfig| new.iter().any(|it| it.name == target.name);
    let wanted = wanted(args, config)?;
    if asked.is_empty() && !args.passphrase || wanted.iter().any(is_new) {
        return Ok(());
    }
    let fingerprints = |of: &[Certificate]| of.iter().map(|it| it.fingerprint().to_string()).collect::<BTreeSet<_>>();
    let mut differs = None;
    for target in wanted {
        let Some(id) = repository_of(target, state, global)? else { continue };
        let kept = RepositoryState::new(state, id);
        // Without a catalog, backups fail and say how to make a new one.
        let Some(trust) = trust_of(&kept.catalog_path(), id)? else { continue };
        let is_same = match args.passphrase {
            true => kept.owner_key()?.is_some(),
            false => fingerprints(&trust.recipients) == fingerprints(asked),
        };
        if is_same {
            return Ok(());
        }
        let key = match trust.recipients.as_slice() {
            [] => "not encrypted".to_owned(),
            recipients => format!("encrypted to {}", Vec::from_iter(fingerprints(recipients)).join(", ")),
        };
        differs.get_or_insert(format!("the repository at {} is {key}", target.location));
    }
    let Some(why) = differs else { return Ok(()) };
    Err(Usage(format!(
        "{why}, which cannot be changed; leave --recipient and --passphrase out, or choose another place for a new one"
    ))
    .into())
}

/// The targets that the options are about: the one of `--to`, or all.
fn wanted<'c>(args: &Args, config: &'c Config) -> Result<Vec<&'c TargetConfig>> {
    let Some(to) = &args.to else { return Ok(config.targets.iter().collect()) };
    let asked: Location = checked_repository(to).map_err(Usage)?.parse()?;
    Ok(config.targets.iter().filter(|target| target.location.kind() == asked.kind()).collect())
}
