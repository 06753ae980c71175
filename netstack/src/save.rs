//! A stack as an image. `&self`: a save disturbs nothing.

use hibernet_snapshot::codec::{CodecError, encode};
use hibernet_snapshot::image::{Header, ImageWriter, Requirement, SectionId};
use hibernet_snapshot::{GenerationId, Instant, Snapshot};
use serde::Serialize;
use thiserror::Error;

use crate::image::{
    CONNTRACK, DATAGRAMS, FRAGMENTS, LINEAGE, LINKS, LOCAL, LineageSection, LinksSection, MAX_LINEAGE, NEIGHBOURS,
    RULES, RulesSection, SCHEMA, SECTION_VERSION, STATS, TCP,
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
    /// A section cannot be encoded.
    #[error("section {section}: {error}")]
    Codec {
        /// The section.
        section: SectionId,
        /// What is wrong.
        error: CodecError,
    },
}

impl Stack {
    /// The whole stack as an image that names itself `generation`: rules with counters, links, routes, flows, fragments and
    /// packets that wait, neighbours, services, counters, sockets with what they hold. No key is in it, and no instant: only
    /// what remains of timers at `now`.
    ///
    /// Not in it, because the source keeps them: datagrams in [`Stack::egress`], and events.
    pub fn save(&self, generation: GenerationId, now: Instant) -> Result<Vec<u8>, SaveError> {
        let Self {
            links,
            routes,
            rules,
            conntrack,
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
        } = self;
        if now > *told {
            return Err(SaveError::Stale { told: *told, now });
        }
        let writer = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned();
        let mut image = ImageWriter::new(&Header { schema: SCHEMA.fingerprint(), writer, generation });
        let links = LinksSection { links: links.given().to_vec(), routes: routes.given().to_vec() };
        add(&mut image, LINEAGE, &LineageSection { parents: parents(lineage, generation) }.save())?;
        add(&mut image, RULES, &RulesSection::of(rules.set()).save())?;
        add(&mut image, LINKS, &links.save())?;
        add(&mut image, LOCAL, &local.services().save())?;
        add(&mut image, STATS, &stats.save())?;
        add(&mut image, CONNTRACK, &conntrack.save())?;
        add(&mut image, FRAGMENTS, &fragments.section(*told).save())?;
        add(&mut image, TCP, &local.tcp_section(*told).save())?;
        add(&mut image, DATAGRAMS, &local.datagrams().section().save())?;
        add(&mut image, NEIGHBOURS, &neighbours.section(*told).save())?;
        Ok(image.finish())
    }
}

fn add<T: Serialize>(image: &mut ImageWriter, section: SectionId, saved: &T) -> Result<(), SaveError> {
    let body = encode(saved).map_err(|error| SaveError::Codec { section, error })?;
    image.section(section, SECTION_VERSION, Requirement::Required, &body);
    Ok(())
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
