//! The single writer: events in batches → what they touch → resources → one commit that wakes all subscribers.
//!
//! Run as one task by the app. The index and the store are its own, without a lock. Nothing is published before the source
//! has said everything, so that a restart never shows proxies half a mesh.

use std::collections::BTreeMap;
use std::sync::Arc;

use ambit_core::names::Text;
use ambit_core::status::Problem;
use ambit_net::meters::{Meters, SOURCE_PROBLEMS, XDS_RESOURCES};
use ambit_net::xds::Kind;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::index::served::CaptureSource;
use crate::index::{Dirty, Index, MeshNames, Source};
use crate::roster::Roster;
use crate::translate::{Translated, translate};
use crate::verdict::{Verdict, Verdicts};
use crate::watch::{Event, QUEUE};
use crate::xds::store::{Snapshot, Store};

/// What the publisher writes; none in either before the source has said everything.
#[derive(Debug)]
pub struct Outputs {
    /// Resources, for the subscribers.
    pub snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    /// Who runs where, for the CA and the overview.
    pub roster: watch::Sender<Option<Arc<Roster>>>,
    /// Which objects mean what they say, for their conditions.
    pub verdicts: watch::Sender<Arc<Verdicts>>,
}

/// The writer.
#[derive(Debug)]
pub struct Publisher {
    index: Index,
    store: Store,
    /// What is wrong, by the object that it is wrong with.
    problems: BTreeMap<Source, Vec<String>>,
    source_problems: Vec<Problem>,
    verdicts: Arc<Verdicts>,
    /// Where objects are written, in sources that know.
    origins: BTreeMap<Source, Text>,
    /// What has to be translated.
    dirty: Dirty,
    synced: bool,
    outputs: Outputs,
    meters: Arc<Meters>,
}

impl Publisher {
    /// A writer that knows nothing yet.
    pub fn new(
        mesh: MeshNames,
        capture: CaptureSource,
        outputs: Outputs,
        meters: Arc<Meters>,
    ) -> Self {
        Self {
            index: Index::new(mesh, capture),
            store: Store::default(),
            problems: BTreeMap::new(),
            verdicts: Arc::default(),
            source_problems: Vec::new(),
            origins: BTreeMap::new(),
            dirty: Dirty::new(),
            synced: false,
            outputs,
            meters,
        }
    }

    /// Takes events until nobody can send any more.
    ///
    /// # Cancel safety
    /// Dropped only when the program stops.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut batch = Vec::new();
        while events.recv_many(&mut batch, QUEUE).await > 0 {
            self.take(batch.drain(..));
        }
    }

    /// Takes one batch.
    pub(crate) fn take(&mut self, events: impl Iterator<Item = Event>) {
        // Most changes of a cluster's objects are none to the mesh.
        let mut news = false;
        for event in events {
            match event {
                Event::Problems(problems) => {
                    self.source_problems = problems;
                    news = true;
                }
                Event::Synced if !self.synced => {
                    self.synced = true;
                    news = true;
                    info!("the sources have been read");
                }
                event => {
                    news |= self.locate(&event) || matches!(event, Event::Served(_));
                    self.dirty.extend(self.index.apply(event));
                }
            }
        }
        // Before that, what an object names may only not have been read yet.
        if !self.synced || (self.dirty.is_empty() && !news) {
            return;
        }
        for source in std::mem::take(&mut self.dirty) {
            self.translate(source);
        }
        self.publish();
    }

    /// Notes where an object is written; true when that is another place than before.
    fn locate(&mut self, event: &Event) -> bool {
        let (key, origin) = match event {
            Event::Applied(applied) => (&applied.key, applied.origin.as_ref()),
            Event::Deleted(key) => (key, None),
            _ => return false,
        };
        let Some(source) = Source::of(key) else {
            return false;
        };
        let before = match origin {
            Some(origin) => self.origins.insert(source, Text::clone(origin)),
            None => self.origins.remove(&source),
        };
        before.as_ref() != origin
    }

    /// Where an object is, for people.
    fn place(&self, source: &Source) -> String {
        match self.origins.get(source) {
            Some(origin) => format!("{origin} ({source})"),
            None => source.to_string(),
        }
    }

    fn translate(&mut self, source: Source) {
        let translated = translate(&self.index, &source);
        self.judge(&source, &translated);
        let before = self.problems.remove(&source).unwrap_or_default();
        for problem in translated.problems.iter().filter(|p| !before.contains(p)) {
            warn!(
                place = self.place(&source),
                cause = problem,
                "an object needs attention"
            );
        }
        if !translated.problems.is_empty() {
            self.problems.insert(source.clone(), translated.problems);
        }
        self.store.replace(source, translated.resources);
    }

    /// Notes whether an object means what it says, where its author is told.
    fn judge(&mut self, source: &Source, translated: &Translated) {
        let verdict = Verdict::of(&self.index, source, translated);
        if self.verdicts.get(source) == verdict.as_ref() {
            return;
        }
        let verdicts = Arc::make_mut(&mut self.verdicts);
        match verdict {
            Some(verdict) => verdicts.insert(source.clone(), verdict),
            None => verdicts.remove(source),
        };
    }

    fn publish(&mut self) {
        let of_objects = self.problems.iter().flat_map(|(source, problems)| {
            problems.iter().map(|what| Problem {
                place: self.place(source),
                what: what.clone(),
            })
        });
        let problems: Vec<_> = self
            .source_problems
            .iter()
            .cloned()
            .chain(of_objects)
            .collect();
        let number = i64::try_from(problems.len()).unwrap_or(i64::MAX);
        self.meters.gauge(&SOURCE_PROBLEMS, []).set(number);
        let roster = Roster::of(&self.index, problems);
        // Before the resources: a proxy that hears of a pod may at once ask for its certificate.
        self.outputs.roster.send_replace(Some(Arc::new(roster)));
        self.outputs.verdicts.send_if_modified(|sent| {
            let differs = !Arc::ptr_eq(sent, &self.verdicts);
            sent.clone_from(&self.verdicts);
            differs
        });
        let first = self.outputs.snapshots.borrow().is_none();
        let changed = self.store.commit();
        if let Some(snapshot) = changed.or_else(|| first.then(|| self.store.snapshot())) {
            debug!(revision = snapshot.revision, "a new state is published");
            for kind in Kind::ALL {
                let number = snapshot.shelf(kind).len();
                let gauge = self.meters.gauge(&XDS_RESOURCES, [kind.type_url()]);
                gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
            }
            self.outputs.snapshots.send_replace(Some(snapshot));
        }
    }
}

#[cfg(test)]
mod tests;
