//! Deltas: what has changed of a stack since a save of it, so that a stack that runs can be saved every second.
//!
//! A delta names the image it continues by its SHA-256. It has every section of an image whole but the flows, of which it has
//! those that changed. [`DeltaChain`] puts an image and its deltas together; what comes of it is what a full save would have
//! held at the moment of the last delta.

use hibernet_conntrack::{FrozenDelta, MergedFlows};
use hibernet_snapshot::codec::encode;
use hibernet_snapshot::digest::ImageDigest;
use hibernet_snapshot::image::{Frame, Header, ImageStream, Limits, Requirement, SectionId, StoredImage};
use hibernet_snapshot::{GenerationId, Instant};

use crate::image::{BASE, CHANGES, CONNTRACK, DeltaBase, SECTION_VERSION};
use crate::restore::{Decoded, RestoreError, base_of, check_version};
use crate::save::{Checkpoint, SaveError, Sections, WriteError};
use crate::stack::Stack;

/// What has changed of a stack, taken out of it: writing it disturbs nobody.
#[derive(Debug)]
pub struct FrozenChanges {
    sections: Sections,
    conntrack: FrozenDelta,
    base: DeltaBase,
}

impl Stack {
    /// Takes out what has changed since the save that was last [`Stack::written`]: the pause of a delta.
    ///
    /// # Errors
    /// [`SaveError::NoBase`] if there is none, and those of [`Stack::freeze`].
    pub fn freeze_changes(&mut self, generation: GenerationId, now: Instant) -> Result<FrozenChanges, SaveError> {
        self.check_told(now)?;
        let base = self.chain.ok_or(SaveError::NoBase)?;
        let conntrack = self.conntrack.freeze_delta().ok_or(SaveError::NoBase)?;
        Ok(FrozenChanges { sections: self.sections(generation)?, conntrack, base })
    }

    /// A save is written whole, to a file with this digest, and the next delta may continue it. Of a save that was not written,
    /// nothing is said: the next delta then holds what it would have held as well. False, and nothing changed, if another base or
    /// delta was frozen since, or if it was a save that no delta can continue.
    pub fn written(&mut self, checkpoint: Checkpoint, digest: ImageDigest) -> bool {
        let Checkpoint { point, generation, number } = checkpoint;
        let taken = self.conntrack.written(point);
        if taken {
            self.chain = Some(DeltaBase { digest, generation, number });
        }
        taken
    }

    /// The save that the next delta would continue.
    pub const fn chain(&self) -> Option<DeltaBase> {
        self.chain
    }
}

impl FrozenChanges {
    /// The header of the delta.
    pub const fn header(&self) -> &Header {
        &self.sections.header
    }

    /// The image it continues.
    pub const fn base(&self) -> DeltaBase {
        self.base
    }

    /// How many flows have changed or come.
    pub const fn changed(&self) -> usize {
        self.conntrack.changed()
    }

    /// Adds a section of the embedder's, as [`crate::Frozen::add`].
    pub fn add(&mut self, section: SectionId, version: u16, body: Vec<u8>) {
        self.sections.add(section, version, body);
    }

    /// Packs the delta and hands its bytes to `sink` in order. Says how many there were, and what the next delta continues
    /// once this one is [`Stack::written`].
    ///
    /// # Errors
    /// Those of `sink`, or if a section cannot be encoded.
    pub fn write<E>(&self, sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(u64, Checkpoint), WriteError<E>> {
        let Self { sections, conntrack, base } = self;
        let settings =
            encode(&conntrack.settings()).map_err(|error| WriteError::Codec { section: CONNTRACK, error })?;
        let (script, point) = conntrack.pack();
        let mut image = ImageStream::begin(&sections.header, sections.count().saturating_add(3), true, sink)
            .map_err(WriteError::Sink)?;
        let one = |id| Frame { id, version: SECTION_VERSION, requirement: Requirement::Required, part: false };
        image.section(one(BASE), &base.bytes()).map_err(WriteError::Sink)?;
        for (id, body) in &sections.before {
            image.section(one(*id), body).map_err(WriteError::Sink)?;
        }
        image.section(one(CONNTRACK), &settings).map_err(WriteError::Sink)?;
        image.section(one(CHANGES), &script).map_err(WriteError::Sink)?;
        sections.behind(&mut image).map_err(WriteError::Sink)?;
        let number = base.number.saturating_add(1);
        let checkpoint = Checkpoint { point, generation: sections.header.generation, number };
        Ok((image.finish().map_err(WriteError::Sink)?, checkpoint))
    }
}

/// An image and the deltas behind it, put together one after the other.
#[derive(Debug)]
pub struct DeltaChain {
    last: Decoded,
    flows: Option<MergedFlows>,
    link: DeltaBase,
}

impl DeltaChain {
    /// Begins with a full image, whose file has this digest.
    ///
    /// # Errors
    /// As [`Decoded::open`].
    pub fn begin(image: StoredImage, digest: ImageDigest, limits: &Limits) -> Result<Self, RestoreError> {
        let last = Decoded::of(image, limits)?;
        let link = DeltaBase { digest, generation: last.header().generation, number: 0 };
        Ok(Self { last, flows: None, link })
    }

    /// Goes on with the delta that continues what came before.
    ///
    /// # Errors
    /// [`RestoreError::WrongBase`] if it continues another image, [`RestoreError::NotADelta`] if it is a full one; and as
    /// [`Decoded::open`].
    pub fn apply(self, mut delta: StoredImage, digest: ImageDigest, limits: &Limits) -> Result<Self, RestoreError> {
        let Self { last, flows, link } = self;
        let writer = || delta.header().writer.clone();
        let found = base_of(&delta)?.ok_or_else(|| RestoreError::NotADelta { writer: writer() })?;
        if found != link {
            return Err(RestoreError::WrongBase { found: Box::new(found), expected: Box::new(link), writer: writer() });
        }
        let writer = writer();
        let _base = delta.take(BASE);
        let script = delta.take(CHANGES).pop();
        let script = script.ok_or(RestoreError::Missing { section: CHANGES, writer })?;
        check_version(delta.header(), &script)?;
        let next = Decoded::of(delta, limits)?;
        let mut flows = match flows {
            Some(flows) => flows,
            None => MergedFlows::begin(&last.conntrack)?,
        };
        flows.apply(&script.body)?;
        let link = DeltaBase { digest, generation: next.header().generation, number: found.number.saturating_add(1) };
        Ok(Self { last: next, flows: Some(flows), link })
    }

    /// The image or delta that came last.
    pub const fn link(&self) -> DeltaBase {
        self.link
    }

    /// All of it as one image that is decoded.
    ///
    /// # Errors
    /// If the flows of a delta cannot be.
    pub fn finish(self) -> Result<Decoded, RestoreError> {
        let Self { mut last, flows, link: _ } = self;
        if let Some(flows) = flows {
            last.conntrack = flows.finish(last.conntrack)?;
        }
        Ok(last)
    }
}
