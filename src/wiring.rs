//! Where the crates meet: connectors and models are given to the service.
//!
//! Public for tests and benches, which run the engine in their own process and must not wire it
//! another way.

use std::path::Path;
use std::sync::Arc;

use engine::contract::{Embedder, Source};
use engine::durable::LocalStore;
use engine::error::WorldError;
use engine::model::Schema;
use engine::runtime::SystemClock;
use engine::telemetry;
use queries::api::PushLine;
use queries::definition::{Connector, ModelDef, SourceDef};
use queries::service::{DecodedPush, Wiring};

use crate::app::RunOptions;

/// Everything a server runs with.
pub(crate) fn wiring(options: &RunOptions) -> Result<Wiring, WorldError> {
    let store = Arc::new(LocalStore::open(&options.data)?);
    let telemetry = Arc::new(telemetry::install());
    let models = options.models.clone();
    Ok(Wiring {
        store,
        workers: options.workers,
        communication: None,
        clock: Arc::new(SystemClock),
        load_model: Arc::new(move |name, model| load_model(name, model, models.as_deref())),
        connect: Arc::new(connect),
        decode_push: Arc::new(decode_push),
        metrics: Arc::new(move || telemetry.render()),
        builder_threads: 1,
        embed: operators::embed::EmbedConfig::default(),
    })
}

/// Loads a model's encoder from `models` (default: the user's data folder), fetching it when it is
/// nowhere on this machine.
pub fn load_model(
    name: &str,
    model: &ModelDef,
    models: Option<&Path>,
) -> Result<Arc<dyn Embedder>, WorldError> {
    let ModelDef::Pretrained {
        location,
        device,
        precision,
    } = model
    else {
        return Err(WorldError::Service {
            service: format!("model \"{name}\""),
            detail: "vectors arrive in a column: there is no encoder".to_owned(),
            is_transient: false,
        });
    };
    operators::embed::load_in(models, location, device, precision, &|progress| {
        tracing::info!(
            what = progress.what,
            done_bytes = progress.done_bytes,
            total_bytes = progress.total_bytes,
            "fetching the model"
        );
    })
}

/// Makes the reader of a source; pushes have none.
pub fn connect(source: &SourceDef, _name: &str) -> Result<Option<Box<dyn Source>>, WorldError> {
    Ok(match &source.connector {
        Connector::Push => None,
        Connector::Files { path, pattern } => Some(connectors::files(path, pattern)?),
        Connector::Generate {
            rows,
            rate,
            seed,
            dimensions,
        } => Some(connectors::generate(*rows, *rate, *seed, *dimensions)),
    })
}

/// Decodes the lines of a push.
pub fn decode_push(schema: &Schema, lines: &[PushLine]) -> DecodedPush {
    let decoded =
        connectors::push::decode(schema, lines.iter().map(|line| (line.line, &*line.raw)));
    DecodedPush {
        changes: decoded.changes,
        accepted: decoded.accepted,
        rejected: decoded.rejected,
    }
}
