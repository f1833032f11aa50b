//! A block in which nothing can go on: why, and the state of every barrier that somebody waits at,
//! so that the report says who is missing where.

use crate::findings::{Check, Fault, lane_list};
use crate::machine::{Barrier, Group, Machine, State, Warp};

impl Machine<'_> {
    /// Why no warp can go on: warp, instruction, and what to say.
    pub(crate) fn why_stuck(&self, warps: &[Warp]) -> (usize, usize, Box<Fault>) {
        if let Some((at, pc, mut fault)) = self.why_parked(warps) {
            if fault.check == Check::Deadlock {
                fault.message += &self.describe_block_barriers(warps);
            }
            return (at, pc, fault);
        }
        let groups = |warp: usize| std::iter::zip(std::iter::repeat(warp), &warps[warp].groups);
        let waiting = (0..warps.len()).flat_map(groups);
        let members = waiting.clone().find_map(|(at, group)| match group.state {
            State::Members(members) => Some((at, group, members)),
            _ => None,
        });
        if let Some((at, group, members)) = members {
            return (at, group.pc as usize, self.missing_members(&warps[at], group, members));
        }
        let barrier = waiting.clone().find_map(|(at, group)| match group.state {
            State::Barrier(id) => Some((at, group, id)),
            _ => None,
        });
        let Some((at, group, id)) = barrier else {
            return (0, 0, Fault::new(Check::Deadlock, 0, "no warp can go on"));
        };
        let exited: u32 = warps.iter().map(|w| (w.launched & !w.live).count_ones()).sum();
        let elsewhere = waiting
            .clone()
            .any(|(_, group)| matches!(group.state, State::Barrier(other) if other != id));
        let (check, why) = if exited > 0 {
            (Check::BarrierDivergence, format!("{exited} threads of the block have exited"))
        } else if elsewhere {
            (Check::Deadlock, "others wait at another barrier".to_owned())
        } else {
            (Check::BarrierDivergence, "nobody else will arrive".to_owned())
        };
        let states = self.describe_block_barriers(warps);
        let message = format!("barrier {id} never opens, because {why}{states}");
        (at, group.pc as usize, Fault::new(check, group.mask, message))
    }

    /// What to say of lanes that wait for others of their warp.
    fn missing_members(&self, warp: &Warp, group: &Group, members: u32) -> Box<Fault> {
        let missing = members & warp.live & !group.mask;
        let place = warp.groups.iter().find(|other| other.mask & missing != 0).map_or(
            String::new(),
            |other| {
                let note = &self.kernel.notes[other.pc as usize];
                format!(" (they wait at `{}`, PTX line {})", note.text, note.line)
            },
        );
        let message = format!(
            "waits for lanes {:?} of its member mask, which can no longer arrive{place}",
            lane_list(missing)
        );
        Fault::new(Check::ShuffleDivergence, group.mask, message)
    }

    /// The state of each of the sixteen barriers that somebody waits at, each after a semicolon: how
    /// many threads it waits for and has, which these are, and where the others stand.
    pub(crate) fn describe_block_barriers(&self, warps: &[Warp]) -> String {
        let waits = |id: usize| {
            let here = |group: &Group| group.state == State::Barrier(id as u8);
            warps.iter().any(|warp| warp.groups.iter().any(here))
        };
        let barriers = self.barriers.iter().enumerate().filter(|(id, _)| waits(*id));
        barriers.map(|(id, barrier)| self.describe_block_barrier(warps, id, barrier)).collect()
    }

    fn describe_block_barrier(&self, warps: &[Warp], id: usize, barrier: &Barrier) -> String {
        let wanted = if barrier.whole_block { self.threads } else { barrier.expected };
        let arrived = |warp: &Warp| {
            barrier.arrived.get(warp.index as usize).copied().unwrap_or(0) & warp.launched
        };
        // A barrier with a count takes the last warp of a block for a whole one (`bar.sync`).
        let counted = |warp: &Warp| match arrived(warp) {
            lanes if lanes == warp.launched && !barrier.whole_block => 32,
            lanes => lanes.count_ones(),
        };
        let count: u32 = warps.iter().map(counted).sum();
        let mut text = format!("; barrier {id} has {count} of the {wanted} threads it waits for: ");
        text += &self.standings(warps, arrived, |group| match group.state {
            State::Barrier(at) if usize::from(at) == id => self.line_of(group),
            _ => format!("arrived and went on, {}", self.standing(group)),
        });
        let others =
            self.standings(warps, |warp| warp.launched & !arrived(warp), |g| self.standing(g));
        if !others.is_empty() {
            text += ", but not ";
            text += &others;
        }
        text
    }

    /// Where lanes that have not arrived stand.
    fn standing(&self, group: &Group) -> String {
        match group.state {
            State::Barrier(other) => format!("at barrier {other}, {}", self.line_of(group)),
            _ => {
                let text = &self.kernel.notes[group.pc as usize].text;
                format!("at `{text}`, {}", self.line_of(group))
            }
        }
    }

    fn line_of(&self, group: &Group) -> String {
        let note = &self.kernel.notes[group.pc as usize];
        let source = self.kernel.places(note).next();
        let source = source.map_or(String::new(), |source| format!(", {source}"));
        format!("PTX line {}{source}", note.line)
    }

    /// The lanes that are chosen of each warp, those together that stand alike.
    fn standings(
        &self,
        warps: &[Warp],
        chosen: impl Fn(&Warp) -> u32,
        how: impl Fn(&Group) -> String,
    ) -> String {
        // In the order in which they are met: how they stand, whole warps, and parts of warps.
        let mut alike: Vec<(String, Vec<u32>, Vec<String>)> = Vec::new();
        for warp in warps {
            let lanes = chosen(warp);
            let mut note = |how: String, lanes: u32| {
                if lanes == 0 {
                    return;
                }
                let known = alike.iter().position(|(known, ..)| *known == how);
                let at = known.unwrap_or(alike.len());
                if known.is_none() {
                    alike.push((how, Vec::new(), Vec::new()));
                }
                if lanes == warp.launched {
                    alike[at].1.push(warp.index);
                } else {
                    let lanes = numbers("lane", &lane_list(lanes));
                    alike[at].2.push(format!("{lanes} of warp {}", warp.index));
                }
            };
            for group in &warp.groups {
                note(how(group), group.mask & lanes);
            }
            note("exited".to_owned(), lanes & !warp.live);
        }
        let names = alike.into_iter().map(|(how, whole, mut parts)| {
            if !whole.is_empty() {
                parts.insert(0, numbers("warp", &whole));
            }
            format!("{} ({how})", parts.join(", "))
        });
        names.collect::<Vec<_>>().join(", ")
    }
}

/// `warp 3`, or `warps 0 to 2, 5`; the numbers ascend.
fn numbers(what: &str, numbers: &[u32]) -> String {
    if let [one] = numbers {
        return format!("{what} {one}");
    }
    let runs = numbers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [first, .., last] => format!("{first} to {last}"),
        _ => run.iter().map(u32::to_string).collect(),
    });
    format!("{what}s {}", runs.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn runs_of_numbers_are_short() {
        assert_eq!(numbers("warp", &[3]), "warp 3");
        assert_eq!(numbers("warp", &[3, 4]), "warps 3 to 4");
        assert_eq!(numbers("lane", &[0, 1, 2, 5, 7, 8]), "lanes 0 to 2, 5, 7 to 8");
    }
}
