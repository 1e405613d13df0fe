//! Following what the engine changes while the sandbox runs.

use std::sync::Weak;

use kata_network::Watch;

use crate::sandbox::Sandbox;

/// Until the sandbox ends. What fails is told in the log: there is nobody to tell it to, and the next change is another
/// chance.
pub(crate) async fn follow(sandbox: Weak<Sandbox>, mut watch: Watch) {
    loop {
        let Some(mut death) = sandbox.upgrade().map(|s| s.death()) else { return };
        tokio::select! {
            _ = death.wait_for(Option::is_some) => return,
            changed = watch.changed() => {
                if let Err(err) = changed {
                    tracing::error!("changes of the network are no longer followed: {err}");
                    return;
                }
            }
        }
        let Some(sandbox) = sandbox.upgrade() else { return };
        match sandbox.sync_network().await {
            Ok(true) => tracing::info!("the guest's network has followed a change"),
            Ok(false) => {}
            Err(err) => tracing::error!("the guest's network does not follow a change: {err}"),
        }
    }
}
