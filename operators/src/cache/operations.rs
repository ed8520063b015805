//! The operations of a tick: leases, stores, rechecks, retractions by hand.
//!
//! ```text
//!          ┌──────────── Recheck, same set ───────────┐
//!          ▼                                          │
//! Lease ─▶ alive ── near, drift, pressure ─────▶ suspect ── Recheck, other set ─▶ dead
//!          │  └───── member gone, entered ────────────┴───────────────────────────▶ ▲
//!          └─ Store ─▶ the same watch, now an entry (a suspect's entry is not served) │
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use engine::model::{ChunkId, Time};

use super::lookup::Entry;
use super::shard::{LeaseFate, LeaseRow};
use super::watch::{Frozen, Watch};
use super::{
    CacheEvent, CacheOp, CacheShard, Cause, Death, DocumentAt, EntryId, EventKind, Features,
    LeaseId, Question, Refusal, Retrieval,
};

impl CacheShard {
    pub(super) fn operate(&mut self, at: Time, op: CacheOp, events: &mut Vec<CacheEvent>) {
        match op {
            CacheOp::Lease {
                lease,
                question,
                retrieval,
            } => {
                self.lease(at, lease, question, &retrieval, events);
            }
            CacheOp::Store {
                lease,
                entry,
                answer,
                citations,
            } => {
                self.store(at, lease, entry, answer, &citations, events);
            }
            CacheOp::Touch { entry } => {
                if let Some(row) = self.entries.get_mut(entry)
                    && row.retracted.is_none()
                    && self.uses.remove(&(row.last_used, entry))
                {
                    row.last_used = at;
                    self.uses.insert((at, entry));
                }
            }
            CacheOp::Forget { entry } => self.retract(at, entry, Cause::Manual, events),
            CacheOp::Recheck { watch, retrieval } => self.recheck(at, watch, &retrieval, events),
            CacheOp::InvalidateAll => {
                for lease in self.watches.leases() {
                    let death = Death {
                        cause: Cause::Pipeline,
                        by: Vec::new(),
                    };
                    self.end(at, lease, death, events);
                }
            }
        }
    }

    fn lease(
        &mut self,
        at: Time,
        lease: LeaseId,
        question: Arc<Question>,
        retrieval: &Retrieval,
        events: &mut Vec<CacheEvent>,
    ) {
        let is_mine = lease.shard(self.shards) == self.shard;
        if !is_mine || self.leases.contains_key(&lease) || self.watches.get(lease).is_some() {
            return;
        }
        let expires = at.saturating_add(self.config.lease_micros);
        self.lease_dues.insert((expires, lease));
        if !self.ring.reaches(retrieval.read_at) {
            let death = Death {
                cause: Cause::TooOld,
                by: Vec::new(),
            };
            self.leases.insert(
                lease,
                LeaseRow {
                    expires,
                    fate: LeaseFate::Dead(death),
                },
            );
            return;
        }
        self.leases.insert(
            lease,
            LeaseRow {
                expires,
                fate: LeaseFate::Open,
            },
        );
        let mut watch = Watch {
            lease,
            entry: None,
            question,
            seats: Vec::new(),
            frozen: Frozen::default(),
            is_suspect: true,
        };
        watch.seat(retrieval);
        self.watches.insert(watch);
        self.admit(at, lease, retrieval, events);
    }

    /// Tests a retrieval against everything since it was read. True: the watch is alive.
    fn admit(
        &mut self,
        at: Time,
        lease: LeaseId,
        retrieval: &Retrieval,
        events: &mut Vec<CacheEvent>,
    ) -> bool {
        let statistics = self.ring.statistics_after(retrieval.read_at);
        let net = self.ring.net_after(retrieval.read_at);
        let verdict = self.watches.admit(lease, retrieval, &statistics, &net);
        drop(net);
        match verdict {
            None => true,
            Some(verdict) => {
                self.carry_out(at, lease, verdict, events);
                false
            }
        }
    }

    fn store(
        &mut self,
        at: Time,
        lease: LeaseId,
        id: EntryId,
        answer: Arc<str>,
        citations: &[ChunkId],
        events: &mut Vec<CacheEvent>,
    ) {
        if lease.shard(self.shards) != self.shard {
            return;
        }
        let refuse = |refusal| {
            let kind = EventKind::Refused(refusal);
            CacheEvent {
                at,
                lease,
                entry: None,
                kind,
            }
        };
        let asked = citations;
        let citations = self.cited(lease, citations);
        match self.leases.get(&lease) {
            Some(row) if row.expires > at => match &row.fate {
                LeaseFate::Open => {
                    if let Some(chunk) = self.foreign(lease, asked) {
                        events.push(refuse(Refusal::NotRetrieved(chunk)));
                        return;
                    }
                }
                LeaseFate::Dead(death) => {
                    events.push(refuse(Refusal::NoLongerTrue(death.clone())));
                    return;
                }
                LeaseFate::Stored(known) => {
                    let (known, entry) = (*known, self.entries.get(*known));
                    let is_same = entry.is_some_and(|entry| {
                        entry.answer == answer && entry.citations == citations
                    });
                    events.push(if is_same {
                        let suspect = self.watches.get(lease).is_some_and(|w| w.is_suspect);
                        let kind = EventKind::Stored {
                            suspect,
                            repeated: true,
                        };
                        CacheEvent {
                            at,
                            lease,
                            entry: Some(known),
                            kind,
                        }
                    } else {
                        refuse(Refusal::AlreadyStored(known))
                    });
                    return;
                }
            },
            _ => {
                events.push(refuse(Refusal::Gone));
                return;
            }
        }
        if let Some(taken) = self.entries.get(id) {
            // Ids are the caller's to keep unique; an answer is never overwritten.
            debug_assert_ne!(taken.lease, lease);
            events.push(refuse(Refusal::AlreadyStored(id)));
            return;
        }
        self.settle(at, lease, id, answer, citations, events);
    }

    /// Turns an open lease into an entry.
    fn settle(
        &mut self,
        at: Time,
        lease: LeaseId,
        id: EntryId,
        answer: Arc<str>,
        citations: Vec<ChunkId>,
        events: &mut Vec<CacheEvent>,
    ) {
        let watch = self
            .watches
            .get_mut(lease)
            .expect("an open lease has a watch");
        watch.entry = Some(id);
        let (question, suspect) = (watch.question.clone(), watch.is_suspect);
        let due = at.saturating_add(self.config.ttl_micros);
        self.entries.insert(
            id,
            Entry {
                lease,
                features: Features::of(&question.text),
                question,
                answer,
                citations,
                stored_at: at,
                due,
                last_used: at,
                live: if suspect {
                    Vec::new()
                } else {
                    vec![(at, None)]
                },
                retracted: None,
                seats: Vec::new(),
            },
        );
        self.entry_dues.insert((due, id));
        self.uses.insert((at, id));
        self.leases.get_mut(&lease).expect("seen above").fate = LeaseFate::Stored(id);
        let kind = EventKind::Stored {
            suspect,
            repeated: false,
        };
        events.push(CacheEvent {
            at,
            lease,
            entry: Some(id),
            kind,
        });
    }

    fn recheck(
        &mut self,
        at: Time,
        lease: LeaseId,
        retrieval: &Retrieval,
        events: &mut Vec<CacheEvent>,
    ) {
        let Some(watch) = self.watches.get_mut(lease).filter(|watch| watch.is_suspect) else {
            return;
        };
        let entry = watch.entry;
        if !self.ring.reaches(retrieval.read_at) {
            let kind = EventKind::RecheckRequested(watch.question.clone());
            events.push(CacheEvent {
                at,
                lease,
                entry,
                kind,
            });
            return;
        }
        let seats: BTreeSet<ChunkId> = watch.seats.iter().map(|seat| seat.chunk).collect();
        let list: BTreeSet<ChunkId> = retrieval.list.iter().map(|member| member.chunk).collect();
        if seats != list {
            let death = overtaken(watch, retrieval);
            self.end(at, lease, death, events);
            return;
        }
        watch.seat(retrieval);
        if self.admit(at, lease, retrieval, events)
            && let Some(row) = entry.and_then(|id| self.entries.get_mut(id))
        {
            row.live.push((at, None));
            events.push(CacheEvent {
                at,
                lease,
                entry,
                kind: EventKind::Reinstated,
            });
        }
    }
}

/// Why another list is not the watched one: the best newcomer, or else the member it lacks.
fn overtaken(watch: &Watch, retrieval: &Retrieval) -> Death {
    let newcomer = retrieval
        .list
        .iter()
        .find(|member| !watch.is_member(member.chunk));
    if let Some(member) = newcomer {
        let by = vec![DocumentAt {
            key: member.key.clone(),
            version: member.version,
        }];
        return Death {
            cause: Cause::Entered,
            by,
        };
    }
    let is_missing = |chunk| retrieval.list.iter().all(|member| member.chunk != chunk);
    let mut by: Vec<DocumentAt> = (watch.seats.iter())
        .filter(|seat| is_missing(seat.chunk))
        .map(|seat| DocumentAt {
            key: seat.key.clone(),
            version: seat.version_at(Time::MAX),
        })
        .collect();
    by.sort_unstable();
    Death {
        cause: Cause::Changed,
        by,
    }
}
