//! A stack as an image. `&self`: a save disturbs nothing.

use core::convert::Infallible;

use hibernet_conntrack::{FrozenConntrack, Packing, SaveBuffer, SavePoint};
use hibernet_snapshot::codec::{CodecError, encode};
use hibernet_snapshot::image::{BodySum, Frame, Header, ImageStream, Requirement, SectionId};
use hibernet_snapshot::{GenerationId, Instant, Snapshot};
use serde::Serialize;
use thiserror::Error;

use crate::image::{
    CONNTRACK, DATAGRAMS, FLOWS, FRAGMENTS, LINEAGE, LINKS, LOCAL, LineageSection, LinksSection, MAX_LINEAGE,
    NEIGHBOURS, RULES, RulesSection, SCHEMA, SECTION_VERSION, STATS, TCP,
};
use crate::stack::Stack;

/// Why a stack was not saved. It goes on as before.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum SaveError {
    /// Time has passed that the stack does not know of, so what remains of timers would be written too long.
    #[error("the stack was last told {told:?} and is saved at {now:?}: call poll first")]
    Stale {
        /// The last time the stack was told.
        told: Instant,
        /// The time of the save.
        now: Instant,
    },
    /// A delta was asked for, and no save was written that it could continue.
    #[error("no save was written yet that a delta could continue: save a base first")]
    NoBase,
    /// A section cannot be encoded.
    #[error("section {section}: {error}")]
    Codec {
        /// The section.
        section: SectionId,
        /// What is wrong.
        error: CodecError,
    },
}

/// Why a frozen stack was not written whole.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum WriteError<E> {
    /// What takes the bytes did not.
    #[error(transparent)]
    Sink(E),
    /// A section cannot be encoded.
    #[error("section {section}: {error}")]
    Codec {
        /// The section.
        section: SectionId,
        /// What is wrong.
        error: CodecError,
    },
}

/// A stack at one moment, taken out of it: writing it disturbs nobody, and can be done on another thread.
#[derive(Debug)]
pub struct Frozen {
    sections: Sections,
    conntrack: FrozenConntrack,
}

/// A save that is on its way to a file. [`Stack::written`] makes it the one that the next delta continues.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub(crate) point: SavePoint,
    pub(crate) generation: GenerationId,
    pub(crate) number: u32,
}

/// What images and deltas have in common: every section but those of connection tracking.
#[derive(Debug)]
pub(crate) struct Sections {
    pub(crate) header: Header,
    pub(crate) before: Vec<(SectionId, Vec<u8>)>,
    after: Vec<(SectionId, Vec<u8>)>,
    more: Vec<(Frame, Vec<u8>)>,
}

impl Sections {
    pub(crate) fn add(&mut self, section: SectionId, version: u16, body: Vec<u8>) {
        self.more.push((Frame { id: section, version, requirement: Requirement::Optional, part: false }, body));
    }

    pub(crate) fn count(&self) -> u32 {
        let Self { header: _, before, after, more } = self;
        u32::try_from(before.len().saturating_add(after.len()).saturating_add(more.len())).unwrap_or(u32::MAX)
    }

    /// Writes what stands behind connection tracking.
    pub(crate) fn behind<E, S: FnMut(&[u8]) -> Result<(), E>>(&self, image: &mut ImageStream<S>) -> Result<(), E> {
        for (id, body) in &self.after {
            image.section(required(*id), body)?;
        }
        for (frame, body) in &self.more {
            image.section(*frame, body)?;
        }
        Ok(())
    }
}

const fn required(id: SectionId) -> Frame {
    Frame { id, version: SECTION_VERSION, requirement: Requirement::Required, part: false }
}

impl Stack {
    /// The whole stack as an image that names itself `generation`: rules with counters, links, routes, flows, fragments and
    /// packets that wait, neighbours, services, counters, sockets with what they hold. No key is in it, and no instant: only
    /// what remains of timers at `now`.
    ///
    /// Not in it, because the source keeps them: datagrams in [`Stack::egress`], and events.
    ///
    /// For large tables there is [`Stack::freeze`], which makes packets wait less.
    pub fn save(&self, generation: GenerationId, now: Instant) -> Result<Vec<u8>, SaveError> {
        let mut image = Vec::new();
        let sink = |bytes: &[u8]| {
            image.extend_from_slice(bytes);
            Ok::<_, Infallible>(())
        };
        match self.freeze(generation, now, SaveBuffer::default())?.write(&Packing::default(), sink) {
            Ok(_) => Ok(image),
            Err(WriteError::Codec { section, error }) => Err(SaveError::Codec { section, error }),
            Err(WriteError::Sink(never)) => match never {},
        }
    }

    /// Takes out what an image holds: the pause of a save. Flows are copied as they are, into a `buffer` that should have
    /// been touched before; everything else is encoded. [`Frozen::write`] makes the image of it that [`Stack::save`] would
    /// have made at this moment.
    pub fn freeze(&self, generation: GenerationId, now: Instant, buffer: SaveBuffer) -> Result<Frozen, SaveError> {
        self.check_told(now)?;
        Ok(Frozen { conntrack: self.conntrack.freeze(buffer), sections: self.sections(generation)? })
    }

    /// As [`Stack::freeze`], for a save that deltas will continue once it is [`Stack::written`]. From the first on it is known of
    /// every flow whether it changes. Takes `&mut` for that alone.
    pub fn freeze_base(
        &mut self,
        generation: GenerationId,
        now: Instant,
        buffer: SaveBuffer,
    ) -> Result<Frozen, SaveError> {
        self.check_told(now)?;
        Ok(Frozen { conntrack: self.conntrack.freeze_base(buffer), sections: self.sections(generation)? })
    }

    pub(crate) fn check_told(&self, now: Instant) -> Result<(), SaveError> {
        let told = self.told;
        if now > told { Err(SaveError::Stale { told, now }) } else { Ok(()) }
    }

    /// Every section but those of connection tracking, as of the last time the stack was told.
    pub(crate) fn sections(&self, generation: GenerationId) -> Result<Sections, SaveError> {
        let Self {
            links,
            routes,
            rules,
            conntrack: _,
            fragments,
            neighbours,
            local,
            sink: _,
            stats,
            lineage,
            expiry_budget: _,
            told,
            ip_ids: _,
            events: _,
            egress: _,
            work: _,
            queues: _,
            chain: _,
        } = self;
        let writer = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned();
        let header = Header { schema: SCHEMA.fingerprint(), writer, generation };
        let links = LinksSection { links: links.given().to_vec(), routes: routes.given().to_vec() };
        let before = vec![
            encoded(LINEAGE, &LineageSection { parents: parents(lineage, generation) }.save())?,
            encoded(RULES, &RulesSection::of(rules.set()).save())?,
            encoded(LINKS, &links.save())?,
            encoded(LOCAL, &local.services().save())?,
            encoded(STATS, &stats.save())?,
        ];
        let after = vec![
            encoded(FRAGMENTS, &fragments.section(*told).save())?,
            encoded(TCP, &local.tcp_section(*told).save())?,
            encoded(DATAGRAMS, &local.datagrams().section().save())?,
            encoded(NEIGHBOURS, &neighbours.section(*told).save())?,
        ];
        Ok(Sections { header, before, after, more: Vec::new() })
    }
}

impl Frozen {
    /// The header of the image.
    pub const fn header(&self) -> &Header {
        &self.sections.header
    }

    /// Adds a section of the embedder's, which a stack skips, behind all others.
    pub fn add(&mut self, section: SectionId, version: u16, body: Vec<u8>) {
        self.sections.add(section, version, body);
    }

    /// Packs the image and hands its bytes to `sink` in order. Says how many there were. Beside the frozen copy no more than a
    /// few blocks of flows a thread are in memory.
    ///
    /// # Errors
    /// Those of `sink`, or if a section cannot be encoded.
    pub fn write<E>(
        &mut self,
        packing: &Packing,
        sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<u64, WriteError<E>> {
        let Self { sections, conntrack } = self;
        let settings =
            encode(&conntrack.settings(packing)).map_err(|error| WriteError::Codec { section: CONNTRACK, error })?;
        let blocks = conntrack.blocks(packing);
        let count = sections.count().saturating_add(1).saturating_add(blocks);
        let mut image = ImageStream::begin(&sections.header, count, blocks > 0, sink).map_err(WriteError::Sink)?;
        for (id, body) in &sections.before {
            image.section(required(*id), body).map_err(WriteError::Sink)?;
        }
        image.section(required(CONNTRACK), &settings).map_err(WriteError::Sink)?;
        let part = Frame { part: true, ..required(FLOWS) };
        conntrack.pack(packing, BodySum::of, |block, sum| image.summed(part, block, &sum)).map_err(WriteError::Sink)?;
        sections.behind(&mut image).map_err(WriteError::Sink)?;
        image.finish().map_err(WriteError::Sink)
    }

    /// How many flows are in it, once it was written.
    pub const fn flows(&self) -> usize {
        self.conntrack.flows()
    }

    /// Of a save that was frozen as a base: what deltas continue once it is [`Stack::written`]. To be asked for after it was
    /// packed.
    pub fn checkpoint(&self) -> Checkpoint {
        let generation = self.sections.header.generation;
        Checkpoint { point: self.conntrack.point(), generation, number: 0 }
    }

    /// The memory, for the next save.
    pub fn into_buffer(self) -> SaveBuffer {
        self.conntrack.into_buffer()
    }
}

fn encoded<T: Serialize>(section: SectionId, saved: &T) -> Result<(SectionId, Vec<u8>), SaveError> {
    Ok((section, encode(saved).map_err(|error| SaveError::Codec { section, error })?))
}

/// The parents of a generation: the lineage without the generation itself, which is what a restored stack saves first when
/// it is asked for the image it came from. The oldest are forgotten.
fn parents(lineage: &[GenerationId], generation: GenerationId) -> Vec<GenerationId> {
    let parents = match lineage {
        [parents @ .., last] if *last == generation => parents,
        all => all,
    };
    parents.get(parents.len().saturating_sub(MAX_LINEAGE)..).unwrap_or_default().to_vec()
}
