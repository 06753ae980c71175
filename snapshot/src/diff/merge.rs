//! Which item before is which item after.

use core::cmp::Ordering;

/// An item before, after, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair<'a, T> {
    /// It is gone.
    Removed(&'a T),
    /// It is there now.
    Added(&'a T),
    /// It is there before and after, the same or not.
    Both(&'a T, &'a T),
}

/// The items of two lists that ascend by `key`, in its order, each once: one pass over both.
pub fn merged<'a, T, K: Ord>(
    before: &'a [T],
    after: &'a [T],
    key: impl Fn(&'a T) -> K,
) -> impl Iterator<Item = Pair<'a, T>> {
    let (mut before, mut after) = (before, after);
    core::iter::from_fn(move || {
        let order = match (before.first(), after.first()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => key(one).cmp(&key(other)),
        };
        let next = |list: &mut &'a [T]| {
            let (first, rest) = list.split_first()?;
            *list = rest;
            Some(first)
        };
        match order {
            Ordering::Less => next(&mut before).map(Pair::Removed),
            Ordering::Greater => next(&mut after).map(Pair::Added),
            Ordering::Equal => Some(Pair::Both(next(&mut before)?, next(&mut after)?)),
        }
    })
}

/// The items of two lists that are in an order of their own, such as rules: as many as can be are paired without changing either
/// order (a longest common subsequence).
///
/// What both lists begin and end with is paired first. Where too much is left in between for the rest to be searched (products of
/// lengths above 4 million), it counts as removed and added.
pub fn aligned<'a, T>(before: &'a [T], after: &'a [T], same: impl Fn(&T, &T) -> bool) -> Vec<Pair<'a, T>> {
    let alike = |(one, other): &(&T, &T)| same(one, other);
    let head = before.iter().zip(after).take_while(alike).count();
    let (first, before) = before.split_at(head);
    let (first_after, after) = after.split_at(head);
    let tail = before.iter().rev().zip(after.iter().rev()).take_while(alike).count();
    let (before, last) = before.split_at(before.len().saturating_sub(tail));
    let (after, last_after) = after.split_at(after.len().saturating_sub(tail));
    let both = |(one, other)| Pair::Both(one, other);
    let mut pairs: Vec<_> = first.iter().zip(first_after).map(both).collect();
    pairs.extend(in_between(before, after, &same));
    pairs.extend(last.iter().zip(last_after).map(both));
    pairs
}

fn in_between<'a, T>(before: &'a [T], after: &'a [T], same: &impl Fn(&T, &T) -> bool) -> Vec<Pair<'a, T>> {
    let width = after.len().saturating_add(1);
    if before.len().saturating_mul(width) > SEARCHED {
        return before.iter().map(Pair::Removed).chain(after.iter().map(Pair::Added)).collect();
    }
    // How many can be paired of what is left from a row and a column on.
    let mut longest = vec![0_u32; before.len().saturating_add(1).saturating_mul(width)];
    let at = |row: usize, column: usize| row.saturating_mul(width).saturating_add(column);
    let of = |longest: &[u32], row: usize, column: usize| longest.get(at(row, column)).copied().unwrap_or(0);
    for (row, one) in before.iter().enumerate().rev() {
        for (column, other) in after.iter().enumerate().rev() {
            let (below, right) = (row.saturating_add(1), column.saturating_add(1));
            let best = match same(one, other) {
                true => of(&longest, below, right).saturating_add(1),
                false => of(&longest, below, column).max(of(&longest, row, right)),
            };
            if let Some(place) = longest.get_mut(at(row, column)) {
                *place = best;
            }
        }
    }
    let (mut row, mut column, mut pairs) = (0_usize, 0_usize, Vec::new());
    loop {
        let (below, right) = (row.saturating_add(1), column.saturating_add(1));
        match (before.get(row), after.get(column)) {
            (None, None) => return pairs,
            (Some(one), Some(other)) if same(one, other) => {
                pairs.push(Pair::Both(one, other));
                (row, column) = (below, right);
            }
            (Some(one), other) if other.is_none() || of(&longest, below, column) >= of(&longest, row, right) => {
                pairs.push(Pair::Removed(one));
                row = below;
            }
            (_, Some(other)) => {
                pairs.push(Pair::Added(other));
                column = right;
            }
            (Some(one), None) => {
                pairs.push(Pair::Removed(one));
                row = below;
            }
        }
    }
}

/// Most comparisons of the search for what is in between.
const SEARCHED: usize = 4_000_000;
