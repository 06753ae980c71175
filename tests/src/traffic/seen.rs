//! What can be seen of a stack from outside.

use std::fmt::Debug;

use hibernet_netstack::StackEvent;

/// All that a stack has shown, each with the number of the step it was shown at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// Datagrams it sent: link and bytes.
    pub frames: Vec<(usize, (String, Vec<u8>))>,
    /// Events it told of.
    pub events: Vec<(usize, StackEvent)>,
    /// Flows as they are listed.
    pub lists: Vec<(usize, Vec<String>)>,
    /// Images it was saved to.
    pub images: Vec<(usize, Vec<u8>)>,
    /// What the canary scan found in those images, while the stack had the keys it had at the save. For test "C".
    pub hits: Vec<(usize, (&'static str, usize))>,
    /// How much the scans looked for: windows of keys, hashes of tuples.
    pub looked_for: (usize, usize),
}

impl Seen {
    /// What was seen from a step on.
    pub fn since(&self, step: usize) -> Self {
        fn later<T: Clone>(all: &[(usize, T)], step: usize) -> Vec<(usize, T)> {
            all.iter().filter(|(at, _)| *at >= step).cloned().collect()
        }
        Self {
            frames: later(&self.frames, step),
            events: later(&self.events, step),
            lists: later(&self.lists, step),
            images: later(&self.images, step),
            hits: later(&self.hits, step),
            looked_for: self.looked_for,
        }
    }

    /// The same with other images: what a mutant of the saved form would have shown.
    pub fn with_images(&self, mut form: impl FnMut(&[u8]) -> Vec<u8>) -> Self {
        let images = self.images.iter().map(|(step, image)| (*step, form(image))).collect();
        Self { images, ..self.clone() }
    }
}

/// Tests "P" and "W": the first difference between what two stacks have shown. There must be none.
pub fn difference(one: &Seen, other: &Seen) -> Option<String> {
    first("frame", &one.frames, &other.frames)
        .or_else(|| first("event", &one.events, &other.events))
        .or_else(|| first("line", &lines(&one.lists), &lines(&other.lists)))
        .or_else(|| first_image(&one.images, &other.images))
}

fn lines(lists: &[(usize, Vec<String>)]) -> Vec<(usize, &String)> {
    lists.iter().flat_map(|(step, list)| list.iter().map(|line| (*step, line))).collect()
}

fn first<T: PartialEq + Debug>(what: &str, one: &[(usize, T)], other: &[(usize, T)]) -> Option<String> {
    let pairs = one.iter().zip(other);
    if let Some((number, (a, b))) = pairs.enumerate().find(|(_, (a, b))| a != b) {
        return Some(format!("{what} {number} differs:\n  {a:?}\n  {b:?}"));
    }
    let longer = one.get(other.len()).or_else(|| other.get(one.len()))?;
    Some(format!("{} {what}s against {}, the first more:\n  {longer:?}", one.len(), other.len()))
}

fn first_image(one: &[(usize, Vec<u8>)], other: &[(usize, Vec<u8>)]) -> Option<String> {
    let differing = one.iter().zip(other).find(|(a, b)| a != b);
    let Some(((step, a), (other_step, b))) = differing else {
        return (one.len() != other.len()).then(|| format!("{} images against {}", one.len(), other.len()));
    };
    let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
    let lengths = format!("{} and {} bytes long", a.len(), b.len());
    Some(format!("image at step {step} and {other_step} differs from byte {at} on, {lengths}"))
}
