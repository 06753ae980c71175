//! The stack with its links and its clock, and what the control socket may ask of it.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context;
use hibernet_conntrack::CanaryScan;
use hibernet_netstack::Checkpoint;
use hibernet_netstack::Ingress;
use hibernet_netstack::LinkConfig;
use hibernet_netstack::LinkId;
use hibernet_netstack::MacAddr;
use hibernet_netstack::Medium;
use hibernet_netstack::NeighbourEntry;
use hibernet_netstack::RestoreOptions;
use hibernet_netstack::SaveBuffer;
use hibernet_netstack::Stack;
use hibernet_netstack::Supplied;
use hibernet_snapshot::Entropy;
use hibernet_snapshot::GenerationId;
use hibernet_snapshot::Instant;
use hibernet_snapshot::digest::ImageDigest;
use hibernet_snapshot::seal;
use serde_json::Value;

use super::application;
use super::config::GatewayConfig;
use super::events::EventLog;
use super::images::Content;
use super::images::Written;
use super::images::show_progress;
use super::images::threads;
use super::restoring;
use super::restoring::RestoreRequest;
use crate::clock;
use crate::clock::StackClock;
use crate::clock::millis;
use crate::control::After;
use crate::control::Answer;
use crate::control::CanaryReply;
use crate::control::DropCount;
use crate::control::HookReply;
use crate::control::HooksReply;
use crate::control::KeysReply;
use crate::control::LinkReply;
use crate::control::ListReply;
use crate::control::NeighbourReply;
use crate::control::NeighboursReply;
use crate::control::PauseReply;
use crate::control::Refused;
use crate::control::Request;
use crate::control::RestoreSummary;
use crate::control::RunState;
use crate::control::SaveForm;
use crate::control::SaveKind;
use crate::control::SaveReply;
use crate::control::StatsReply;
use crate::control::StatusReply;
use crate::fault::Fault;
use crate::fault::image_fault;
use crate::image_file::read_file;
use crate::image_file::read_seal_key;
use crate::image_file::seal_fault;
use crate::link::Buffers;
use crate::link::Link;
use crate::link::LinkSpec;

/// A stack at work.
pub(crate) struct Engine {
    stack: Stack,
    links: Vec<(LinkId, Link)>,
    /// Links that have something to read, as far as is known, in their order.
    ready: Vec<bool>,
    burst: Vec<Ingress>,
    buffers: Buffers,
    clock: StackClock,
    state: RunState,
    entropy: Entropy,
    events: EventLog,
    restored: Option<RestoreSummary>,
    application: Option<Application>,
    application_state: Option<Vec<u8>>,
    /// When the restore began, until the first packet has come.
    waiting_since: Option<Instant>,
    /// How long that took, in ms, until somebody has asked.
    first_packet: Option<f64>,
    /// Memory for the copy of a save, once there was one.
    buffer: SaveBuffer,
    /// A save that another thread writes.
    writing: Option<mpsc::Receiver<Saved>>,
    /// The file with the key that images are sealed with, unless a client names another.
    seal_key: Option<PathBuf>,
}

/// What comes back from the thread that writes a save.
struct Saved {
    buffer: SaveBuffer,
    /// Of a base or delta that was written whole.
    checkpoint: Option<(Checkpoint, ImageDigest)>,
}

/// What an application inside the stack wants to have saved with it, as it is at that moment.
pub(crate) type Application = Box<dyn Fn(Instant) -> anyhow::Result<Vec<u8>>>;

impl Engine {
    /// A new stack, held.
    pub(crate) fn fresh(config: &GatewayConfig) -> anyhow::Result<Self> {
        let mut entropy = Entropy::from_os().context("drawing keys")?;
        let clock = held_clock();
        let stack = Stack::new(config.stack_config()?, entropy.fork(), clock.now()).context("the configuration")?;
        Ok(Self::held(stack, clock, entropy, None))
    }

    /// A stack restored from an image, and deltas behind it, under keys of its own, held.
    pub(crate) fn restored(request: &RestoreRequest, supplied: Supplied) -> anyhow::Result<Self> {
        let begun = clock::monotonic();
        let files = request.files();
        let mut entropy = Entropy::from_os().context("drawing keys")?;
        let clock = held_clock();
        let last = files.paths.last().cloned().unwrap_or_default();
        let refused = |error| image_fault(&last, &error);
        let mut options = RestoreOptions::default().on_threads(threads()).with_progress(&show_progress);
        let decoded = files.open()?;
        let application_state = application::section(&decoded)?;
        let policy = request.policy(&decoded)?;
        let validated = decoded.validate_with(&mut entropy, clock.now(), &mut options).map_err(refused)?;
        let rehash_begun = clock::monotonic();
        let rehashed = validated.rehash_with(entropy.fork(), policy, &mut options).map_err(refused)?;
        let rehash = clock::monotonic().saturating_since(rehash_begun);
        let (stack, report) = rehashed.open(supplied);
        let restore = clock::monotonic().saturating_since(begun);
        let summary = RestoreSummary::new(&report, restore, rehash);
        let waiting_since = Some(begun);
        let seal_key = files.seal_key.clone();
        Ok(Self { application_state, waiting_since, seal_key, ..Self::held(stack, clock, entropy, Some(summary)) })
    }

    /// From now on every image is sealed with the key in this file, if there is one.
    pub(crate) fn seal_with(&mut self, key: Option<PathBuf>) -> Result<(), Fault> {
        // Told now rather than at the first save.
        key.as_deref().map(read_seal_key).transpose()?;
        self.seal_key = key;
        Ok(())
    }

    /// From now on every image holds the application's state too.
    pub(crate) fn save_with(&mut self, application: Application) {
        self.application = Some(application);
    }

    /// What the application had saved in the image this stack came from.
    pub(crate) fn application_state(&mut self) -> Option<Vec<u8>> {
        self.application_state.take()
    }

    /// The stack, and the time to tell it.
    pub(crate) fn stack(&mut self) -> (&mut Stack, Instant) {
        (&mut self.stack, self.clock.now())
    }

    /// How this stack came out of its image, if it did.
    pub(crate) fn summary(&self) -> Option<&RestoreSummary> {
        self.restored.as_ref()
    }

    /// The same, for who has to tell more of it.
    pub(crate) fn summary_mut(&mut self) -> Option<&mut RestoreSummary> {
        self.restored.as_mut()
    }

    /// Joins an open device to the stack's link of the same name.
    pub(crate) fn attach(&mut self, link: Link) -> anyhow::Result<()> {
        self.medium_of(link.name())?;
        let id = self.stack.link(link.name()).context("a configured link has an id")?;
        self.stack.set_link_offloads(id, link.offloads());
        self.links.push((id, link));
        self.ready.push(true);
        Ok(())
    }

    /// Opens and joins all devices; every link of the stack must have one.
    pub(crate) fn open_links(&mut self, links: &[LinkSpec]) -> anyhow::Result<()> {
        for spec in links {
            let medium = self.medium_of(spec.name())?;
            self.attach(Link::open(spec, medium)?)?;
        }
        self.check_links()
    }

    /// What the stack's link of that name carries.
    pub(crate) fn medium_of(&self, name: &str) -> anyhow::Result<Medium> {
        let configured = self.stack.links().iter().find(|known| known.name == name);
        let link = configured.with_context(|| {
            let known: Vec<&str> = self.stack.links().iter().map(|link| link.name.as_str()).collect();
            format!("the stack has no link {name}; it has {}", known.join(", "))
        })?;
        Ok(link.medium)
    }

    /// The hardware address of the stack's link of that name, if it is an Ethernet link.
    pub(crate) fn mac_of(&self, name: &str) -> Option<MacAddr> {
        match self.medium_of(name) {
            Ok(Medium::Ethernet { mac }) => Some(mac),
            _ => None,
        }
    }

    /// Whether somebody is at the other end of a link.
    pub(crate) fn is_up(&self, name: &str) -> bool {
        self.links().any(|link| link.name() == name && link.is_up())
    }

    /// Every link of the stack has a device.
    pub(crate) fn check_links(&self) -> anyhow::Result<()> {
        for link in self.stack.links() {
            let attached = self.links.iter().any(|(_, device)| device.name() == link.name);
            anyhow::ensure!(attached, "the stack's link {0} has no device: add `--link {0}`", link.name);
        }
        Ok(())
    }

    pub(crate) fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().map(|(_, link)| link)
    }

    /// Says which links have something to read, in their order; all, unless this is called before a turn.
    pub(crate) fn set_ready(&mut self, ready: impl IntoIterator<Item = bool>) {
        for (known, ready) in self.ready.iter_mut().zip(ready) {
            *known = ready;
        }
    }

    /// Looks at a link of which something else was told than frames.
    pub(crate) fn look_at_error(&mut self, index: usize) {
        if let Some((_, link)) = self.links.get_mut(index) {
            link.look_at_error();
        }
    }

    pub(crate) fn state(&self) -> RunState {
        self.state
    }

    /// How long until the stack has something to do by itself.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        if self.state == RunState::Paused {
            return None;
        }
        let now = self.clock.now();
        self.stack.next_deadline(now).map(|deadline| deadline.saturating_since(now))
    }

    /// Lets traffic pass and time go on.
    pub(crate) fn resume(&mut self) {
        self.clock.resume();
        self.state = RunState::Running;
    }

    /// One turn of the packet loop: some bursts from every link that is ready, then what is due. True if a link may have
    /// more.
    pub(crate) fn turn(&mut self) -> bool {
        if self.state == RunState::Paused {
            return false;
        }
        let mut more = false;
        let now = self.clock.now();
        self.flush();
        for index in 0..self.links.len() {
            let is_ready = self.ready.get_mut(index).is_some_and(|ready| std::mem::replace(ready, true));
            for round in 1..=ROUNDS {
                let Some((id, link)) = self.links.get_mut(index).filter(|_| is_ready) else { break };
                let left = link.receive_burst(&mut self.burst, &mut self.buffers);
                if !self.burst.is_empty()
                    && let Some(begun) = self.waiting_since.take()
                {
                    self.first_packet = Some(millis(clock::monotonic().saturating_since(begun)));
                }
                self.stack.ingress_burst(*id, self.burst.drain(..), now);
                self.emit();
                if !left {
                    break;
                }
                more |= round == ROUNDS;
            }
        }
        self.stack.poll(now);
        self.emit();
        while let Some(event) = self.stack.next_event() {
            self.events.note(event);
        }
        more
    }

    /// Does what a client asks.
    pub(crate) fn answer(&mut self, request: Request) -> Answer {
        let result = match request {
            Request::Status => reply(&self.status()),
            Request::List => reply(&self.list()),
            Request::Neighbours => reply(&self.neighbours()),
            Request::Hooks => reply(&self.hooks()),
            Request::Stats => reply(&self.stats()),
            Request::Events { after } => reply(&self.events.reply(after, &self.stack)),
            Request::Policy { .. } | Request::Egress => {
                Err(anyhow::anyhow!("this gateway has no egress: it was started without --egress-policy"))
            }
            Request::Save { path, after, form } => return self.save(path, after, &form),
            Request::Canary { path } => self.canary(&path).and_then(|found| reply(&found)),
            Request::Keys => reply(&self.keys()),
            Request::Pause => reply(&self.pause()),
            Request::Restore(request) => return Answer::Now(self.restore(&request)),
            Request::Resume => {
                self.resume();
                reply(&self.status())
            }
        };
        Answer::Now(result.map_err(Refused::from))
    }

    fn held(mut stack: Stack, clock: StackClock, entropy: Entropy, restored: Option<RestoreSummary>) -> Self {
        stack.set_expiry_budget(EXPIRY_BUDGET);
        Self {
            stack,
            links: Vec::new(),
            ready: Vec::new(),
            burst: Vec::new(),
            buffers: Buffers::default(),
            clock,
            state: RunState::Paused,
            entropy,
            events: EventLog::default(),
            restored,
            application: None,
            application_state: None,
            waiting_since: None,
            first_packet: None,
            buffer: SaveBuffer::default(),
            writing: None,
            seal_key: None,
        }
    }

    fn emit(&mut self) {
        let mut sent = false;
        while let Some(out) = self.stack.egress() {
            if let Some((_, link)) = self.links.iter_mut().find(|(id, _)| *id == out.link) {
                link.queue(out.datagram, out.offload, &mut self.buffers);
                sent = true;
            }
        }
        if sent {
            self.flush();
        }
    }

    fn flush(&mut self) {
        for (_, link) in &mut self.links {
            link.flush_into(&mut self.buffers);
        }
    }

    fn status(&self) -> StatusReply {
        StatusReply {
            state: self.state,
            pid: std::process::id(),
            flows: self.stack.flows(self.clock.now()).len(),
            restored: self.restored.clone(),
        }
    }

    fn list(&self) -> ListReply {
        ListReply { flows: self.stack.flows(self.clock.now()).iter().map(ToString::to_string).collect() }
    }

    fn neighbours(&self) -> NeighboursReply {
        let row = |entry: &NeighbourEntry| NeighbourReply {
            addr: entry.addr.to_string(),
            link: entry.link.clone(),
            mac: entry.mac.map(|mac| mac.to_string()),
            state: entry.state.to_string(),
            text: entry.to_string(),
        };
        NeighboursReply { neighbours: self.stack.neighbours(self.clock.now()).iter().map(row).collect() }
    }

    fn hooks(&self) -> HooksReply {
        let row = |row: &hibernet_netstack::HookRow| HookReply {
            hook: row.hook.to_string(),
            priority: row.priority,
            name: row.name.clone(),
            text: row.to_string(),
        };
        HooksReply { rows: self.stack.hooks().iter().map(row).collect() }
    }

    fn stats(&mut self) -> StatsReply {
        let drops = self.stack.stats().drops().map(|(reason, count)| DropCount {
            number: reason.number(),
            reason: reason.name().to_owned(),
            count,
        });
        let drops = drops.filter(|drop| drop.count > 0).collect();
        let links = self.links.iter_mut().map(|(_, link)| {
            let counts = link.counts();
            LinkReply {
                name: link.name().to_owned(),
                received: counts.received,
                sent: counts.sent,
                receive_overruns: counts.receive_overruns,
                unreadable: counts.unreadable,
                send_drops: counts.send_drops,
                connects: counts.connects,
                disconnects: counts.disconnects,
            }
        });
        StatsReply { drops, links: links.collect() }
    }

    /// How long after the beginning of a restore the first packet came, in ms; told once.
    pub(crate) fn first_packet(&mut self) -> Option<f64> {
        self.first_packet.take()
    }

    /// Saves between two packets. If traffic goes on, another thread packs and writes the file meanwhile.
    fn save(&mut self, path: PathBuf, after: After, form: &SaveForm) -> Answer {
        let begun = clock::monotonic();
        self.take_written();
        if self.writing.is_some() && form.kind != SaveKind::Full {
            return Answer::Now(Err(Refused::new(
                409,
                "saving: the save before this one is still being written; try again",
            )));
        }
        // The key comes out of its file, never over the socket.
        let seal_key = form.seal_key.as_ref().or(self.seal_key.as_ref());
        let sealed = seal_key.is_some();
        let seal = match seal_key.map(|path| read_seal_key(path)).transpose() {
            Ok(key) => key.map(|key| (key, self.entropy.fork())),
            Err(error) => return Answer::Now(Err(format!("saving: {error}").into())),
        };
        let paused = clock::monotonic();
        let was = self.state;
        if after == After::Hold {
            self.hold();
        }
        let now = self.clock.now();
        self.stack.poll(now);
        self.emit();
        let generation = self.entropy.public_id();
        let mut content = match self.freeze(form.kind, generation, now) {
            Ok(content) => content,
            Err(error) => {
                self.go_back_to(was);
                return Answer::Now(Err(format!("saving: {error:#}").into()));
            }
        };
        let pause = clock::monotonic().saturating_since(paused);
        let (kind, compress) = (form.kind, form.compress);
        let (give_back, taken_back) = mpsc::channel();
        let write = move || -> Result<Value, Refused> {
            // The error of a file says its cause already.
            let written = content
                .write(&path, compress, seal)
                .map_err(|error| anyhow::anyhow!("writing {}: {error}", path.display()));
            let checkpoint = match &written {
                Ok(Written { checkpoint, digest, .. }) if kind != SaveKind::Full => Some((checkpoint.clone(), *digest)),
                _ => None,
            };
            let buffer = match content {
                Content::Full(frozen) => frozen.into_buffer(),
                Content::Delta(_) => SaveBuffer::default(),
            };
            // Who has gone meanwhile needs neither.
            drop(give_back.send(Saved { buffer, checkpoint }));
            let Written { bytes, flows, digest, checkpoint: _ } = written?;
            let (pause_ms, save_ms) = (millis(pause), millis(clock::monotonic().saturating_since(begun)));
            let (generation, sha256) = (generation.to_string(), digest.to_string());
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            let done = SaveReply { path, generation, flows, bytes, sealed, pause_ms, save_ms, sha256 };
            Ok(reply(&done)?)
        };
        self.writing = Some(taken_back);
        if after == After::Hold {
            let result = write();
            self.take_written();
            if result.is_err() {
                self.go_back_to(was);
            }
            return Answer::Now(result);
        }
        let (sender, answer) = mpsc::channel();
        std::thread::spawn(move || {
            // A client that is gone does not want the answer; the file is there all the same.
            drop(sender.send(write()));
        });
        Answer::Later(answer)
    }

    /// Takes back what a save was done with, if it is over.
    fn take_written(&mut self) {
        let Some(writing) = &self.writing else { return };
        match writing.try_recv() {
            Ok(Saved { buffer, checkpoint }) => {
                if buffer.bytes() > self.buffer.bytes() {
                    self.buffer = buffer;
                }
                if let Some((checkpoint, digest)) = checkpoint {
                    self.stack.written(checkpoint, digest);
                }
                self.writing = None;
            }
            Err(mpsc::TryRecvError::Disconnected) => self.writing = None,
            Err(mpsc::TryRecvError::Empty) => {}
        }
    }

    /// Takes in what waits on the links, so that it is in the next image and not lost with a socket, and stands still. Who
    /// wants all of what a guest has sent stops the guest first.
    fn pause(&mut self) -> PauseReply {
        let mut drained = 0_u64;
        if self.state == RunState::Running {
            let now = self.clock.now();
            for index in 0..self.links.len() {
                let mut of_link = 0_usize;
                while of_link < MOST_DRAINED
                    && let Some((id, link)) = self.links.get_mut(index)
                {
                    let left = link.receive_burst(&mut self.burst, &mut self.buffers);
                    of_link = of_link.saturating_add(self.burst.len());
                    self.stack.ingress_burst(*id, self.burst.drain(..), now);
                    self.emit();
                    if !left {
                        break;
                    }
                }
                drained = drained.saturating_add(of_link as u64);
            }
            self.stack.poll(now);
            self.emit();
            self.hold();
        }
        PauseReply { state: self.state, drained }
    }

    /// Puts an image in place of the paused stack, on the same links. Where it cannot be, the stack stays as it is.
    fn restore(&mut self, request: &RestoreRequest) -> Result<Value, Refused> {
        if self.state == RunState::Running {
            return Err(Refused::new(409, "the gateway is running, expected a paused one: PUT /pause first"));
        }
        if self.application.is_some() {
            let error =
                "programs run on this stack's sockets: start another process from the image (`serve --restore`)";
            return Err(Refused::new(409, error));
        }
        if !request.path.is_absolute() {
            return Err(Refused::new(
                400,
                format!("found the path {}, expected an absolute one", request.path.display()),
            ));
        }
        let refused = |error: anyhow::Error| Refused::new(422, format!("{error:#}"));
        let heir = Self::restored(request, Supplied::default()).map_err(refused)?;
        let describe = |link: &LinkConfig| (link.name.clone(), matches!(link.medium, Medium::Ethernet { .. }));
        let links = |stack: &Stack| stack.links().iter().map(describe).collect::<BTreeSet<_>>();
        if links(&heir.stack) != links(&self.stack) {
            let names =
                |stack: &Stack| stack.links().iter().map(|link| link.name.clone()).collect::<Vec<_>>().join(", ");
            let (found, expected) = (names(&heir.stack), names(&self.stack));
            return Err(Refused::new(
                422,
                format!("the image has the links {found}, this gateway {expected}, with media"),
            ));
        }
        for (id, link) in &mut self.links {
            if let Some(new) = heir.stack.link(link.name()) {
                *id = new;
            }
        }
        let Self { stack, clock, entropy, restored, application_state, .. } = heir;
        (self.stack, self.clock, self.entropy) = (stack, clock, entropy);
        (self.restored, self.application_state) = (restored, application_state);
        Ok(reply(&self.restored)?)
    }

    fn freeze(&mut self, kind: SaveKind, generation: GenerationId, now: Instant) -> anyhow::Result<Content> {
        let application = self.application.as_ref().map(|state| state(now)).transpose()?;
        let mut content = match kind {
            SaveKind::Full => {
                let buffer = std::mem::take(&mut self.buffer);
                Content::Full(Box::new(self.stack.freeze(generation, now, buffer)?))
            }
            SaveKind::Base => {
                let buffer = std::mem::take(&mut self.buffer);
                Content::Full(Box::new(self.stack.freeze_base(generation, now, buffer)?))
            }
            SaveKind::Delta => Content::Delta(Box::new(self.stack.freeze_changes(generation, now)?)),
        };
        content.add(restoring::SAVED_AT, restoring::SAVED_AT_VERSION, restoring::saved_now()?);
        if let Some(state) = application {
            content.add(application::APPLICATION, application::VERSION, state);
        }
        Ok(content)
    }

    fn hold(&mut self) {
        self.clock.stop();
        self.state = RunState::Paused;
    }

    fn go_back_to(&mut self, state: RunState) {
        if state == RunState::Running {
            self.resume();
        }
    }

    fn keys(&self) -> KeysReply {
        let scan = self.scan();
        KeysReply {
            fingerprints: scan.fingerprints().iter().map(|(_, fingerprint)| format!("{fingerprint:016x}")).collect(),
        }
    }

    /// What must be in no image: the stack's keys, and the state that this process draws from.
    fn scan(&self) -> CanaryScan {
        let mut scan = self.stack.canary();
        scan.watch_key("generator", self.entropy.seed().expose());
        scan
    }

    /// Searches the image for our keys, and, to know that the search finds keys, a copy with a key planted in it.
    fn canary(&mut self, path: &Path) -> anyhow::Result<CanaryReply> {
        let mut image = read_file(path)?;
        if let Some(key) = self.seal_key.as_deref().map(read_seal_key).transpose()? {
            image = seal::open(image, &key).map_err(|error| seal_fault(path, &error))?;
        }
        let mut scan = self.scan();
        let hits = scan.search(&image).hits.len() as u64;
        let planted = self.entropy.secret::<16>();
        scan.watch_key(PLANTED, planted.expose());
        image.extend_from_slice(planted.expose());
        let planted_found = scan.search(&image).hits.iter().any(|(name, _)| *name == PLANTED);
        Ok(CanaryReply { hits, planted_found })
    }
}

fn reply<T: serde::Serialize>(reply: &T) -> anyhow::Result<Value> {
    serde_json::to_value(reply).context("writing an answer")
}

fn held_clock() -> StackClock {
    let mut clock = StackClock::running();
    clock.stop();
    clock
}

/// The name of the key that is planted to test the search for keys.
const PLANTED: &str = "planted";
/// Most frames that a pause takes in from one link: where nobody has stopped the sender, there is always one more.
const MOST_DRAINED: usize = 16_384;
/// Bursts read from one link before the other has its turn.
const ROUNDS: usize = 2;

/// Flows that run out which one poll collects: packets wait for it some tens of microseconds.
const EXPIRY_BUDGET: usize = 64;
