//! `sixway connect --config`: a tunnel that nobody has to be asked for, and a prefix that is asked for inside it.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::connect::{ConnectArgs, Signals, ended};
use super::pd::{self, Pd};
use super::run::start_log;
use crate::config::{Config, TunnelConfig};
use crate::router::{Router, Start, hold_signals};

/// Runs the configuration and keeps the prefix until a signal ends it; SIGHUP begins anew with the file as it is then.
pub(super) fn keep(args: &ConnectArgs, file: &Path) -> anyhow::Result<()> {
    start_log(None);
    let config = Config::load(file)?;
    let uplink = uplink(&config)?;
    let wanted = args.pd.start(None, &config.router.tun, uplink.mtu)?;
    anyhow::ensure!(wanted.is_some(), "without --pd that is `sixway run --config {}`", file.display());
    if args.print {
        pd::print(wanted.as_ref());
        return Ok(());
    }
    hold_signals()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let mut keeper =
            Keeper { file: file.to_owned(), pd: Pd::start(wanted, &signals.asked())?, router: None };
        let kept = keeper.keep(config, &mut signals).await;
        keeper.pd.finish().await;
        let put_back = keeper.router.take().map_or(Ok(()), Router::stop);
        kept.and(put_back)
    })
}

struct Keeper {
    file: PathBuf,
    pd: Pd,
    router: Option<Router>,
}

impl Keeper {
    async fn keep(&mut self, mut config: Config, signals: &mut Signals) -> anyhow::Result<()> {
        loop {
            let name = uplink(&config)?.name.clone();
            if let Some(router) = self.router.take() {
                router.stop()?;
            }
            let (client, line) = self.pd.line(&name);
            let start = Start { config, reread: None, prepared: None, signals: false, client };
            self.router = Some(Router::start(start)?);
            self.pd.up(line).await;
            tokio::select! {
                () = ended(|| self.router.as_ref().is_some_and(Router::has_ended)) => {
                    bail!("the router has ended by itself; its log says why")
                }
                stop = signals.ends() => if stop { return Ok(()) },
            }
            config = Config::load(&self.file)?;
        }
    }
}

/// The tunnel that leads out: the default route's, or the only one.
fn uplink(config: &Config) -> anyhow::Result<&TunnelConfig> {
    let default = config.tunnels.iter().find(|tunnel| tunnel.default_route);
    let only = match &config.tunnels[..] {
        [one] => Some(one),
        _ => None,
    };
    default.or(only).with_context(|| {
        format!(
            "there are {} tunnels, and none has the default route: write `default_route = true` into the one in which a \
             prefix is to be asked for",
            config.tunnels.len()
        )
    })
}
