//! The sockets of one backend by [`SocketId`]. A slot is used again with another generation, so
//! that an id outlives its socket harmlessly.

use super::SocketId;

/// Slots with generations.
pub(super) struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Table<T> {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(super) fn insert(&mut self, value: T) -> SocketId {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.value = Some(value);
            return SocketId {
                index,
                generation: slot.generation,
            };
        }
        let index = u32::try_from(self.slots.len()).expect("descriptors are fewer than 2^31");
        self.slots.push(Slot {
            generation: 0,
            value: Some(value),
        });
        SocketId {
            index,
            generation: 0,
        }
    }

    pub(super) fn get(&mut self, id: SocketId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        slot.value.as_mut()
    }

    /// The id in use at a slot.
    pub(super) fn at(&self, index: u32) -> Option<SocketId> {
        let slot = self.slots.get(index as usize)?;
        slot.value.as_ref()?;
        Some(SocketId {
            index,
            generation: slot.generation,
        })
    }

    pub(super) fn remove(&mut self, id: SocketId) -> Option<T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_finds_nothing() {
        let mut table = Table::new();
        let first = table.insert('a');
        assert_eq!(table.remove(first), Some('a'));
        let second = table.insert('b');
        assert_eq!(second.index, first.index);
        assert_eq!(table.get(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(second), Some(&mut 'b'));
    }

    #[test]
    fn generations_begin_again_after_the_last() {
        let mut table = Table::new();
        table.insert('a');
        table.slots[0].generation = u32::MAX;
        let last = table.at(0).expect("in use");
        assert_eq!(table.remove(last), Some('a'));
        let first = table.insert('b');
        assert_eq!((first.index, first.generation), (0, 0));
        assert_eq!(table.get(last), None);
    }
}
