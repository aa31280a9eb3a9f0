//! What a deployment would make, as YAML, with nothing touched.
//!
//! The targets are read where a cluster can be reached, because a PR pod is made from its target's
//! template, and everything that would refuse the deployment before it begins refuses the preview.
//! Without a cluster the stack alone speaks, and the first line says so.

use anyhow::Context;
use tokio::time::Instant;

use super::app::Planned;
use super::order::Order;
use crate::cli;
use crate::control::cluster::Cluster;

/// Prints it to standard output.
///
/// # Errors
/// The deployment would be refused.
pub(super) async fn print(
    order: &Order,
    access: &cli::cluster::Cluster,
    deadline: Instant,
) -> anyhow::Result<()> {
    let mut stream = String::new();
    let planned = match reach(access, deadline).await {
        Ok(cluster) => super::plan(order, &cluster).await?,
        Err(reason) => {
            stream += &format!(
                "# no cluster could be read ({reason:#}): what PR pods take from their targets is missing\n"
            );
            order.changes().map(Planned::unread).collect()
        }
    };
    for draft in planned.iter().flat_map(Planned::drafts) {
        let object = serde_saphyr::to_string(&draft.object);
        stream += &format!(
            "---\n{}",
            object.context("an object cannot be written as YAML")?
        );
    }
    super::print(stream.trim_end())
}

async fn reach(access: &cli::cluster::Cluster, deadline: Instant) -> anyhow::Result<Cluster> {
    let cluster = Cluster::reach(access, deadline).await?;
    cluster.greet().await?;
    Ok(cluster)
}
