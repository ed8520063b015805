//! Vectors of questions asked lately, bounded and counted.
//!
//! Two generations stand for "least recently used": a hit in the old one is moved to the young
//! one; a full young one becomes the old one. An entry used within the last `capacity / 2` distinct
//! questions is never lost. Keys are hashes, so a long question costs no more than a short one.

use std::sync::Arc;

use engine::model::ContentHash;
use hashbrown::HashMap;

/// See the module.
pub struct QuestionCache {
    half: usize,
    young: HashMap<ContentHash, Arc<[f32]>>,
    old: HashMap<ContentHash, Arc<[f32]>>,
}

impl QuestionCache {
    /// Holds at most `capacity` vectors.
    pub fn new(capacity: usize) -> Self {
        QuestionCache {
            half: capacity / 2,
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }

    /// The vector of a question, if it is remembered.
    pub fn get(&mut self, question: ContentHash) -> Option<Arc<[f32]>> {
        if let Some(vector) = self.young.get(&question) {
            return Some(vector.clone());
        }
        let vector = self.old.remove(&question)?;
        self.insert(question, vector.clone());
        Some(vector)
    }

    /// Remembers a vector.
    pub fn insert(&mut self, question: ContentHash, vector: Arc<[f32]>) {
        if self.half == 0 {
            return;
        }
        if self.young.len() >= self.half && !self.young.contains_key(&question) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(question, vector);
    }

    /// How many vectors are held.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let mut cache = QuestionCache::new(10);
        let hash = |i: u32| ContentHash::of(&i.to_le_bytes());
        cache.insert(hash(0), Arc::from([1.0]));
        for i in 1..1000 {
            cache.insert(hash(i), Arc::from([0.0]));
            assert!(cache.get(hash(0)).is_some(), "used again and again");
            assert!(cache.len() <= 10);
        }
        assert!(cache.get(hash(500)).is_none());
        let mut none = QuestionCache::new(0);
        none.insert(hash(1), Arc::from([0.0]));
        assert!(none.is_empty());
    }
}
